"""A judgement as JUnit's XML, which CI systems show as tests: one test per check.

A loss is a failure, and a check with too few items is an error: nothing was found out. What only is shown
passes.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from align.gate.checks import Check
from align.judge.judgement import Judgement, of_incumbent, title_of

NAME = "keel judge"
UNDECIDED = ("too_few_items",)
"""Outcomes of checks that are errors of the test, not failures."""
FORBIDDEN = re.compile("[^\\t\\n\\r\\u0020-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""Characters that no XML may hold."""


def junit_of(judgement: Judgement) -> str:
    """Write the checks as tests, and the verdict as one more that fails where the candidate does."""
    checks = judgement.verdict.checks
    cases = [_case(check) for check in checks] + [_verdict(judgement)]
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


def _case(check: Check) -> ElementTree.Element:
    shown = check.role == "shown"
    name = f"{title_of(check)} (shown only)" if shown else title_of(check)
    case = ElementTree.Element("testcase", {"classname": f"{NAME}.{check.suite}", "name": name})
    sentence = _legal(of_incumbent(check.sentence))
    if shown or check.outcome == "passed":
        ElementTree.SubElement(case, "system-out").text = sentence
    else:
        tag = "error" if check.outcome in UNDECIDED else "failure"
        attributes = {"type": check.outcome, "message": sentence}
        ElementTree.SubElement(case, tag, attributes).text = sentence
    return case


def _verdict(judgement: Judgement) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": NAME, "name": "verdict"})
    headline = _legal(judgement.headline)
    text = "\n".join([headline, *map(_legal, judgement.reasons)])
    if judgement.verdict.accepted:
        ElementTree.SubElement(case, "system-out").text = text
    else:
        outcome = judgement.verdict.outcome
        tag = "error" if outcome in UNDECIDED else "failure"
        ElementTree.SubElement(case, tag, {"type": outcome, "message": headline}).text = text
    return case


def _legal(text: str) -> str:
    return FORBIDDEN.sub("�", text)
