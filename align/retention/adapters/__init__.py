"""Methods that keep the adapters of rounds apart, where every round trains a fresh one."""
