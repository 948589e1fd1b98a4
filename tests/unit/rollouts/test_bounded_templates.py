"""Hostile chat templates: they reach nothing of Python, and end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError, UndefinedError

from align.config.policy import PolicyConfig
from align.data.base_model import load_encoder
from rollouts.chat.bounded import TURNS, check_bounded
from rollouts.errors import RunError, UserError
from tests.patience import patient
from tests.unit.chats import build

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
}
LARGE = {
    "a large range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a text that doubles": "{% set n = namespace(t='a') %}{% for _ in range(40) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "a megabyte": "{{ 'a' * 2000000 }}",
    "a padded number": "{{ '%2000000000d' % 1 }}",
}
WALKS = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "by a filter": "{{ ''|attr('__class__') }}",
    "by a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "by a mapped format": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "of a generator": "{{ (messages|map('upper')).gi_frame }}",
    "a change of the turns": "{{ messages.append(1) }}",
    "a change of one turn": "{{ messages[0].update({'content': ''}) }}",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_template_that_asks_for_too_much_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="asks for more memory, or writes a longer text"):
        check_bounded(LARGE[name], "model", patient(20.0))


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_is_ended(name: str) -> None:
    with pytest.raises(UserError, match="does not end within 1 s"):
        check_bounded(ENDLESS[name], "model", 1.0)


@pytest.mark.parametrize(
    "template", [CHATML, "{{ raise_exception('no') }}", "{% if %}", *WALKS.values()]
)
def test_every_other_template_is_left_to_whoever_renders_it(template: str) -> None:
    check_bounded(template, "model", patient(20.0))


@pytest.mark.parametrize("name", WALKS)
def test_transformers_renders_in_a_sandbox_that_reaches_nothing(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template([TURNS], chat_template=WALKS[name])
    except (SecurityError, UndefinedError):
        return
    assert "class" not in text and "frame" not in text and text.strip() in ("", "None")


def test_packages_that_come_by_a_path_are_found_and_missing_ones_are_no_fault_of_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "relative"])
    check_bounded(CHATML + "{# a path #}", "model", patient(20.0))
    monkeypatch.setattr(sys, "path", [str(Path(json.__file__).parents[1])])  # Python's own alone.
    with pytest.raises(RunError, match="could not be tried"):
        check_bounded(CHATML + "{# none #}", "model", patient(20.0))


def test_a_models_folder_with_one_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(LARGE["a long text"])
    with pytest.raises(UserError, match="the chat template asks for more memory"):
        load_encoder(tmp_path, PolicyConfig(model=str(tmp_path)))
