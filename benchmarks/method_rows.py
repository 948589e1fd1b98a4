"""Rows of `benchmarks.methods`: baselines, and every method of retention at one to three strengths.

A method stands alone: its rounds have no replay, so that all rollouts go to the new task, unless it acts on
replayed prompts. Where it is combined with Keel's defaults the row begins with ``ours+``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["sequence", "joint", "alone"]

NO_REPLAY: dict[str, Any] = {"past": 0.0, "general": 0.0}
NO_ANCHORS: dict[str, Any] = {"new": [], "past": [], "general": []}
ADAPTER: dict[str, Any] = {
    "model": "demo://digits",
    "lora": {"rank": 16, "alpha": 32.0, "serve": "adapter"},
}
"""Policy of rows that train an adapter."""
FRESH: dict[str, Any] = {
    "model": "demo://digits",
    "lora": {"rank": 16, "alpha": 32.0, "merge": True},
}
"""Policy of rows that train a fresh adapter in every round, over the merged ones before it."""
ADAPTER_LR = 10.0
"""Learning rate of an adapter, as a multiple of the run's: its factors start from zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """One line of the table: a method at one strength."""

    method: str
    """Registered name of the method, or name of a baseline."""
    strength: str = ""
    """Setting that makes the row stronger or weaker than others of its method, such as ``lambda=1000``."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every round over Keel's defaults."""
    policy: Mapping[str, Any] | None = None
    """Policy; None: the full weights of the tiny model."""
    kind: Kind = "sequence"
    """``joint`` mixes all tasks in one round with the rollouts of all; ``alone`` trains each from the
    base."""
    wave: int = 0
    """Turn of the row: 0 first."""

    @property
    def name(self) -> str:
        """Name of the row in results."""
        return f"{self.method}@{self.strength}" if self.strength else self.method

    @property
    def lr_factor(self) -> float:
        """Learning rate as a multiple of the run's."""
        return 1.0 if self.policy is None else ADAPTER_LR


BASELINES = (
    MethodRow(method="naive", defaults={"replay": NO_REPLAY, "anchors": NO_ANCHORS}),
    *(
        MethodRow(
            method="kl_parent",
            strength=f"beta={beta:g}",
            defaults={
                "replay": NO_REPLAY,
                "anchors": {**NO_ANCHORS, "new": [{"to": "parent", "beta": beta}]},
            },
            wave=int(beta != 0.1),
        )
        for beta in (0.1, 0.03, 0.3)
    ),
    *(
        MethodRow(
            method="replay",
            strength=f"past={past:g}",
            defaults={
                "replay": {"past": past, "general": 0.0, "rewards": True, "samples_per_prompt": 8},
                "anchors": NO_ANCHORS,
            },
            wave=int(past != 0.15),
        )
        for past in (0.15, 0.05, 0.25)
    ),
    MethodRow(method="joint", kind="joint", defaults={"replay": NO_REPLAY, "anchors": NO_ANCHORS}),
    MethodRow(method="alone", kind="alone", defaults={"replay": NO_REPLAY, "anchors": NO_ANCHORS}),
)
"""What methods are measured against; ``alone`` and ``joint`` are references, not ways to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Strengths at which a method is run, with no replay and no other method."""

    setting: str
    """Setting of the method that is varied."""
    values: tuple[float, ...]
    """Its values, the usual one first."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the method."""
    policy: Mapping[str, Any] | None = None
    """Policy, for methods that need an adapter."""

    def rows(self, method: str) -> Iterator[MethodRow]:
        """Yield a row for each strength, and one of the usual strength together with the defaults."""
        for number, value in enumerate(self.values):
            settings = {"name": method, self.setting: value, **self.others}
            strength = f"{self.setting}={value:g}"
            yield MethodRow(
                method=method,
                strength=strength,
                defaults={"replay": NO_REPLAY, "retention": [settings]},
                policy=self.policy,
                wave=int(number > 0),
            )
            if number == 0:
                yield MethodRow(
                    method=f"ours+{method}",
                    strength=strength,
                    defaults={"retention": ["kl_anchors", settings]},
                    policy=self.policy,
                    wave=2,
                )


SWEEPS: dict[str, Sweep] = {
    "ewc": Sweep(setting="lambda", values=(1000.0, 100.0, 10_000.0)),
    "mas": Sweep(setting="strength", values=(1.0, 0.1, 10.0)),
    # The squared way of a weight through a round is about 1e-6 here; at 10 nothing is learnt any more.
    "si": Sweep(setting="strength", values=(0.1, 0.01, 1.0), others={"xi": 1e-6}),
    "l2_sp": Sweep(setting="alpha", values=(1.0, 0.01, 10.0)),
    "cpo_mask": Sweep(setting="strength", values=(10.0, 1.0, 100.0)),
    "ogd": Sweep(setting="samples", values=(16, 64), others={"most": 256}),
    "gpm": Sweep(setting="energy", values=(0.9, 0.5, 0.97)),
    "hft": Sweep(setting="share", values=(0.5, 0.75, 0.9)),
    "mofo": Sweep(setting="share", values=(0.15, 0.05, 0.5)),
    "migu": Sweep(setting="masked", values=(0.7, 0.5, 0.9)),
    "trust_region": Sweep(setting="kl", values=(5e-4, 5e-5, 5e-3)),
    "o_lora": Sweep(setting="strength", values=(0.5, 0.05, 5.0), policy=FRESH),
    "n_lora": Sweep(setting="strength", values=(1e-4, 1e-5, 1e-3), policy=FRESH),
    "inflora": Sweep(setting="energy", values=(0.9, 0.5, 0.97), policy=FRESH),
}
"""Methods that need no replayed prompts; a new one is a line here, or rows below if it needs them."""

REPLAYING = (
    MethodRow(method="kl_anchors"),
    *(
        MethodRow(
            method="kl_anchors",
            strength=f"past={past:g}",
            defaults={"replay": {"past": past}},
            wave=1,
        )
        for past in (0.02, 0.05, 0.15)
    ),
    *(
        MethodRow(
            method="broad",
            strength=f"share={share:g}/beta={beta:g}",
            defaults={
                "replay": {"general": share, "general_prompts": "demo://broad"},
                "anchors": {"general": [{"to": "base", "beta": beta}]},
            },
            wave=2,
        )
        for share, beta in ((0.05, 1.0), (0.1, 1.0), (0.2, 3.0))
    ),
    MethodRow(
        method="broad",
        strength="stored/beta=1",
        defaults={
            "replay": {
                "general": 0.3,
                "general_prompts": "demo://broad",
                "general_answers": "stored",
                "buffer": 1024,
            },
            "anchors": {"general": [{"to": "base", "beta": 1.0, "estimator": "forward"}]},
        },
        wave=2,
    ),
    MethodRow(
        method="kl_follow",
        strength="share=0.05",
        defaults={
            "replay": NO_REPLAY,
            "anchors": {
                **NO_ANCHORS,
                "new": [{"to": "parent", "beta": 0.1, "follow": {"every": 1, "share": 0.05}}],
            },
        },
        wave=1,
    ),
    MethodRow(
        method="kl_follow",
        strength="stagnation=10",
        defaults={
            "replay": NO_REPLAY,
            "anchors": {
                **NO_ANCHORS,
                "new": [{"to": "parent", "beta": 0.1, "follow": {"after_stagnation": 10}}],
            },
        },
        wave=2,
    ),
    MethodRow(method="agem", defaults={"retention": ["kl_anchors", "agem"]}),
    MethodRow(
        method="agem",
        strength="past=0.15",
        defaults={"replay": {"past": 0.15}, "retention": ["kl_anchors", "agem"]},
        wave=1,
    ),
)
"""Methods that act on replayed prompts; ``kl_anchors`` without a strength is Keel's defaults."""

REPLAYS = (
    *(
        MethodRow(method=f"draw_{draw}", defaults={"replay": {"draw": draw}}, wave=1)
        for draw in ("reservoir", "mastery", "age")
    ),
    *(
        MethodRow(
            method="answers",
            strength=f"weight={weight:g}",
            defaults={
                "replay": {**NO_REPLAY, "answers": {"weight": weight}},
                "anchors": NO_ANCHORS,
            },
            wave=1,
        )
        for weight in (1.0, 0.1)
    ),
    MethodRow(method="ours+answers", defaults={"replay": {"answers": {}}}, wave=2),
    MethodRow(
        method="synthesis",
        defaults={"replay": {"synthesis": {"shots": 1, "separator": " ", "end": "="}}},
        wave=2,
    ),
)
"""Draws of past prompts under Keel's defaults, and what the policy itself answered or wrote. Answers, 256
for each earlier round, and prompts, 128, are sampled once as a round begins, on top of the other rows'
rollouts."""

SHARED_CRITIC: dict[str, Any] = {"critic": {"model": "shared"}}
PREFERENCE = (
    *(
        MethodRow(
            method=str(algorithm["name"]),
            strength=strength,
            defaults={"algorithm": algorithm, "replay": NO_REPLAY, "anchors": NO_ANCHORS},
            wave=1,
        )
        for strength, algorithm in (
            ("", {"name": "dpo"}),
            ("gamma=2", {"name": "fpo", "gamma": 2.0}),
            ("", {"name": "ppo", **SHARED_CRITIC}),
            ("keep=0.1", {"name": "cppo", "keep": 0.1, **SHARED_CRITIC}),
            ("keep=1", {"name": "cppo", "keep": 1.0, **SHARED_CRITIC}),
        )
    ),
    *(
        MethodRow(
            method="copr",
            strength=f"multiplier={multiplier:g}",
            defaults={
                "algorithm": "copr",
                "replay": NO_REPLAY,
                "retention": [{"name": "copr", "multiplier": multiplier}],
            },
            wave=1,
        )
        for multiplier in (1.0, 5.0)
    ),
)
"""Methods that are algorithms or go with one; ``dpo`` and ``ppo`` are what they are compared with."""

ADAPTERS = (
    MethodRow(
        method="naive+lora",
        defaults={"replay": NO_REPLAY, "anchors": NO_ANCHORS},
        policy=ADAPTER,
    ),
    MethodRow(method="kl_anchors+lora", policy=ADAPTER, wave=1),
    *(
        MethodRow(
            method="bank",
            strength=f"keys={keys}",
            defaults={"replay": NO_REPLAY, "anchors": NO_ANCHORS},
            policy={**ADAPTER, "bank": {"keys": keys, "top_k": min(keys, 2)}},
            wave=int(keys > 1),
        )
        for keys in (1, 4)
    ),
    MethodRow(
        method="naive+merge",
        defaults={"replay": NO_REPLAY, "anchors": NO_ANCHORS},
        policy=FRESH,
        wave=1,
    ),
    MethodRow(method="kl_anchors+merge", policy=FRESH, wave=1),
)

MERGES: tuple[tuple[str, Mapping[str, Any], int], ...] = (
    ("shares=1,.8,.6,.4", {"name": "linear"}, 0),
    ("share=0.7", {"name": "linear", "shares": 0.7}, 1),
    ("share=0.5", {"name": "linear", "shares": 0.5}, 1),
    ("share=0.5", {"name": "slerp", "share": 0.5}, 0),
    ("share=0.7", {"name": "slerp", "share": 0.7}, 1),
    ("share=0.6", {"name": "warp", "runs": 2, "share": 0.6}, 0),
    ("share=0.3", {"name": "warp", "runs": 2, "share": 0.3}, 1),
    ("density=0.2", {"name": "ties", "density": 0.2}, 0),
    ("density=0.5", {"name": "ties", "density": 0.5}, 1),
    ("density=0.9", {"name": "dare", "density": 0.9}, 0),
    ("density=0.5", {"name": "dare", "density": 0.5}, 1),
    ("share=0.6", {"name": "hma", "blocks": 2, "share": 0.6}, 0),
    ("keep=0.1", {"name": "lifealign", "keep": 0.1}, 0),
    ("keep=0.5", {"name": "lifealign", "keep": 0.5}, 1),
)
"""Strength, settings and turn of each merger's rows."""
HALF = {"sampling": {"prompts_per_step": 8}}
"""Half of a step's rollouts, for rounds that are trained twice."""


def _merged() -> Iterator[MethodRow]:
    """Yield every merger after training without any retention, then its first row over Keel's defaults."""
    for strength, merge, wave in MERGES:
        shape: Mapping[str, Any] = HALF if merge["name"] == "warp" else {}
        alone = {"replay": NO_REPLAY, "anchors": NO_ANCHORS}
        yield MethodRow(
            method=merge["name"],
            strength=strength,
            defaults={**alone, **shape, "merge": merge},
            wave=wave,
        )
        if not wave:
            yield MethodRow(
                method=f"ours+{merge['name']}",
                strength=strength,
                defaults={**shape, "merge": merge},
                wave=2,
            )


_SWEPT = tuple(row for method, sweep in SWEEPS.items() for row in sweep.rows(method))
ROWS: dict[str, MethodRow] = {
    row.name: row
    for row in sorted(
        (*BASELINES, *REPLAYING, *REPLAYS, *_SWEPT, *PREFERENCE, *_merged(), *ADAPTERS),
        key=lambda row: row.method.startswith("ours+"),
    )
}
"""Every row by name."""
DEFAULT_ROW = "kl_anchors"
"""Row of Keel's defaults."""
