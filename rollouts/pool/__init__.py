"""Many engines as one: placed, balanced, replaced, and kept on one version."""
