"""The ledger: rounds, verdicts, evidence, and which snapshot is production."""
