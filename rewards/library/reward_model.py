"""The reward of a reward model: one number for each prompt with its answer.

A folder holds one in Hugging Face's format for sequence classification with a single label: a snapshot
of a ``reward_model`` round, or any other. Its own tokenizer reads prompt and answer, an end token
follows, and what is too long loses its beginning. The model is loaded once per process, at the first
sample. Here is also what training shares with scoring: how a score is read off.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from rewards.base import ShownCompletion, completion_text
from rewards.environments.state import EndedEnvironment, episode_of
from rewards.library.judge.question import READS
from rewards.signatures.options import one_of
from rollouts.chat.answers import chat_whole, ended, text_answer
from rollouts.chat.endings import extra_endings
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Message, Prompt

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Shown = str | Sequence[Message]
"""Prompt as a reward is shown it."""

LONGEST_CONTEXT = 4096
"""Tokens of one sequence where the model's config does not say."""
ROUND = "round:"
"""Begins the name of a model that an earlier round of the campaign makes."""

_ONE_AT_A_TIME = Lock()


def reward_model(
    prompts: Sequence[Shown],
    completions: Sequence[ShownCompletion],
    model: str | None = None,
    batch_size: int = 16,
    normalise: bool = True,
    reads: str = "episode",
    environments: Sequence[EndedEnvironment | None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> list[float]:
    """Score each answer by the model in the folder ``model``; also ``round:NAME`` in a campaign file.

    Answers are read as finished ones, also where sampling was cut. ``normalise`` puts rewards on the
    scale that the snapshot recorded: mean 0 and standard deviation 1 over its held-out pairs. An
    ``episode`` is read with all turns, calls and results, and a text that was acted on as a user's message;
    ``reads: answer`` reads its last turn alone.
    """
    one_of("reads", reads, READS)
    if not model:
        raise UserError("reward_model needs a model", remedy="add options: {model: FOLDER}")
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    if model.startswith(ROUND) and not completions:
        return []
    folder = Path(model).expanduser()
    _check(folder)
    if not completions:
        return []
    with _ONE_AT_A_TIME, _one_thread():
        scorer = load_scorer(folder)
        acted_in = environments or [None] * len(completions)
        shown = map(partial(read_of, reads=reads), prompts, completions, acted_in)
        sequences = [scorer.encode(prompt, answer) for prompt, answer in shown]
        cut = sum(len(ids) > scorer.context for ids in sequences)
        if cut:
            logger.warning(
                "%d of %d answers with their prompts are longer than the %d tokens of %s; their "
                "beginning is left out", cut, len(sequences), scorer.context, folder.name,
            )  # fmt: skip
        if log_metric is not None:
            log_metric("truncated", cut / len(sequences))
        scores = scorer.scores(sequences, batch_size)
    return [(s - scorer.mean) / scorer.std for s in scores] if normalise else scores


def read_of(
    prompt: Shown, completion: ShownCompletion, ended: EndedEnvironment | None, reads: str
) -> tuple[Shown, ShownCompletion]:
    """Return what a reward model reads of a prompt and its completion; an episode is read as a chat."""
    episode = episode_of(ended)
    if reads == "answer":
        return prompt, completion_text(completion)
    if episode is None or not isinstance(completion, str):
        return prompt, completion
    turns: Shown = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return turns, list(episode.messages)


def sequence_scores(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Score each sequence at its last token; the result has shape ``B``, with gradient.

    Transformers take the last token that is not ``pad_token_id`` for the last one. So where padding and
    end of sequence are one token, the score is read just before it, here and by everybody else.
    """
    import torch

    pad, width = model.config.get_text_config().pad_token_id, max(map(len, sequences))
    gaps = [width - len(ids) for ids in sequences]
    tokens = [[*ids, *[pad] * gap] for ids, gap in zip(sequences, gaps, strict=True)]
    mask = [[1] * (width - gap) + [0] * gap for gap in gaps]
    scores_B1: Tensor = model(
        input_ids=torch.tensor(tokens, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
    ).logits
    return scores_B1[:, 0].float()


def set_padding(model: Any, candidates: Iterable[int | None]) -> None:
    """Give the model the first of these padding tokens, or it takes padding for the end of a sequence."""
    pad = next((int(token) for token in candidates if token is not None), None)
    if pad is None:
        raise UserError(
            "a reward model needs a token to pad with, and its tokenizer has neither pad nor eos",
            remedy="set tokenizer.pad_token and save the tokenizer again",
        )
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad


class RewardScorer:
    """A loaded reward model. Its scores are raw; ``mean`` and ``std`` are those of its held-out pairs."""

    def __init__(self, model: Any, encoder: PromptEncoder) -> None:
        self.model, self._encoder = model, encoder
        tokenizer, config, text = encoder.tokenizer, model.config, model.config.get_text_config()
        # What the model was trained with decides where its scores are read.
        set_padding(model, (text.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id))
        self.context = int(getattr(text, "max_position_embeddings", LONGEST_CONTEXT))
        self.mean = float(getattr(config, "reward_mean", 0.0))
        self.std = float(getattr(config, "reward_std", 1.0))

    def encode(self, prompt: Shown, completion: ShownCompletion) -> tuple[int, ...]:
        """Return the token ids of a prompt and its answer, with an end, as examples of a file are
        encoded."""
        text, encoder = completion_text(completion), self._encoder
        if isinstance(prompt, str):
            prompt_ids = encoder.encode(Prompt(id="", text=prompt))
            if not text:
                return ended(prompt_ids, encoder)
            return (*prompt_ids, *text_answer(prompt, prompt_ids, text, encoder))
        turns: tuple[Message, ...] = tuple(prompt)
        prompt_ids = encoder.encode(Prompt(id="", messages=turns))
        answer: tuple[Message, ...] = ({"role": "assistant", "content": text},)
        if not isinstance(completion, str):  # An episode: all its turns.
            answer = tuple(completion)
        return ended(chat_whole(turns, prompt_ids, answer, encoder)[0], encoder)

    def scores(self, sequences: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        """Return raw scores in the order of the sequences, from the last ``context`` tokens of each."""
        import torch

        score_of: dict[int, float] = {}
        by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        with torch.inference_mode():
            for start in range(0, len(by_length), batch_size):
                indices = by_length[start : start + batch_size]
                cut = [sequences[i][-self.context :] for i in indices]
                score_of |= zip(indices, sequence_scores(self.model, cut).tolist(), strict=True)
        return [score_of[i] for i in range(len(sequences))]


@cache
def load_scorer(folder: Path) -> RewardScorer:
    """Load the reward model of a folder, without code of its own.

    Raises:
        UserError: it has no trained head with a single label.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if model.config.num_labels != 1 or report["missing_keys"]:
        missing = sorted(report["missing_keys"])[:3]
        raise _unfit(folder, f"labels: {model.config.num_labels}, missing weights: {missing}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = PromptEncoder(tokenizer, extra_endings(folder, tokenizer))
    return RewardScorer(model.to(device).eval().requires_grad_(False), encoder)


def _check(folder: Path) -> None:
    """Refuse what is wrong with a folder as far as it shows without loading, in milliseconds."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"there is no reward model in {str(folder)!r}: it has no config.json",
            remedy="give the folder of a sequence classification model, or round:NAME of an earlier "
            "round that was accepted",
        )
    kinds = json.loads(file.read_text(encoding="utf-8")).get("architectures") or [""]
    if not kinds[0].endswith("ForSequenceClassification"):
        raise _unfit(folder, f"its architecture is {kinds[0] or 'not named'}")


def _unfit(folder: Path, cause: str) -> UserError:
    return UserError(
        f"the model in {str(folder)!r} is no reward model",
        cause=cause,
        remedy="give a model for sequence classification with num_labels=1, and its tokenizer",
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: learner and engines share these cores, and waiting threads spin."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
