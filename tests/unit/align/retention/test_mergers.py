"""Every merger on numbers worked by hand, and on the weights of policies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.config.mergers import MERGERS, merger_from
from align.config.mergers.settings import HMAMergeConfig
from align.learner.learner import Learner
from align.learner.model.adapter import merged as plain_weights
from align.learner.references import References
from align.retention.mergers import MERGERS as FUNCTIONS
from align.retention.mergers.base import WeightStack, merger
from align.retention.mergers.hma import BlockFit, Line
from align.retention.mergers.merge import Merge, check_alike
from align.retention.mergers.slerp import arc
from rollouts.errors import RunError
from tests.unit.align.retention.trainings import NEW, learner_of, save_models, weights_of
from tests.unit.tiny import save_model


def vector(*values: float) -> Tensor:
    return torch.tensor(values)


def stack(**given: Any) -> WeightStack:
    """A stack over a base of zeros; the anchor is the newest earlier weights, or the base."""
    base = given.get("base", torch.zeros_like(given["runs"][0]))
    past = given.get("past", ())
    anchor = past[-1] if past else base
    defaults = {
        "name": "model.layers.0.w",
        "base": base,
        "past": past,
        "anchor": anchor,
        "share": 1.0,
    }
    return WeightStack(**{**defaults, **given})


def made(config: dict[str, Any], **given: Any) -> list[float]:
    settings = merger_from(config)
    return merger(settings.name)(stack(**given), settings).flatten().tolist()


def test_every_merger_has_settings_and_a_function() -> None:
    assert MERGERS.keys() == FUNCTIONS.keys()
    assert all(callable(merger(name)) for name in MERGERS)


# by hand


def test_linear() -> None:
    given = {"anchor": vector(1.0, -2.0), "runs": [vector(3.0, 2.0)]}
    assert made({"name": "linear"}, **given, share=0.25) == [1.5, -1.0]
    assert made({"name": "linear"}, **given, share=1.0) == [3.0, 2.0]


def test_an_arc_keeps_the_length_of_changes_at_right_angles() -> None:
    """Half of 90 degrees: both with sin 45 / sin 90."""
    found = arc(vector(2.0, 0.0), vector(0.0, 2.0), 0.5)
    torch.testing.assert_close(found, vector(math.sqrt(2), math.sqrt(2)))
    third = arc(vector(1.0, 0.0), vector(0.0, 1.0), 1 / 3)
    torch.testing.assert_close(third, vector(math.cos(math.pi / 6), math.sin(math.pi / 6)))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [((0.0, 0.0), (2.0, 4.0), (1.0, 2.0)), ((1.0, 1.0), (3.0, 3.0), (2.0, 2.0)),
     ((1.0, 0.0), (-1.0, 0.0), (0.0, 0.0))],
    ids=["zero", "same way", "opposite"],
)  # fmt: skip
def test_an_arc_without_an_angle_is_a_line(start: Any, end: Any, expected: Any) -> None:
    assert arc(vector(*start), vector(*end), 0.5).tolist() == list(expected)


def test_slerp_goes_around_the_base() -> None:
    given = {"base": vector(1.0, 1.0), "anchor": vector(3.0, 1.0), "runs": [vector(1.0, 3.0)]}
    half = 1.0 + math.sqrt(2)
    assert made({"name": "slerp"}, **given, share=0.5) == pytest.approx([half, half])
    assert made({"name": "slerp"}, **given, share=1.0) == [1.0, 3.0]


def test_warp_merges_its_runs_and_goes_part_of_the_way() -> None:
    given = {"past": (vector(1.0, 1.0),), "runs": [vector(2.0, 1.0), vector(1.0, 2.0)]}
    expected = 1.0 + 0.3 * math.sin(math.pi / 4)
    found = made({"name": "warp"}, **given, share=0.3)
    assert found == pytest.approx([expected, expected])


def test_warp_gives_every_run_the_same_weight() -> None:
    """Four changes along one line: their mean, whatever the order."""
    runs = [vector(float(n)) for n in (1, 2, 3, 6)]
    assert made({"name": "warp", "runs": 4}, runs=runs, share=1.0) == pytest.approx([3.0])


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    """Two of four entries stay: 4 and 2 agree at entry 0; 3 and -6 stand alone at entries 1 and 2."""
    past, run = vector(4.0, 3.0, 0.5, 0.1), vector(2.0, -0.1, -6.0, 0.3)
    found = made({"name": "ties", "density": 0.5}, past=(past,), runs=[run])
    assert found == [3.0, 3.0, -6.0, 0.0]
    doubled = made({"name": "ties", "density": 0.5, "scale": 2.0}, past=(past,), runs=[run])
    assert doubled == [6.0, 6.0, -12.0, 0.0]


def test_ties_elects_the_sign_of_the_larger_sum() -> None:
    """The changes from parents are 5 and -2 at entry 0: the sign is +, and -2 takes no part."""
    past, run = vector(5.0, 0.0), vector(3.0, 0.0)
    assert made({"name": "ties", "density": 0.5, "of": "parent"}, past=(past,), runs=[run]) == [
        5.0,
        0.0,
    ]


def test_dare_drops_and_scales_up() -> None:
    """Every entry is 0 or the change over the density; over many entries the mean stays."""
    run = torch.full((4000,), 1.5)
    found = torch.tensor(made({"name": "dare", "density": 0.25}, runs=[run], seed=7))
    assert set(found.tolist()) == {0.0, 6.0}
    assert float(found.mean()) == pytest.approx(1.5, abs=0.15)
    assert made({"name": "dare", "density": 0.25}, runs=[run], seed=7) == found.tolist()
    assert made({"name": "dare", "density": 0.25}, runs=[run], seed=8) != found.tolist()


def test_dare_is_the_trained_weights_in_the_mean() -> None:
    past, run = torch.full((4000,), 1.0), torch.full((4000,), 3.0)
    for of in ("parent", "base"):
        found = torch.tensor(made({"name": "dare", "of": of}, past=(past,), runs=[run], seed=1))
        assert float(found.mean()) == pytest.approx(3.0 if of == "parent" else 2.0, abs=0.15)


def test_dare_leaves_other_draws_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    made({"name": "dare"}, runs=[vector(1.0)])
    assert torch.equal(torch.rand(2), expected)


def test_lifealign_keeps_the_leading_directions() -> None:
    """Singular values 3 and 1: the first holds 0.9 of the squares."""
    run = torch.diag(vector(3.0, 1.0))
    assert made({"name": "lifealign", "energy": 0.9}, runs=[run]) == pytest.approx(
        [3, 0, 0, 0], abs=1e-6
    )
    whole = made({"name": "lifealign", "energy": 0.91}, runs=[run])
    assert whole == pytest.approx([3, 0, 0, 1], abs=1e-6)


def test_lifealign_leaves_little_of_what_earlier_changes_span() -> None:
    """The round before moved along (1, 0): of (2, 3) stay (0.2, 3)."""
    past, run = vector(5.0, 0.0), vector(7.0, 3.0)
    assert made({"name": "lifealign", "keep": 0.1}, past=(past,), runs=[run]) == pytest.approx(
        [5.2, 3.0]
    )
    assert made({"name": "lifealign", "keep": 1.0}, past=(past,), runs=[run]) == [7.0, 3.0]


def test_an_earlier_change_of_zero_spans_nothing() -> None:
    past = (vector(5.0, 0.0), vector(5.0, 0.0))
    found = made({"name": "lifealign", "keep": 0.0}, past=past, runs=[vector(7.0, 3.0)])
    assert found == pytest.approx([5.0, 3.0])
    none = made({"name": "lifealign"}, past=(vector(0.0),), runs=[vector(2.0)])
    assert none == [2.0]
    still = made({"name": "lifealign"}, runs=[torch.zeros(2, 2)])
    assert still == [0.0] * 4


def test_hma_gives_each_block_its_share() -> None:
    config = {"name": "hma", "blocks": 2}
    given = {"anchor": vector(0.0), "runs": [vector(10.0)], "block_shares": (0.2, 0.9), "layers": 4}
    names = [f"model.layers.{n}.w" for n in range(4)] + ["lm_head.weight"]
    found = [made(config, **given, share=0.5, name=name) for name in names]
    assert found == [[2.0], [2.0], [9.0], [9.0], [5.0]]


# weights of policies

SHARES = {"linear": 0.6, "slerp": 0.5, "warp": 0.3, "hma": 0.5}


def merge_of(name: str, runs: tuple[str, ...], past: tuple[str, ...] = (), **given: Any) -> Merge:
    config = merger_from(name)
    anchor = past[-1] if past else "base"
    past = past if config.rounds_read != "none" else ()
    blocks = (0.5,) * config.blocks if isinstance(config, HMAMergeConfig) else ()
    return Merge(
        **{"config": config, "base": "base", "past": past, "anchor": anchor, "runs": runs,
           "share": SHARES.get(name), "block_shares": blocks, "seed": 3, **given}
    )  # fmt: skip


def snapshots(folder: Path, policy: str) -> tuple[Learner, dict[str, Path]]:
    """A base, a round on it, and two runs of the next round."""
    models = save_models(folder)
    learner = learner_of(models, folder, policy)
    for number, (start, name) in enumerate([("base", "one"), ("one", "two"), ("one", "other")], 1):
        torch.manual_seed(0)
        learner.load(start)
        with torch.no_grad():
            for index, parameter in enumerate(learner.policy.parameters()):
                torch.manual_seed(10 * number + index)
                parameter.add_(0.02 * torch.randn_like(parameter))
        models[name] = folder / f"{name}-snapshot"
        learner.save(models[name])
    return learner, models


@pytest.mark.parametrize("name", MERGERS)
@pytest.mark.parametrize("policy", ["full", "lora"])
def test_a_policy_takes_what_a_merger_makes(name: str, policy: str, tmp_path: Path) -> None:
    """Over a base that is a whole model and over one without an adapter; twice with the same bits."""
    learner, models = snapshots(tmp_path, policy)
    runs = ("two", "other") if name == "warp" else ("two",)
    for past in ((), ("one",)):
        merge = merge_of(name, runs if past else runs[:1] * len(runs), past)
        expected = dict(merge.tensors(models.__getitem__))
        merge.load(learner.policy, "base", models.__getitem__)
        folder = tmp_path / f"merged-{len(past)}"
        learner.save(folder)
        saved = {k: t for f in folder.glob("*.safetensors") for k, t in load_file(f).items()}
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[key], expected[key].float()) for key in saved)
        again = dict(merge.tensors(models.__getitem__))
        assert all(torch.equal(again[key], expected[key]) for key in expected)
        assert all(tensor.isfinite().all() for tensor in saved.values())


def test_over_the_base_an_adapters_product_is_scaled(tmp_path: Path) -> None:
    learner, models = snapshots(tmp_path, "lora")

    def plain(beginning: Merge | None, snapshot: str) -> dict[str, Tensor]:
        if beginning is None:
            learner.load(snapshot)
        else:
            beginning.load(learner.policy, "base", models.__getitem__)
        return {n: t.clone() for n, t in plain_weights(learner.policy.model).items()}

    base, end = plain(None, "base"), plain(None, "one")
    for key, tensor in plain(merge_of("linear", ("one",), share=0.25), "").items():
        torch.testing.assert_close(tensor, base[key] + 0.25 * (end[key] - base[key]))


def test_the_learner_begins_with_a_merge_as_with_a_point_of_a_line(tmp_path: Path) -> None:
    from align.config.campaign import RoundSettings
    from align.learner.references import Toward
    from align.retention.methods import RetentionMethods

    learner, _models = snapshots(tmp_path, "full")
    found = []
    for beginning in (
        Toward(snapshot="two", share=0.6),
        merge_of("linear", ("two",), ("one",), share=0.6),
    ):
        references = References(base="base", parent="one", beginning=beginning)
        training = learner.begin(
            RoundSettings(), references, num_steps=0, seed=1, penalties=RetentionMethods()
        )
        found.append(weights_of(training))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


# what cannot be merged


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"one": torch.zeros(2, 2)}, r"'one' is \[2, 2\] instead of \[2\]"),
        ({"other": torch.zeros(2)}, "'one' is absent instead of"),
    ],
    ids=["shape", "name"],
)
def test_snapshots_of_other_tensors_are_refused(
    tensors: dict[str, Tensor], words: str, tmp_path: Path
) -> None:
    folders = {"base": tmp_path / "base", "two": tmp_path / "two"}
    for name, content in {"base": {"one": torch.zeros(2)}, "two": tensors}.items():
        folders[name].mkdir()
        save_file(content, folders[name] / "model.safetensors")
    with pytest.raises(RunError, match=words):
        check_alike([folders["base"], folders["two"]])
    with pytest.raises(RunError, match="cannot be merged"):
        dict(merge_of("linear", ("two",)).tensors(folders.__getitem__))


def test_adapters_of_another_rank_are_refused(tmp_path: Path) -> None:
    from align.config.campaign import LoraConfig, PolicyConfig

    base = save_model(tmp_path / "base")
    for rank in (2, 4):
        policy = PolicyConfig(model="tiny", lora=LoraConfig(rank=rank, alpha=4.0))
        learner = Learner(base, policy, folder_of=lambda _: base, scratch=tmp_path, tolerance=1e9)
        learner.save(tmp_path / f"rank-{rank}")
    folders = [base, tmp_path / "rank-2", tmp_path / "rank-4"]
    with pytest.raises(RunError, match="an adapter of other layers or of another rank"):
        check_alike(folders)
    check_alike(folders[:2])


# the fit of HMA


@pytest.mark.parametrize("policy", ["full", "lora"])
def test_slopes_are_the_derivatives_by_the_shares(policy: str, tmp_path: Path) -> None:
    learner, models = snapshots(tmp_path, policy)
    config = HMAMergeConfig(blocks=2, share=0.5)
    merge = merge_of("hma", ("two",), ("one",), config=config, block_shares=())
    line = Line.read(merge, config, learner.policy, models.__getitem__)

    def at(shares: list[float]) -> tuple[float, list[float]]:
        line.move(learner.policy, shares, 0.5)
        return line.slopes(learner.policy, NEW, learner.ranks)

    _, slopes = at([0.4, 0.6])
    for block, slope in enumerate(slopes):
        sides = []
        for step in (-0.01, 0.01):
            shares = [0.4, 0.6]
            shares[block] += step
            sides.append(at(shares)[0])
        assert slope == pytest.approx((sides[1] - sides[0]) / 0.02, rel=0.02, abs=1e-4)


def test_the_fit_keeps_the_mean_and_lowers_the_loss(tmp_path: Path) -> None:
    learner, models = snapshots(tmp_path, "full")
    config = HMAMergeConfig(blocks=2, share=0.5, steps=6)
    merge = merge_of("hma", ("two",), ("one",), config=config, block_shares=(), share=0.5)
    shares = learner.compute(BlockFit(merge=merge, config=config, rows=NEW))
    assert sum(shares) / 2 == pytest.approx(0.5) and all(0 <= share <= 1 for share in shares)
    line = Line.read(merge, config, learner.policy, models.__getitem__)
    losses = []
    for tried in ([0.5, 0.5], list(shares)):
        line.move(learner.policy, tried, 0.5)
        losses.append(line.slopes(learner.policy, NEW, learner.ranks)[0])
    assert losses[1] < losses[0]
    assert learner.compute(BlockFit(merge=merge, config=config, rows=NEW)) == shares
