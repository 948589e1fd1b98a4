"""Backups of a store's ledger, and of a whole store."""
