"""Distillation, which pulls the policy's distribution after every prefix toward a teacher's.

    L = 1/N sum_t D(pi(. | x, y_<t), teacher(. | x', y_<t))

over the whole vocabulary. With completions of the policy itself (``on_policy``) it learns on the prefixes
that it produces, so mistakes do not add up as they do when it imitates others' text: GKD, Agarwal et al.
2023, arXiv 2306.13649.
``reverse_kl`` (mode-seeking) is KL(pi || teacher), ``forward_kl`` (mass-covering) KL(teacher || pi), and
``jsd`` lies between them (eq. 1 there).

With a ``demonstration`` the teacher is an earlier snapshot that has read one: ``x'`` is the prompt with
the demonstration in front. This is self-distillation fine-tuning, Shenfeld et al. 2026, arXiv
2601.19897. The teacher stays unchanged, or follows the policy slowly (``follow``).

Assumes that teacher and policy share their vocabulary, token by token; `check_teacher` checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from align.algorithms.base import Material
from align.algorithms.imitation.imitation import Imitation, sampled_rows
from align.algorithms.rows import Batch
from align.settings import TeacherPath
from rollouts.errors import UserError, nearest
from rollouts.types import Prompt, ScoredGroup

if TYPE_CHECKING:
    from torch import Tensor

    from align.algorithms.outputs import Divergence, Outputs

TEMPLATE = (
    "An example of a good response to the request below:\n\n{demonstration}\n\n"
    "Give a response of your own to this request:\n\n{prompt}"
)


class Distill(Imitation):
    """Distillation from another model, or from an earlier snapshot that reads a demonstration."""

    name: Literal["distill"] = "distill"
    teacher: TeacherPath
    """Teacher's model: ``parent`` (where the round started), ``base``, ``round:NAME``, or ``model:PATH``
    for a folder."""
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """Divergence between policy and teacher that is minimised after every prefix."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the teacher in the mixture of ``jsd``: small is like the forward KL, large like the
    reverse. The other divergences do not use it."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature of both distributions in the comparison; None: the one of sampling, and 1 for a file's
    demonstrations."""
    follow: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the way to the policy that the teacher's weights move after every optimizer step, such as
    0.01; None keeps them unchanged."""
    on_policy: bool = True
    """Compare after the policy's own prefixes; otherwise after those of a file's demonstrations."""
    demonstration: str | None = None
    """Prompt column with a demonstration that the teacher reads and the policy does not."""
    demonstration_template: str = TEMPLATE
    """Text that the teacher reads, made of ``{demonstration}`` and ``{prompt}``; in a chat it replaces the
    last turn."""

    @field_validator("demonstration_template")
    @classmethod
    def _has_both_places(cls, template: str) -> str:
        try:
            filled = template.format(demonstration="\0d", prompt="\0p")
        except (KeyError, IndexError) as error:
            name = str(error).strip("'")
            raise ValueError(
                f"the template has a place {{{name}}}, which nothing fills; its "
                "places are {demonstration} and {prompt}, and other braces are written twice, as {{ and }}"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"cannot fill the template: {error!r}; write other braces twice, as {{{{ and }}}}"
            ) from error
        if "\0d" not in filled or "\0p" not in filled:
            raise ValueError("the template needs both {demonstration} and {prompt}; add the other")
        return template

    @model_validator(mode="after")
    def _has_a_mixture(self) -> Self:
        if self.divergence != "jsd" and self.changed("beta"):
            raise ValueError(
                f"beta {self.beta:g} is the teacher's share in the mixture of jsd, and {self.divergence} "
                "has none; remove beta, or set divergence to jsd"
            )
        return self

    @model_validator(mode="after")
    def _can_follow(self) -> Self:
        if self.follow is not None and self.teacher.startswith("model:"):
            raise ValueError(
                f"follow {self.follow:g} moves the teacher's weights toward the policy's, and "
                f"{self.teacher} is no earlier policy; set teacher to parent, base or round:NAME, or "
                "remove follow"
            )
        return self

    @model_validator(mode="after")
    def _has_something_to_teach(self) -> Self:
        if self.teacher == "parent" and self.demonstration is None:
            raise ValueError(
                "the policy starts as its teacher, parent, and would learn nothing; name another "
                "teacher, or a prompt column in demonstration"
            )
        if self.demonstration is not None and not self.on_policy:
            raise ValueError(
                "demonstration is a column of prompts, and on_policy: false learns from a file's "
                "answers; remove one of the two"
            )
        return self

    @property
    def material(self) -> Material:
        return "rollouts" if self.on_policy else "demonstrations"

    @property
    def teacher_snapshot(self) -> str:
        return self.teacher

    @property
    def teacher_follows(self) -> float | None:
        return self.follow

    def teacher_prompt(self, prompt: Prompt) -> Prompt | None:
        if self.demonstration is None:
            return None
        columns, name = prompt.columns, self.demonstration
        if not isinstance(columns.get(name), str):
            raise UserError(
                f"{prompt.label} has no text in the column {name!r}",
                where=f"rounds.{prompt.round}.algorithm.demonstration",
                remedy=nearest(name, list(columns)),
            )
        fill = partial(self.demonstration_template.format, demonstration=columns[name])
        if prompt.messages is None:
            return replace(prompt, text=fill(prompt=prompt.text))
        *before, last = prompt.messages
        last = {**last, "content": fill(prompt=last["content"])}
        return replace(prompt, messages=(*before, last))

    def rows(self, groups: Sequence[ScoredGroup]) -> Batch:
        """Make a row of every completion, whatever its score.

        They have no advantage if the round learns from a file's answers.
        """
        return sampled_rows(groups, 1.0 if self.on_policy else None)

    def losses(self, outputs: Outputs) -> Tensor:
        assert outputs.teacher is not None, "the learner fills in what teacher_snapshot names"
        shared = self.temperature or outputs.temperature
        teacher = outputs.teacher.tempered(shared)
        return outputs.tempered(shared).divergence(teacher, self.between)

    @property
    def between(self) -> Divergence:
        """Divergence as a function of two models' log-probabilities."""
        from align.algorithms import divergences as kl

        functions: dict[str, Any] = {
            "reverse_kl": kl.full,
            "forward_kl": kl.forward,
            "jsd": partial(kl.jsd, beta=self.beta),
        }
        return functions[self.divergence]  # type: ignore[no-any-return]
