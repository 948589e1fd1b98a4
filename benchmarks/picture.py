"""The picture of the README: what is right after each round, trained naively and with Keel.

    python -m benchmarks.picture                              draws docs/results/retention.svg
    python -m benchmarks.picture --naive STORE --keel STORE   reads two stores of the quickstart first

The naive store is that of `keel run configs/quickstart.yaml` with `defaults.replay.past`, `.general` at 0,
no anchors and `gate.mode` at observe. The drawing needs no library and follows a reader's light or dark
scheme.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
ROUNDS = ("reverse", "sort", "rotate", "increment")
COLOURS = ("#0b7285", "#c2410c", "#6d28d9", "#15803d")
DARK_COLOURS = ("#66d9e8", "#ffa94d", "#b197fc", "#8ce99a")
"""One colour of each round, on a light and on a dark page."""
DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""One line style of each round, for readers who see no colour."""
WIDTH, HEIGHT = 760, 300
LEFT, TOP, PANEL, TALL, GAP = 50, 44, 290, 190, 70


def _colours(colours: Sequence[str]) -> str:
    return "".join(
        f".line{index}{{stroke:{colour}}}.name{index}{{fill:{colour}}}"
        for index, colour in enumerate(colours)
    )


STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.grid{stroke:#d1d9e0}.faint{fill:#59636e}"
    + _colours(COLOURS)
    + "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}.faint{fill:#9198a1}"
    + _colours(DARK_COLOURS)
    + "}"
)

Scores = Mapping[str, Sequence[float]]
"""Share of right answers of each round's suite: at the start, then after every round."""


def scores_of(store: Path) -> dict[str, list[float]]:
    """Read the score matrix of a store of the quickstart."""
    from align.config.file import load_campaign
    from align.gate.evidence import stored_evidence

    campaign = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
    evidence = stored_evidence(load_campaign(campaign, [f"store={store}"]).config)
    matrix = evidence.matrix()
    rows = [row for row in matrix.rows if row.name in ("base", *ROUNDS)]
    return {
        suite: [round(float(row.scores[matrix.suites.index(suite)] or 0.0), 3) for row in rows]
        for suite in ROUNDS
    }


def draw(data: Mapping[str, Scores]) -> str:
    """Draw one panel for each way to train, side by side."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Share of right answers after each round, trained naively and with Keel">',
        f"<style>{STYLE}</style>",
    ]
    for number, (title, scores) in enumerate(data.items()):
        parts += _panel(LEFT + number * (PANEL + GAP), title, scores)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, title: str, scores: Scores) -> list[str]:
    """Draw one panel: a line for each round, from its own round on."""
    step = (PANEL - 70) / len(ROUNDS)
    parts = [f'<text x="{left}" y="22" font-weight="600">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        y = TOP + TALL * (1 - share)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + PANEL - 70}" y1="{y:g}" y2="{y:g}"/>'
        )
        parts.append(
            f'<text class="faint" x="{left - 8}" y="{y + 4:g}" text-anchor="end">{share:.0%}</text>'
        )
    for index, name in enumerate(("start", *ROUNDS)):
        x = left + step * index
        parts.append(
            f'<text class="faint" x="{x:g}" y="{TOP + TALL + 20 + 14 * (index % 2)}" '
            f'text-anchor="middle">{name}</text>'
        )
    ends: list[float] = []
    for index, name in enumerate(ROUNDS):
        points = [
            (left + step * at, TOP + TALL * (1 - value))
            for at, value in enumerate(scores[name])
            if at >= index
        ]
        line = " ".join(f"{x:g},{y:.1f}" for x, y in points)
        dash = f' stroke-dasharray="{DASHES[index]}"' if DASHES[index] else ""
        parts.append(
            f'<polyline class="line{index}" fill="none" stroke-width="2.5"{dash} points="{line}"/>'
        )
        x, y = points[-1]
        while any(abs(y - other) < 14 for other in ends):
            y += 14
        ends.append(y)
        parts.append(f'<text class="name{index}" x="{x + 8:g}" y="{y + 4:.1f}">{name}</text>')
    return parts


def main(words: Sequence[str] | None = None) -> int:
    """Read stores if they are named, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--naive", type=Path, help="store of the naive run")
    parser.add_argument("--keel", type=Path, help="store of the run with Keel's defaults")
    options = parser.parse_args(words)
    data_file = FOLDER / "retention.json"
    if options.naive and options.keel:
        data: dict[str, Any] = {
            "Trained naively": scores_of(options.naive),
            "With Keel": scores_of(options.keel),
        }
        data_file.write_text(json.dumps(data, indent=1) + "\n")
    (FOLDER / "retention.svg").write_text(draw(json.loads(data_file.read_text())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
