"""What later rounds must not lose: snapshots, the ledger of verdicts, and prompts to replay."""
