"""Sub-commands of ``keel``, one file per group."""
