"""Rounds, learner, gate and store: what changes the policy, and decides if the change is kept."""

import os

# Read once, when torch is loaded. Waiting threads that spin take the cores from the engines: beside
# one busy process, a learner of two threads is then slower than one of one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
