"""Manifests for Kubernetes, written out and not sent anywhere."""
