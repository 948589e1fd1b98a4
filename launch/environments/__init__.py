"""The command that tries environments and tools before a round acts in them."""
