"""Several processes or threads as one learner."""
