"""Methods that let a round change a part of the weights only."""
