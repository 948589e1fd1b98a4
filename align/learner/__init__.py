"""One learner step: batch, advantages, losses, anchors. Importing the package imports no torch."""
