"""What the policy said: carriers, prompts and rollout engines. Imports nothing else of Keel."""
