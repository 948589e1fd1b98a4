"""Memory across rounds: snapshots, the ledger of verdicts, and prompts to replay."""
