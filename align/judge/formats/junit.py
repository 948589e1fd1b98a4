"""A judgement as JUnit's XML, which CI systems show as tests: one test per check.

A loss is a failure, and a check with too few items is an error: nothing was found out. What only is shown
passes.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from align.judge.judgement import Judgement, of_incumbent, title_of

NAME = "keel judge"
UNDECIDED = ("too_few_items",)
"""Outcomes of checks that are errors of the test, not failures."""
FORBIDDEN = re.compile("[^\\t\\n\\r\\u0020-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""Characters that no XML may hold."""


def junit_of(judgement: Judgement) -> str:
    """Write the checks as tests, and the verdict as one more that fails where the candidate does."""
    cases = []
    outcome: str | None
    for check in judgement.verdict.checks:
        shown = check.role == "shown"
        name = f"{title_of(check)} (shown only)" if shown else title_of(check)
        sentence = of_incumbent(check.sentence)
        outcome = None if shown or check.outcome == "passed" else check.outcome
        cases.append(_case(f"{NAME}.{check.suite}", name, outcome, sentence, sentence))
    headline = judgement.headline
    text = "\n".join([headline, *judgement.reasons])
    verdict = judgement.verdict
    outcome = None if verdict.accepted else verdict.outcome
    cases.append(_case(NAME, "verdict", outcome, headline, text))
    failures = [case for case in cases if case.find("failure") is not None]
    errors = [case for case in cases if case.find("error") is not None]
    counts = {
        "name": NAME,
        "tests": str(len(cases)),
        "failures": str(len(failures)),
        "errors": str(len(errors)),
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", counts)
    suite.extend(cases)
    ElementTree.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(suites, "unicode")}\n'


def _case(
    group: str, name: str, outcome: str | None, message: str, text: str
) -> ElementTree.Element:
    """Write one test, which passed if there is no outcome against the candidate."""
    group, name, message, text = map(_legal, (group, name, message, text))
    case = ElementTree.Element("testcase", {"classname": group, "name": name})
    if outcome is None:
        ElementTree.SubElement(case, "system-out").text = text
    else:
        tag = "error" if outcome in UNDECIDED else "failure"
        ElementTree.SubElement(case, tag, {"type": outcome, "message": message}).text = text
    return case


def _legal(text: str) -> str:
    return FORBIDDEN.sub("�", text)
