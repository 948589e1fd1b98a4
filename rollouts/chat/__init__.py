"""Chat templates, messages and ending tokens, read alike by learner, engines and gate."""
