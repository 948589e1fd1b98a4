"""This process's machine: its processor, its memory, its shared memory."""
