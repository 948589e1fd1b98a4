"""The gate for any model, without a campaign: two models, a file of suites, one verdict."""
