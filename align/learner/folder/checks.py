"""Checks that a campaign's base model passes, in order, before anything is started or written."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from align.bank.folder import check_sentence_encoder, sentence_width
from align.config.policy import PolicyConfig
from align.learner.folder.architecture import (
    is_causal,
    is_known,
    is_plain_precision,
    keeps_its_logits,
)
from align.learner.folder.files import (
    code_is_wanted,
    configs_are_json,
    is_its_own,
    is_model_folder,
    weights_are_whole,
)
from align.learner.folder.folder import ModelFolder
from align.learner.folder.rehearsal import can_be_written
from align.learner.folder.served import is_served, takes_adapters
from align.learner.folder.tensors import (
    is_tied_as_it_says,
    nothing_is_cut_off,
    numbers_are_finite,
    tensors_fit,
    tokens_have_rows,
)
from align.learner.model.targets import adaptation
from rollouts.engines import DEFAULT_BACKEND
from rollouts.errors import UserError
from rollouts.model_folder import check_model_folder

Check = Callable[[ModelFolder], None]


def has_the_usual_files(folder: ModelFolder) -> None:
    """Refuse a folder without a config, safetensors weights or a tokenizer."""
    check_model_folder(folder.path)


def has_the_layers(folder: ModelFolder) -> None:
    """Refuse an adapter for layers that the model does not have."""
    if folder.policy.lora is not None:
        adaptation(folder.shell.model, folder.policy.lora)


def fits_the_keys(folder: ModelFolder) -> None:
    """Refuse a bank whose groups do not divide the width of its encoder."""
    bank = folder.policy.bank
    if bank is None:
        return
    if bank.encoder is None:
        text = folder.config.get_text_config()
        width, whose = int(text.hidden_size), "the model's hidden states have"
        layers = int(text.num_hidden_layers)
        if bank.layer is not None and bank.layer > layers:
            raise UserError(
                f"the model has {layers} layers, and prompts are to be encoded by layer {bank.layer}",
                where="policy.bank.layer",
                remedy=f"set layer to at most {layers}, or leave it out for one in the lower third",
            )
    else:
        encoder = Path(bank.encoder).expanduser()
        check_sentence_encoder(encoder)
        width, whose = sentence_width(encoder), f"the encoder {encoder.name} gives"
    if width % bank.groups:
        divisors = [str(n) for n in range(1, 17) if width % n == 0]
        raise UserError(
            f"{whose} {width} numbers, which {bank.groups} groups do not divide",
            where="policy.bank.groups",
            remedy=f"set groups to one of {', '.join(divisors)}",
        )


CHECKS: tuple[Check, ...] = (
    is_model_folder,
    has_the_usual_files,
    is_its_own,
    weights_are_whole,
    configs_are_json,
    is_plain_precision,
    code_is_wanted,
    is_known,
    is_causal,
    keeps_its_logits,
    is_served,
    tensors_fit,
    nothing_is_cut_off,
    is_tied_as_it_says,
    numbers_are_finite,
    tokens_have_rows,
    can_be_written,
    has_the_layers,
    takes_adapters,
    fits_the_keys,
)
"""Checks of a base model, in order; later ones rely on earlier ones."""


BESIDE: tuple[Check, ...] = (
    is_model_folder,
    has_the_usual_files,
    weights_are_whole,
    configs_are_json,
    is_plain_precision,
    numbers_are_finite,
)
"""Checks of a teacher or critic, which no engine serves."""


SERVED: tuple[Check, ...] = (
    is_model_folder,
    has_the_usual_files,
    weights_are_whole,
    configs_are_json,
    code_is_wanted,
    is_known,
    is_causal,
    is_served,
)
"""Checks of a model that is only sampled, whatever the precision of its weights."""


SERVED_PLAIN: tuple[Check, ...] = (
    *SERVED,
    is_plain_precision,
    tensors_fit,
    nothing_is_cut_off,
    is_tied_as_it_says,
    numbers_are_finite,
    tokens_have_rows,
)
"""Checks of a model that is only sampled and has no quantised weights."""


def check_served(
    path: Path,
    policy: PolicyConfig,
    device: Literal["cpu", "cuda"],
    *,
    quantised: bool,
    backend: str = DEFAULT_BACKEND,
) -> None:
    """Check a folder that engines serve and no round trains; see `check_base`."""
    checks = SERVED if quantised else SERVED_PLAIN
    _checked(path, policy.model_dump_json(), device, backend, _stamp(path), checks)


def check_companion_folder(path: Path) -> None:
    """Check the folder of a teacher or critic; see `check_base`."""
    policy = PolicyConfig(model=str(path)).model_dump_json()
    _checked(path, policy, "cuda", DEFAULT_BACKEND, _stamp(path), BESIDE)


def check_base(
    path: Path,
    policy: PolicyConfig,
    device: Literal["cpu", "cuda"],
    *,
    backend: str = DEFAULT_BACKEND,
) -> None:
    """Check the base model's folder of a campaign, once per process and state of its files.

    Args:
        device: device of the engines.
        backend: backend of the engines.

    Raises:
        UserError: a check refuses it; names the first problem.
    """
    _checked(path, policy.model_dump_json(), device, backend, _stamp(path), CHECKS)


@lru_cache(maxsize=32)
def _checked(
    path: Path,
    policy: str,
    device: Literal["cpu", "cuda"],
    backend: str,
    stamp: tuple[object, ...],
    checks: tuple[Check, ...],
) -> None:
    folder = ModelFolder(
        path=path,
        policy=PolicyConfig.model_validate_json(policy),
        device=device,
        backend=backend,
    )
    for check in checks:
        check(folder)


def _stamp(path: Path) -> tuple[object, ...]:
    """Return the state of a folder's files, links followed: name, size, time and inode of each."""
    stamps: list[object] = []
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        try:
            state = file.stat()
        except OSError:
            stamps.append((file.name, None))
        else:
            stamps.append((file.name, state.st_size, state.st_mtime_ns, state.st_ino))
    return tuple(stamps)
