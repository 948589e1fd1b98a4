"""A world small enough to align on a laptop in a minute, and forgetful enough to show the need.

Importing this package costs nothing: torch and transformers are imported by `base` and `tokenizer`
only.
"""

from __future__ import annotations

from pathlib import Path

BASE_MODEL: Path = Path(__file__).parent / "base_model"
"""Folder of the shipped base model: what `demo://digits` stands for. `base.build` rebuilds it."""
