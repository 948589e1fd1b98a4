"""Worlds of facts: they change with time, are edited, read from documents, or looked up by tools."""
