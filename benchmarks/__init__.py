"""Measurements of Keel's claims; each script measures one claim and prints one table."""
