"""Settings of episodes: tools, environments and the limits under which a policy acts in them."""
