"""The store of a campaign: ledger, snapshots, and their copy behind a URL."""
