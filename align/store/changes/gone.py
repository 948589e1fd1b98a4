"""Missing files of decided rounds: later rounds run without them, and a line says what that costs.

What a decided round was trained on is needed no more: what is replayed of it lies in the store. Without the
prompts that its suite is measured on, later rounds are not held to it until the file is back.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from align.config.campaign import RoundConfig
from align.settings import FILE_SUFFIXES


def unmeasurable(rounds: Sequence[RoundConfig], decided: Collection[str]) -> tuple[str, ...]:
    """Name the decided rounds whose suite can no longer be measured."""
    return tuple(spec.name for spec in rounds if spec.name in decided and _gone(_measured(spec)))


def without_gone(
    rounds: Sequence[RoundConfig], decided: Collection[str]
) -> tuple[RoundConfig, ...]:
    """Return the rounds that can be loaded, without what needs a missing file.

    A decided round whose suite is gone is left out; one whose training file is gone keeps only its suite.
    None needs its documents: they are in the index of its snapshot.
    """
    unmeasured = unmeasurable(rounds, decided)
    return tuple(
        _untrained(spec) if spec.name in decided and _gone(_trained(spec)) else spec
        for spec in (_without_texts(_read(s)) if s.name in decided else s for s in rounds)
        if spec.name not in unmeasured
    )


def gone_lines(rounds: Sequence[RoundConfig], decided: Collection[str]) -> Iterator[str]:
    """Yield one sentence per missing file of a decided round."""
    for spec in rounds:
        if spec.name not in decided:
            continue
        if _gone(source := _measured(spec)):
            yield (
                f"{source} is gone: later rounds are not held to what round {spec.name!r} taught until it "
                "is back"
            )
        elif _gone(source := _trained(spec)):
            yield f"{source}, which round {spec.name!r} was trained on, is gone; nothing needs it"


def _untrained(spec: RoundConfig) -> RoundConfig:
    """Return the round without its training file; held-out examples in a file of their own are still
    read."""
    data = spec.data
    if data is not None and data.heldout_source is not None and spec.suite.prompts is None:
        return spec.model_copy(update={"data": data.model_copy(update={"source": ""})})
    return spec.model_copy(update={"prompts": None, "data": None})


def _read(spec: RoundConfig) -> RoundConfig:
    """Return the round without its change of the index; one without ``index`` as it is."""
    return spec if spec.index is None else spec.model_copy(update={"index": None})


def _without_texts(spec: RoundConfig) -> RoundConfig:
    """Return the round without pre-training texts whose file no longer exists."""
    texts = spec.replay.pretraining
    if texts is None or not _gone(str(texts.source)):
        return spec
    return spec.model_copy(update={"replay": spec.replay.model_copy(update={"pretraining": None})})


def _trained(spec: RoundConfig) -> str:
    material = spec.prompts or spec.data
    return "" if material is None else str(material.source)


def _measured(spec: RoundConfig) -> str:
    """Return the source of the items of a round's suite."""
    if spec.suite.prompts is not None:
        return str(spec.suite.prompts.source)
    if spec.data is not None and spec.data.heldout_source is not None:
        return str(spec.data.heldout_source)
    return _trained(spec)


def _gone(source: str) -> bool:
    """Tell if a source names a file that does not exist; patterns and URLs are left to their reader."""
    if not source or "://" in source or "*" in source:
        return False
    is_file = Path(source).suffix.lower() in FILE_SUFFIXES or source.startswith((".", "/"))
    return is_file and not os.path.exists(source)
