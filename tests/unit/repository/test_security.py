"""SECURITY.md names tests that exist, and the lock holds no version with a known hole."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "SECURITY.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))
SBOM = runpy.run_path(str(ROOT / "requirements" / "sbom.py"))
LOCK = (ROOT / "requirements" / "cpu.lock").read_text()
KNOWN_BAD = [
    line.partition("#")[0].strip()
    for line in (ROOT / "requirements" / "known_bad.txt").read_text().splitlines()
    if line.partition("#")[0].strip()
]


def test_the_page_is_short_and_every_threat_has_a_test() -> None:
    assert len(PAGE.splitlines()) <= 110
    rows = [
        line for line in PAGE.splitlines() if line.startswith("| ") and "| threat |" not in line
    ]
    assert len(rows) >= 20
    assert not [row for row in rows if "`tests/" not in row and "the same |" not in row]


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_every_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert any(each.startswith("test_") for each in names)
    assert not name or name in names


def test_every_package_is_pinned_and_none_is_known_to_be_bad() -> None:
    pins = SBOM["pins"](LOCK)
    lines = [line for line in LOCK.splitlines() if line.strip() and line.lstrip()[0] not in "#-"]
    assert len(pins) == len(lines) > 200
    bad = [Requirement(line) for line in KNOWN_BAD]
    assert {each.name for each in bad} <= pins.keys() | {"vllm"}
    assert not [
        str(each) for each in bad if each.specifier.contains(pins[each.name], prereleases=True)
    ]


def test_the_bill_of_materials_is_that_of_the_lock() -> None:
    bill = json.loads(
        json.dumps(SBOM["bill"]("Torch_x==2.13.0+cpu\nray[default]==2.60.0 ; a\n# no\n"))
    )
    assert [component["purl"] for component in bill["components"]] == [
        "pkg:pypi/ray@2.60.0", "pkg:pypi/torch-x@2.13.0%2Bcpu",
    ]  # fmt: skip
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill == SBOM["bill"]("Torch_x==2.13.0+cpu\nray[default]==2.60.0 ; a\n# no\n")
    refs = [component["bom-ref"] for component in SBOM["bill"](LOCK)["components"]]
    assert len(refs) == len(set(refs)) > 200
