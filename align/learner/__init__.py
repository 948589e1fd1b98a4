"""One learner step: batch, objective, optimizer, references. Importing the package imports no torch."""
