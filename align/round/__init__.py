"""One round: sample, score, learn, then ask the gate whether the change is kept."""
