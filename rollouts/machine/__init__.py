"""The machine that a process finds itself on: its processor, its memory, its shared memory."""
