"""Ray clusters: private ones, joined ones, and jobs that are submitted to them."""
