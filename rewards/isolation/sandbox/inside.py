"""Entry point inside bubblewrap: sets the last limits, then becomes the worker."""

from __future__ import annotations

import sys

from rewards.isolation.keeper import settle
from rewards.isolation.setup import Setup
from rewards.isolation.worker import serve

if __name__ == "__main__":
    setup = Setup.load(sys.argv[1])
    settle(setup)
    serve(setup.channel)
