"""One round whose candidate a command trains: run it, check what it wrote, then ask the gate.

run_command -> files_of -> snapshots.publish -> engine.sync -> measure -> judge -> ledger.commit_round
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shutil import rmtree

from align.algorithms.external import PYTHON, External
from align.learner.folder.folder import ADAPTER_BASE
from align.round.external.output import ADAPTER_FILES, files_of
from align.round.external.process import Command, run_command
from align.round.plan import RoundOutcome, RoundPlan
from align.round.records.replay import remember
from align.round.round import commit, judge, prove
from align.round.session import Session
from align.round.times.clock import phase
from align.store.run_folder import RunFolder
from align.store.snapshots.contained import copy_contained
from rollouts.types import Prompt, SnapshotId


def run_external_round(plan: RoundPlan, session: Session) -> RoundOutcome:
    """Let the round's command train a candidate, and put it before the gate.

    Raises:
        RunError: the command failed, took too long, or wrote no model that can replace the policy.
        ParityError: the engines did not take the candidate's weights.
    """
    output = train(plan, session)
    candidate = publish(plan, session, output)
    outcome = judge(plan, session, candidate)
    remember(plan, session, candidate)
    commit(plan, session, outcome)
    return outcome


def train(plan: RoundPlan, session: Session) -> Path:
    """Run the command; return the folder that it wrote into."""
    algorithm = plan.spec.algorithm
    assert isinstance(algorithm, External), "the kind of the round"
    folder = RunFolder(session.run_folder(plan).path.absolute())
    output, prompts, log = folder.output, folder.prompts, folder.command_log
    output.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(map(_line, session.inputs.prompts[plan.spec.name])), "utf-8")
    variables = {
        "parent": str(session.folder_of(plan.parent).absolute()),
        "base": str(session.folder_of(session.base).absolute()),
        "round": str(folder.path.parent),
        "output": str(output),
        "prompts": str(prompts),
        "seed": str(plan.seed),
    }
    words, home = algorithm.filled(variables), session.config.home.absolute()
    program = str(home / words[0]) if "/" in words[0] else words[0]
    command = Command(
        words=[sys.executable if words[0] in PYTHON else program, *words[1:]],
        folder=home,
        variables={f"KEEL_{name.upper()}": value for name, value in variables.items()},
        granted=algorithm.environment,
        log=log,
        deadline_s=algorithm.deadline_s,
    )
    session.observer.note(f"{plan.spec.name}: running {words[0]}; it prints into {log}")
    with phase("command"):
        run_command(command, session.claim.beat)
    return output


@phase("publishing")
def publish(plan: RoundPlan, session: Session, output: Path) -> SnapshotId:
    """Make what the command wrote a snapshot, and prove that the engines hold it.

    The tokenizer and the code of a model stay the campaign's.
    """
    policy, base = session.config.policy, session.folder_of(session.base)
    files = files_of(output, base, policy, session.config.rollouts.backend)

    def write(folder: Path) -> None:
        for file in files:
            copy_contained(file, folder / file.name)
        if policy.snapshot_kind == "adapter":  # Its config holds the base's path on this machine.
            config = folder / ADAPTER_FILES[0]
            content = json.loads(config.read_text("utf-8")) | {ADAPTER_BASE: None}
            config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
        session.write_companions(plan, folder)

    snapshot = session.store.snapshots.publish(
        write, session.provenance(plan), code=policy.trust_remote_code
    )
    session.ledger.record_snapshot(snapshot)
    rmtree(output)
    session.hold(snapshot.id, f"{plan.run}/external")
    prove(plan, session)
    return snapshot.id


def _line(prompt: Prompt) -> str:
    """Write a prompt as a row of the file that it may have come from."""
    content = [dict(m) for m in prompt.messages or ()] if prompt.text is None else prompt.text
    row = {**prompt.columns, "prompt": content}
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
