"""Tables of the ledger and the rules that the database itself keeps."""
