"""Rewards of other distributions by entry point, and what can be said of any reward."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from align.config.campaign import RewardConfig, SuiteConfig
from align.gate.suites.demands import metric_range
from rewards.isolation.levels import Level
from rewards.registry import REWARDS, describe, facts_of, find_reward, known_rewards, load_reward
from rewards.rubric import build_rubric
from rewards.trial.canaries import asks_a_model
from rollouts.errors import UserError
from rollouts.types import Completion, Prompt, RolloutGroup
from tests.patience import patient


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a distribution on the path: its name, its entry points and its one module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(distribution: str, points: str, source: str = "") -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(f"[keel.rewards]\n{points}\n")

    return put


POLITE = (
    'def polite(completions, target, word: str = "please"):\n'
    '    """Says please.\n\n    At length."""\n'
    "    return [float(word in text) for text in completions]\n"
)


def test_a_reward_of_another_distribution_is_found_by_name(install) -> None:
    install("keelt-polite", "politeness = keelt_polite:polite", POLITE)
    function = load_reward("politeness", {"word": "bitte"})
    assert function(completions=["bitte", "no"], target=[0, 0], word="bitte") == [1.0, 0.0]
    info = describe("politeness")
    assert info.origin == "keelt-polite 1.2 (keelt_polite:polite)"
    assert (info.summary, info.columns) == ("Says please.", ("target",))
    assert [(o.name, o.type, o.default) for o in info.options] == [("word", "str", "please")]
    with pytest.raises(UserError, match="did you mean 'politeness'"):
        load_reward("politenes")


def test_a_broken_distribution_is_named_and_hides_no_other(install) -> None:
    install("keelt-broken", "broken = keelt_broken:f", "raise RuntimeError('no GPU')")
    install("keelt-polite-too", "polite_too = keelt_polite_too:polite", POLITE)
    with pytest.raises(UserError, match="reward 'broken' of keelt-broken") as caught:
        load_reward("broken", where="rewards.0")
    assert caught.value.cause == "RuntimeError: no GPU"
    listed = {info.name: info for info in known_rewards()}
    assert "no GPU" in str(listed["broken"].problem)
    assert listed["polite_too"].problem is None
    assert load_reward("polite_too") is not None
    assert load_reward("exact_match") is REWARDS["exact_match"].function


SPEC = POLITE + (
    "from rewards.registry import RewardSpec\n"
    "class Kind:\n"
    "    '''Kind, by all measures.'''\n"
    "    def __init__(self, parts, /, all=(), factor=1.0):\n"
    "        self.parts, self.factor = parts, factor\n"
    "    def __call__(self, completions, target):\n"
    "        (part,) = self.parts\n"
    "        values = part.function(completions=completions, target=target, **part.options)\n"
    "        return [self.factor * value for value in values]\n"
    "def members(options): return [(name, {}) for name in options['all']]\n"
    "SHARE = RewardSpec(polite, range=(0.0, 2.0), graded=True)\n"
    "RISKY = RewardSpec(polite, isolation='sandbox', asks_a_model=True)\n"
    "KIND = RewardSpec(Kind, members=members)\n"
)


def test_a_distribution_gives_facts_with_its_reward(install) -> None:
    install(
        "keelt-facts", "polite_share = keelt_facts:SHARE\npolite_risky = keelt_facts:RISKY", SPEC
    )
    assert load_reward("polite_share")(completions=["please"], target=[0]) == [1.0]
    assert describe("polite_share").summary == "Says please."
    share, risky = find_reward("polite_share"), find_reward("polite_risky")
    assert (share.level, risky.level) == ("process", "sandbox")
    spec = SuiteConfig(name="kind", prompts={"source": "x.jsonl"}, metric="polite_share")
    assert metric_range(spec, [RewardConfig(name="polite_share")]) == (0.0, 2.0)
    assert metric_range(spec, [RewardConfig(name="polite_share", weight=2.0)]) is None
    assert metric_range(spec, [RewardConfig(name="polite_risky")]) is None
    assert asks_a_model("polite_risky", {}) and not asks_a_model("polite_share", {})
    assert asks_a_model("agreement", {"of": ["length", "polite_risky"]})


def test_a_distribution_gives_a_reward_that_is_made_of_others(install) -> None:
    install("keelt-made", "kind = keelt_made:KIND\npolite_part = keelt_made:SHARE", SPEC)
    function = load_reward("kind", {"all": ["polite_part"], "factor": 3.0})
    assert function(completions=["please", ""], target=[0, 0]) == [3.0, 0.0]
    assert [option.name for option in describe("kind").options] == ["all", "factor"]
    with pytest.raises(UserError, match="does not take the option 'parts'"):
        load_reward("kind", {"parts": []})


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ("isolation='cell'", "isolation 'cell' is not one of inline, process, sandbox"),
        ("range=(1.0, 0.0)", "range goes from the smallest to the largest value, got (1.0, 0.0)"),
        ("range=(0.0, float('inf'))", "got (0.0, inf)"),
        ("unknown=3", "unexpected keyword argument 'unknown'"),
    ],
)
def test_facts_that_cannot_be_are_one_message(install, facts: str, cause: str) -> None:
    name = f"keelt-odd-{abs(hash(facts))}"
    odd = f"{SPEC}ODD = RewardSpec(polite, {facts})\n"
    install(name, f"odd = {name.replace('-', '_')}:ODD", odd)
    with pytest.raises(UserError, match="reward 'odd' of keelt-odd") as caught:
        load_reward("odd", where="rewards.0")
    assert cause in (caught.value.cause or "") and caught.value.where == "rewards.0"
    assert facts_of("odd") is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [(3, {})]", "'made' is made of 3, which is no name of a reward"),
        ("return [('length',)]", "'made' cannot use the options"),
        ("return None", "'made' cannot use the options"),
        ("return options['absent']", "KeyError: 'absent'"),
    ],
)
def test_members_that_cannot_be_are_one_message(install, body: str, message: str) -> None:
    name = f"keelt-members-{len(body)}"
    source = f"{SPEC}def odd(options): {body}\nMADE = RewardSpec(Kind, members=odd)\n"
    install(name, f"made = {name.replace('-', '_')}:MADE", source)
    made, options = find_reward("made"), {"all": ["length"]}
    with pytest.raises(UserError) as caught:
        made.members(options, "rewards.0")
    assert message in str(caught.value) and caught.value.where == "rewards.0"
    assert made.level_with(options) == "process"


TRACES = (
    "import os\n"
    "SEEN = 'KEELT_SECRET' in os.environ\n"
    "def f(completions):\n"
    "    return [0.0 for _ in completions]\n"
    "f.__doc__ = f'{os.getpid()} {SEEN}'\n"
)


def test_facts_of_a_distribution_come_from_a_process_without_secrets(
    install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("keelt-traces", "traces = keelt_traces:f", TRACES)
    monkeypatch.setenv("KEELT_SECRET", "hush")
    assert facts_of("traces") is not None
    assert find_reward("traces").level == "process"
    pid, seen = describe("traces").doc.split()
    assert (int(pid) != os.getpid(), seen) == (True, "False")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert "traces" in {info.name for info in known_rewards()}
    assert "keelt_traces" not in sys.modules, "it is imported by workers alone"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import time; time.sleep(600)", "no answer within"),
        ("import os; os._exit(3)", "exited with code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import sys; sys.exit(4)", "SystemExit: 4"),
    ],
)
def test_a_distribution_that_does_not_answer_is_one_message(
    install, monkeypatch: pytest.MonkeyPatch, source: str, cause: str
) -> None:
    if "sleep" in source:
        monkeypatch.setattr("rewards.isolation.process.START_S", patient(3.0))
    name = f"keelt-dead-{len(source)}"
    install(name, f"dead = {name.replace('-', '_')}:f", source)
    with pytest.raises(UserError, match="'dead'") as caught:
        find_reward("dead").level_with({}, "rewards.0")
    assert cause in (caught.value.cause or "") and caught.value.where == "rewards.0"
    assert facts_of("dead") is None


def agreement(*members: str) -> Level:
    return find_reward("agreement").level_with({"of": list(members)})


def test_the_strictest_member_decides_the_isolation_of_an_agreement(install) -> None:
    assert agreement("length", "exact_match") == "inline"
    assert agreement("length", "regex_match") == "process"
    assert agreement("mine.py:f", "length") == "process"
    assert agreement("regex_match", "code_tests") == "sandbox"
    inner = {"name": "agreement", "options": {"of": ["code_tests", "length"]}}
    assert find_reward("agreement").level_with({"of": ["length", inner]}) == "sandbox"
    assert find_reward("agreement").level_with({"of": 3}) == "inline", (
        "loading it says what is wrong"
    )
    install("keelt-strict", "risk = keelt_strict:RISKY\nkind_of = keelt_strict:KIND", SPEC)
    assert find_reward("kind_of").level_with({"all": ["length", "code_tests"]}) == "sandbox"
    with pytest.raises(UserError, match="'llm_judge' in it asks a model"):
        agreement("code_tests", "llm_judge")


def test_an_agreement_runs_where_its_strictest_member_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import os\ndef pid(completions): return [float(os.getpid()) for _ in completions]\n"
    )
    reward = RewardConfig(name="agreement", options={"of": ["mine.py:pid", "mine.py:pid"]})
    rubric = build_rubric([reward])
    try:
        assert rubric.isolation_lines()[0].startswith("reward agreement: process")
        group = RolloutGroup(
            prompt=Prompt(id="p", text="?", messages=None, columns={}),
            prompt_ids=(1,),
            completions_G=(
                Completion(token_ids=(1,), logprobs_T=(0.0,), text="a", finish_reason="stop"),
            ),
            policy="p",
            seed=0,
        )
        (scored,) = rubric.score([group])
        assert scored.scores_G[0].value not in (None, float(os.getpid()))
    finally:
        rubric.close()


def test_nothing_of_a_campaign_is_imported_to_learn_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("raise RuntimeError('imported')")
    assert facts_of("mine.py:f") is None and facts_of("nowhere") is None
    assert find_reward("mine.py:f").level == "process"
    facts = facts_of("code_tests")
    assert facts is not None and (facts.range, facts.isolation) == ((0.0, 1.0), "sandbox")


def test_two_rewards_with_one_name_are_refused_with_both_origins(install) -> None:
    install("keelt-one", "twice = keelt_one:polite", POLITE)
    install("keelt-two", "twice = keelt_two:polite\nlength = keelt_two:polite", POLITE)
    with pytest.raises(UserError, match="2 rewards are named 'twice'") as caught:
        load_reward("twice")
    assert "keelt-one 1.2" in str(caught.value) and "keelt-two 1.2" in str(caught.value)
    with pytest.raises(UserError, match="2 rewards are named 'length'") as caught:
        load_reward("length")
    assert "keel; keelt-two 1.2 (keelt_two:polite)" in str(caught.value)
    listed = {info.name: info for info in known_rewards()}
    assert listed["twice"].problem is not None and listed["length"].problem is not None
    assert "keelt-two" in listed["length"].origin


@pytest.mark.parametrize("name", REWARDS)
def test_every_shipped_reward_is_described(name: str) -> None:
    info = describe(name)
    assert info.origin == "keel"
    assert info.summary
    # What a dataclass writes for itself where nobody did.
    assert not info.doc.startswith(f"{REWARDS[name].function.__name__}(")
    assert all(option.type != "Any" for option in info.options)


def test_options_and_columns_are_told_apart() -> None:
    regex = describe("regex_match")
    assert [(o.name, o.type, o.default) for o in regex.options] == [
        ("pattern", "str | None", None),
        ("full", "bool", False),
    ]
    assert describe("ifeval").columns == ("instruction_id_list", "kwargs")
    judge = describe("pairwise_judge")
    assert judge.columns == ("reference",) and judge.asynchronous
    options = {o.name: o for o in judge.options}
    assert "cache" not in options and "pace" not in options
    assert options["extra_body"].default == {} and options["deadline_s"].default == 60.0
    assert describe("agreement").anything


def test_a_file_and_a_class_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "class C:\n    '''Counts.'''\n    def __init__(self, step: int, base=2): pass\n"
        "    def __call__(self, completions, answer): return []\n"
        "def one(prompt: str, completion: str, answer: str, k: int = 3) -> float: return 1.0\n"
    )
    info = describe("mine.py:C")
    assert (info.origin, info.summary, info.columns) == ("mine.py", "Counts.", ("answer",))
    assert [(o.name, o.type, o.required) for o in info.options] == [
        ("step", "int", True),
        ("base", "Any", False),
    ]
    one = describe("mine.py:one")
    assert one.columns == ("answer",)
    assert [o.name for o in one.options] == ["k"]
    with pytest.raises(UserError, match="no 'two' in it"):
        describe("mine.py:two")
