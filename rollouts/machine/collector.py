"""Python's search for cycles among objects, put off while many small ones are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def spare_imports() -> None:
    """Leave all objects that there are, such as those of imported modules, out of later searches."""
    gc.freeze()


@contextmanager
def without_collector() -> Iterator[None]:
    """Make many small objects without the search for cycles, which takes longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
