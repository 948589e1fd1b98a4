"""One round whose candidate a command trains: run it, check what it wrote, then ask the gate.

run_command -> files_of -> store.publish -> engine.sync -> measure -> judge -> ledger.commit_round
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shutil import copyfile, rmtree

from align.algorithms.external import PYTHON, External
from align.learner.folder.folder import CODE
from align.learner.penalty import no_penalties
from align.round.external.output import ADAPTER_FILES, files_of
from align.round.external.process import Command, run_command
from align.round.meters import probe
from align.round.plan import RoundOutcome, RoundPlan
from align.round.round import commit, gated
from align.round.session import Parts
from align.round.times.clock import phase
from align.store.run_folder import RunFolder
from rollouts.types import Prompt, SnapshotId


def run_external_round(plan: RoundPlan, parts: Parts) -> RoundOutcome:
    """Let the round's command train a candidate, and put it before the gate.

    Raises:
        RunError: the command failed, took too long, or wrote no model that can replace the policy.
        ParityError: the engines did not take the candidate's weights.
    """
    output = train(plan, parts)
    candidate = publish(plan, parts, output)
    outcome = gated(plan, parts, candidate)
    parts.remember(plan, candidate)
    commit(plan, parts, outcome)
    return outcome


def train(plan: RoundPlan, parts: Parts) -> Path:
    """Run the command; returns the folder that it wrote into."""
    algorithm = plan.spec.algorithm
    assert isinstance(algorithm, External), "the kind of the round"
    folder = RunFolder(parts.run_folder(plan).path.absolute())
    output, prompts, log = folder.output, folder.prompts, folder.command_log
    output.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(map(_line, parts.inputs.prompts[plan.spec.name])), "utf-8")
    places = {
        "parent": str(parts.folder_of(plan.parent).absolute()),
        "base": str(parts.folder_of(parts.base).absolute()),
        "round": str(folder.path.parent),
        "output": str(output),
        "prompts": str(prompts),
        "seed": str(plan.seed),
    }
    words = algorithm.filled(places)
    command = Command(
        words=[_program(words[0], parts.config.home), *words[1:]],
        folder=parts.config.home.absolute(),
        variables={f"KEEL_{name.upper()}": value for name, value in places.items()},
        granted=algorithm.environment,
        log=log,
        deadline_s=algorithm.deadline_s,
    )
    parts.observer.note(f"{plan.spec.name}: running {words[0]}; it prints into {log}")
    with phase("command"):
        run_command(command, parts.beat)
    return output


@phase("publishing")
def publish(plan: RoundPlan, parts: Parts, output: Path) -> SnapshotId:
    """Make what the command wrote a snapshot, and prove that the engines hold it.

    The tokenizer and the code of a model stay the campaign's.
    """
    policy, base = parts.config.policy, parts.folder_of(parts.base)
    files = files_of(output, base, policy, parts.config.rollouts.backend)

    def write(folder: Path) -> None:
        for file in files:
            copyfile(file, folder / file.name)
        if policy.snapshot_kind == "adapter":
            _forget_path(folder / ADAPTER_FILES[0])
        parts.inputs.encoder.tokenizer.save_pretrained(folder)
        for file in base.glob(f"*{CODE}") if policy.trust_remote_code else ():
            (folder / file.name).unlink(missing_ok=True)
            copyfile(file, folder / file.name)

    snapshot = parts.store.publish(write, parts.provenance(plan), code=policy.trust_remote_code)
    parts.ledger.record_snapshot(snapshot)
    rmtree(output)
    # The learner takes no step; it begins so that it can be asked for the probe's logprobs.
    with phase("weight sync"):
        parts.learner.begin(
            plan.spec, plan.references, num_steps=1, seed=plan.seed, penalties=no_penalties
        )
        parts.learner.load(snapshot.id)
        parts.engine.sync(parts.learner.weights(f"{plan.run}/external"))
    prompts = plan.mixture.meter_prompts(parts.config.rollouts.probe_sequences)
    probe(parts, prompts, plan.spec.sampling.max_tokens)
    return snapshot.id


def _line(prompt: Prompt) -> str:
    """Write a prompt as a row of the file that it may have come from."""
    content = prompt.text if prompt.text is not None else [dict(m) for m in prompt.messages or ()]
    row = {**prompt.columns, "prompt": content}
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _program(word: str, home: Path) -> str:
    """Return the program; ``python`` is this one, and a path starts from the campaign's folder."""
    if word in PYTHON:
        return sys.executable
    return str((home / word).absolute()) if "/" in word else word


def _forget_path(config: Path) -> None:
    """Take the base's path on this machine out of an adapter's config."""
    content = json.loads(config.read_text("utf-8")) | {"base_model_name_or_path": None}
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
