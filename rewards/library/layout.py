"""Rewards for the form of an answer: tags in order, JSON that fits a schema. 1.0 or 0.0."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.base import ShownCompletion, completion_text
from rewards.signatures.options import given, missing_package
from rollouts.errors import UserError

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)


def tag_format(
    completions: Sequence[ShownCompletion],
    tags: Sequence[str] = ("think", "answer"),
    only: bool = True,
) -> list[float]:
    """Score 1.0 where each of the ``tags`` opens and closes exactly once, in this order, none inside
    another.

    ``only``: nothing but white space stands outside them. The format reward of DeepSeek-R1,
    arXiv 2501.12948 section 2.2.2.
    """
    given("tag_format", "tags", tags, "[think, answer]")
    if isinstance(tags, str) or not all(re.fullmatch(r"[A-Za-z][\w-]*", str(t)) for t in tags):
        raise UserError(f"tags must be a list of names, got {tags!r}")
    if len(set(tags)) < len(tags):
        raise UserError(f"every tag stands once, got {list(tags)}")
    between = r"\s*" if only else r".*?"
    blocks = between.join(rf"<{tag}>.*?</{tag}>" for tag in tags)
    expression = re.compile(rf"{between}{blocks}{between}", re.DOTALL)
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    texts = [completion_text(completion) for completion in completions]
    return [
        float(all(text.count(m) == 1 for m in marks) and expression.fullmatch(text) is not None)
        for text in texts
    ]


def json_schema(
    completions: Sequence[ShownCompletion],
    schema: Mapping[str, Any] | None = None,
    fence: bool = True,
) -> list[float]:
    """Score 1.0 where the completion is JSON that fits the JSON Schema ``schema``, and nothing else.

    ``fence``: one Markdown code block around it is allowed. Nothing is fetched: a ``$ref`` leads
    inside the schema. Drafts 3 to 2020-12 (https://json-schema.org), NaN and Infinity are no JSON.
    """
    given("json_schema", "schema", schema, "{type: object}")
    assert schema is not None
    validator = _validator(schema)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    scores = []
    for text in map(completion_text, completions):
        fenced = _FENCE.fullmatch(text.strip()) if fence else None
        try:
            value = json.loads(fenced[1] if fenced else text, parse_constant=refuse)
        except (ValueError, RecursionError):
            scores.append(0.0)
        else:
            scores.append(float(validator.is_valid(value)))
    return scores


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        import jsonschema
        import referencing
    except ImportError as error:
        raise missing_package("json_schema", "jsonschema", error, "rewards") from error
    if not isinstance(schema, Mapping):
        raise UserError(f"schema must be a mapping, got {type(schema).__name__}")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        path = "/".join(map(str, error.absolute_path)) or "the top"
        raise UserError(
            "the schema is no JSON Schema", cause=f"at {path}: {error.message}"
        ) from error
    # An empty registry keeps jsonschema from fetching what a schema refers to.
    return kind(schema, registry=referencing.Registry())
