"""The README's picture: drawn from the stored figures, one line for each round, readable without colour."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from benchmarks.picture import FOLDER, ROUNDS, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_is_drawn_from_the_stored_figures() -> None:
    data = json.loads((FOLDER / "retention.json").read_text())
    assert (FOLDER / "retention.svg").read_text() == draw(data)


def test_a_line_begins_in_its_own_round_and_ends_at_its_last_score() -> None:
    scores = {name: [0.25, 0.5, 0.5, 0.5, 1.0] for name in ROUNDS}
    root = ElementTree.fromstring(draw({"one": scores, "other": scores}))
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [5, 4, 3, 2] * 2
    # A score of 1 is at the top of the panel, .25 at a quarter of its 190 units above the bottom.
    assert {points[-1].partition(",")[2] for points in lines} == {"44.0"}
    assert lines[0][0] == "50,186.5"


def test_names_beside_the_lines_do_not_cover_one_another() -> None:
    scores = {name: [1.0] * 5 for name in ROUNDS}
    root = ElementTree.fromstring(draw({"one": scores}))
    labels = [
        float(t.attrib["y"])
        for t in root.iter(f"{SVG}text")
        if t.text in ROUNDS and "style" in t.attrib
    ]
    assert all(abs(a - b) >= 14 for i, a in enumerate(labels) for b in labels[:i])
