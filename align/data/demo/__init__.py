"""Tiny world of digit tasks, which a laptop aligns in a minute and in which naive rounds forget.

Importing this package costs nothing: only `base` and `tokenizer` import torch and transformers.
"""

from __future__ import annotations

from pathlib import Path

BASE_MODEL: Path = Path(__file__).parent / "base_model"
"""Folder of the shipped base model, which `demo://digits` stands for; `base.build` rebuilds it."""
