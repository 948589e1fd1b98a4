"""The database behind a ledger: SQLite or PostgreSQL."""
