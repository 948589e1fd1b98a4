"""Index of documents that a policy reads: its versions, the search in it, and documents before prompts."""
