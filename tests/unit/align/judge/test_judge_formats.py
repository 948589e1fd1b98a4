"""Judgements for readers: names and answers of others are text in each of them."""

from __future__ import annotations

from xml.etree import ElementTree

from align.judge.formats import junit, markdown

HOSTILE = "q` <img src=x onerror=y> |\x1b[2J\x00"


def test_names_are_legal_in_xml_and_no_markup_in_markdown() -> None:
    case = junit._case(HOSTILE, HOSTILE, "regressed", HOSTILE, HOSTILE)
    again = ElementTree.fromstring(ElementTree.tostring(case, "unicode"))
    legal = HOSTILE.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
    assert (again.attrib["name"], again.attrib["classname"]) == (legal, legal)
    plain = markdown._plain(HOSTILE)
    assert "<" not in plain and "\\`" in plain and "\\|" in plain
