"""Worked examples of CONTRIBUTING.md, run as they stand there, each of a file or two and a line or two."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from align.algorithms import ALGORITHMS
from align.algorithms.base import PolicyInputs
from align.algorithms.policy_gradient import dr_grpo
from align.algorithms.rows import Totals
from align.campaign import run_campaign
from align.config.campaign import RewardConfig, SuiteConfig
from align.config.file import load_campaign
from align.config.retention import methods
from align.config.retention.registry import RETENTION
from align.data.demo import BASE_MODEL
from align.gate.suites.demands import metric_range
from align.retention import METHODS
from align.retention.regularizers import l2_sp
from launch.cli import app
from launch.cluster.engines import engine_spec
from launch.doctor import check_backend
from rewards.library import layout
from rewards.registry import REWARDS, UNIT, RewardSpec, load_reward
from rewards.rubric import build_rubric
from rollouts.engines import ENGINES, transformers
from rollouts.engines.protocol import SampleRequest, ScoreRequest
from rollouts.errors import UserError
from rollouts.types import Sampling
from tests.unit.campaigns import Starter, Watcher, campaign, rounds
from tests.unit.engine_parity import CASES, check_parity, save_models

TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()


def examples(heading: str) -> list[str]:
    """Return the Python blocks of a section."""
    section = TEXT.split(f"### {heading}\n")[1].split("\n##")[0]
    blocks: list[str] = re.findall(r"^ *```python\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    return [dedent(block) for block in blocks]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Runs a block as a module that already has the imports of the file it belongs to."""

    def run(name: str, source: str, namespace: dict[str, Any]) -> ModuleType:
        module = ModuleType(name)
        module.__dict__.update(namespace, __name__=name)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look a class's module up there
        code = f"from __future__ import annotations\n{source}"
        exec(compile(code, name, "exec", dont_inherit=True), module.__dict__)
        return module

    return run


def entries(line: str, **names: Any) -> dict[str, Any]:
    """Evaluate the line of a table."""
    table: dict[str, Any] = eval(f"{{{line}}}", names)
    return table


def steps_of(folder: Path, **changes: Any) -> list[dict[str, float]]:
    """Run a round of two steps; return the metrics of its steps."""
    config = campaign(folder, rounds=rounds({"steps": 2, **changes}))
    evidence = run_campaign(config, start_engine=Starter(), observer=Watcher())
    (record,) = evidence.ledger.rounds()
    assert record.state == "accepted"
    return [*evidence.store.paths.round(record.index, record.name).steps().values()]


def test_the_algorithm_is_a_class_and_a_line(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, line = examples("A new algorithm")
    module = run("example_reinforce", source, vars(dr_grpo))
    (entry,) = entries(line, Reinforce=module.Reinforce).items()
    monkeypatch.setitem(ALGORITHMS, *entry)

    def loss(*tokens: int) -> float:
        """Loss of some of three tokens, of four in the step: -(1 * -1 - 1 * -2 + 3 * -3) / 4 in all."""
        logprobs_N = torch.tensor([-1.0, -2.0, -3.0])[list(tokens)]
        inputs = PolicyInputs(
            logprobs_N=logprobs_N,
            start_logprobs_N=logprobs_N,
            advantages_N=torch.tensor([1.0, -1.0, 10.0])[list(tokens)],
            rows_N=torch.zeros(len(tokens), dtype=torch.long),
        )
        value, _ = module.Reinforce().loss(inputs, totals)
        return float(value)

    totals = Totals(tokens=4, sequences=2, units=2)
    assert loss(0, 1, 2) == pytest.approx(2.0)
    assert loss(0, 1, 2) == pytest.approx(loss(0) + loss(1, 2)), "any split gives the same"
    steps = steps_of(tmp_path, algorithm={"name": "reinforce", "bound": 1.0})
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)


def test_the_retention_method_is_a_class_its_settings_and_two_lines(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    method, line, settings, settings_line = examples("A new retention method")
    config = run("example_settings", settings, vars(methods)).L1SPConfig
    module = run(
        "align.retention.regularizers.l1_sp", method, {**vars(l2_sp), "L1SPConfig": config}
    )
    monkeypatch.setitem(METHODS, *next(iter(entries(line).items())))
    monkeypatch.setitem(RETENTION, *next(iter(entries(settings_line, L1SPConfig=config).items())))

    start, weight = torch.tensor([0.0, 0.0, 4.0]), torch.tensor([1.0, -2.0, 3.0])
    view: Any = SimpleNamespace(
        references=SimpleNamespace(parent="parent"), weights_of={"parent": {"w": start}}.get
    )
    l1_sp = module.L1SP(config(alpha=0.5), view)
    l1_sp.before_round()
    (term,) = l1_sp.parameter_penalty({"w": weight.requires_grad_()})
    term.backward()
    assert float(term.detach()) == pytest.approx(0.5 * (1 + 2 + 1))
    assert weight.grad is not None and weight.grad.tolist() == [0.5, -0.5, -0.5]

    free = steps_of(tmp_path / "free", retention=["kl_anchors"])
    tied = steps_of(tmp_path / "tied", retention=["kl_anchors", {"name": "l1_sp", "alpha": 10.0}])
    assert "retention/l1_sp" not in free[1]
    assert tied[0]["retention/l1_sp"] == 0.0, "the round starts at its parent"
    assert tied[1]["retention/l1_sp"] > 0.0


def test_the_reward_takes_a_function_a_line_and_a_test(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, line, test = examples("A new reward")
    module = run("example_layout", function, vars(layout))
    (entry,) = entries(
        line, layout=SimpleNamespace(brackets=module.brackets), RewardSpec=RewardSpec, UNIT=UNIT
    ).items()
    monkeypatch.setitem(REWARDS, *entry)
    names = {"load_reward": load_reward, "pytest": pytest, "UserError": UserError}
    run("example_test", test, names).test_brackets()
    config = RewardConfig(name="brackets")
    assert build_rubric([config]).weights == {"brackets": 1.0}
    suite = SuiteConfig(name="closed", prompts={"source": "x.jsonl"}, metric="brackets")
    assert metric_range(suite, [config]) == UNIT
    shown = CliRunner().invoke(app, ["reward", "show", "brackets"])
    assert shown.exit_code == 0 and "opening: str = '('" in shown.output
    assert "inline" in shown.output


@pytest.fixture
def engines(run, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Returns the module of the worked engine, which is a backend for the length of a test."""
    source, line = examples("A new engine")
    module: ModuleType = run("example_uncached", source, vars(transformers))
    (entry,) = entries(line, UncachedConfig=module.UncachedConfig).items()
    monkeypatch.setitem(ENGINES, *entry)
    return module


@pytest.mark.parametrize("case", ["tied", "lora_merged"])
def test_the_engine_agrees_with_the_learner_after_every_sync(
    engines: ModuleType, tmp_path: Path, case: str
) -> None:
    name, lora = CASES[case]
    model = save_models(tmp_path / "models", BASE_MODEL)[name]
    engine = engines.UncachedConfig(model=str(model), device="cpu").start()
    check_parity(engine, model, lora, 0.7, tmp_path)


def test_the_engine_is_chosen_in_a_campaign_file_and_keeps_the_contract(
    engines: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(
        "name: tiny\nstore: store\npolicy: {model: demo://digits}\n"
        "rollouts: {backend: uncached}\n"
        "rounds: [{name: rev, prompts: demo://rev, rewards: [exact_match], steps: 1}]\n"
    )
    spec = engine_spec(load_campaign(file).config, BASE_MODEL, 64)
    assert type(spec) is engines.UncachedConfig
    assert check_backend("uncached").status == "ok"
    engine = spec.start()
    mates = [
        SampleRequest(
            id=str(i), prompt_ids=(3 + i, 4), n=2, sampling=Sampling(max_tokens=5), seed=i
        )
        for i in range(3)
    ]
    together = engine.generate(mates)
    assert [engine.generate([request])[0] for request in mates] == together
    (empty,) = engine.generate([replace(mates[0], prompt_ids=())])
    assert [completion.finish_reason for completion in empty.completions] == ["failed"] * 2
    first = together[0].completions[0]
    scored = engine.score([ScoreRequest(prompt_ids=(3, 4), completion_ids=first.token_ids)])
    assert scored[0] == pytest.approx(first.logprobs_T, abs=1e-5)
    engine.close()
