"""Settings of the index of documents that a policy reads, and of what a round changes in it."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from align.config.learning import listed
from align.settings import InputPath, Settings

FIELDS = ("documents", "prompt")
"""Fields that a template has, once each."""


class RetrievalConfig(Settings):
    """Search in the index, and the place of what it finds: before the prompt, or behind a tool."""

    method: Literal["bm25", "dense"] = "bm25"
    """Comparison of questions and documents. ``bm25``: by the words they share (Robertson et al. 1994);
    ``dense``: by the cosine of their vectors under ``encoder``."""
    form: Literal["prompt", "tool"] = "prompt"
    """``prompt``: documents are put before every prompt; ``tool``: the policy calls ``search(query)``,
    where a round or suite lets it call tools."""
    top_k: Annotated[int, Field(ge=1)] = 3
    """Largest number of documents for a question. Documents that share nothing with it are left out, and
    so are the least fitting ones where the context has no room."""
    role: Literal["user", "system"] = "user"
    """Message of a chat that documents are put into: the user's last one, or the system message, which is
    added if there is none."""
    template: str = "{documents}\n\n{prompt}"
    """Text that the model reads in place of the prompt or message."""
    separator: str = "\n"
    """Text between two documents."""
    k1: Annotated[float, Field(gt=0)] = 1.5
    """Saturation of a word's count in BM25."""
    b: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Share of the documents' length that BM25 corrects for."""
    encoder: InputPath | None = None
    """Folder of sentence-transformers that ``dense`` compares with, which needs the extra ``bank``. None:
    the mean of the base's hidden states over a text."""
    layer: Annotated[int, Field(ge=1)] | None = None
    """Layer of the base after which these hidden states are taken; None: a third of the way up."""

    @field_validator("template")
    @classmethod
    def _has_both(cls, template: str) -> str:
        """Refuse a template that drops the documents or the prompt, or shows one of them twice."""
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"template {template!r} has unbalanced braces: {error}") from error
        names = [name for _, name, _, _ in parts if name is not None]
        plain = not any(spec or conversion for _, _, spec, conversion in parts)
        if sorted(names) != sorted(FIELDS) or not plain:
            raise ValueError(
                f"template is {template!r}; it needs {{documents}} and {{prompt}}, once each and nothing "
                "else in braces"
            )
        return template

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        wrong = ("encoder", "layer") if self.method == "bm25" else ("k1", "b")
        if (setting := self.changed(*wrong)) is not None:
            raise ValueError(
                f"{setting} is set and method is {self.method}, which does not use it; remove {setting} or "
                f"set method to {'dense' if self.method == 'bm25' else 'bm25'}"
            )
        if self.encoder is not None and self.layer is not None:
            raise ValueError(
                f"layer is {self.layer} and encoder names a folder, which is asked instead of the base; "
                "remove one"
            )
        unused = [n for n in ("role", "template") if self.changed(n)]
        if self.form == "tool" and unused:
            raise ValueError(
                f"{unused[0]} is of documents before a prompt, and form is tool; remove {unused[0]}"
            )
        return self

    @property
    def stored(self) -> dict[str, Any]:
        """All settings as a version of the index keeps them, paths as the campaign file has them."""
        return self.model_dump(mode="json")


def added(value: Any) -> Any:
    """Expand ``facts.jsonl``, which is short for ``{add: facts.jsonl}``."""
    return {"add": value} if isinstance(value, str | list | tuple) else value


class IndexConfig(Settings):
    """Change of the index that a round makes: documents to add or overwrite by key, and keys to forget."""

    add: Annotated[tuple[InputPath, ...], BeforeValidator(listed)] = ()
    """Files of documents (.jsonl, .json, .csv, .parquet) or ``datasets`` ids. A document whose key the
    index has takes the place of the one there; a row with an empty text forgets its key."""
    text: str = "text"
    """Column with a document's text."""
    key: str = "key"
    """Column with the key that a document is overwritten and forgotten by. Files without the column are
    keyed by their documents' texts."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    forget: Annotated[tuple[str, ...], BeforeValidator(listed)] | Literal["all"] = ()
    """Keys that leave the index, before documents are added; ``all`` empties it."""
    compare: bool = True
    """Measure weights and index apart as well, where a round changes both: two more measurements of all
    suites, which say which of them gained and kept more and decide nothing."""

    @field_validator("forget", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """Read keys that YAML takes for numbers as the texts they are written as."""
        if isinstance(value, list | tuple):
            return [str(key) if type(key) is int else key for key in value]
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.add and not self.forget:
            raise ValueError(
                "the index neither gains nor loses a document; set add to a file of documents, or forget "
                "to keys, or remove index"
            )
        return self

    @property
    def empties(self) -> bool:
        """True if nothing of the index before stays."""
        return self.forget == "all"


Index = Annotated[IndexConfig, BeforeValidator(added)]
