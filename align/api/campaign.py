"""Campaign in a program or a notebook: built or loaded, checked, run, and read as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from align.api.building import build_campaign
from align.api.running import run_observed
from align.api.stored import StoredCampaign
from align.config import file
from align.report.forecast.check import Checked, check_campaign


class Campaign(StoredCampaign):
    """Campaign that can run, from objects or from a file.

    Args:
        folder: folder that relative paths start from, the store's among them.
        settings: keys of a campaign file. Values are plain, or settings such as `RoundConfig`; a reward or
            a metric may be a function.

    Raises:
        UserError: the settings are not valid; names every problem.

    Attributes:
        notes: remarks on the settings.
    """

    def __init__(self, *, folder: str | Path = ".", **settings: Any) -> None:
        built = build_campaign(settings, Path(folder))
        super().__init__(built.settings)
        self.notes = built.notes

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Load a campaign file; see `load_campaign`."""
        loaded = file.load_campaign(Path(path), overrides)
        campaign = cls.__new__(cls)
        StoredCampaign.__init__(campaign, loaded.config)
        campaign.notes = loaded.notes
        return campaign

    def check(self, *, call_models: bool = False) -> Checked:
        """Check the campaign and everything it reads, and call each reward once; writes nothing.

        Args:
            call_models: also call rewards that ask a model or a server.

        Raises:
            UserError: the first thing that a run would refuse.
        """
        return check_campaign(self.config, models=call_models)

    def run(
        self,
        observer: Any = None,
        *,
        in_process: bool | None = None,
        address: str | None = None,
        insecure_cluster: bool = False,
        wait_s: float = 0.0,
    ) -> Self:
        """Run the rounds that are due; returns the campaign. See `run`."""
        run_observed(
            self.config,
            observer,
            in_process=in_process,
            address=address,
            insecure_cluster=insecure_cluster,
            wait_s=wait_s,
        )
        return self


def load_campaign(path: str | Path, overrides: Sequence[str] = ()) -> Campaign:
    """Load a campaign file.

    Args:
        overrides: ``key.path=value`` as for ``keel run --set``; the value is YAML.

    Raises:
        UserError: there is no such file, or it is not valid; names every problem.
    """
    return Campaign.load(path, overrides)


def run(
    campaign: Campaign,
    observer: Any = None,
    *,
    in_process: bool | None = None,
    address: str | None = None,
    insecure_cluster: bool = False,
    wait_s: float = 0.0,
) -> Campaign:
    """Run the rounds of a campaign that are not finished yet; returns the campaign.

    An interrupt, or an exception that the observer raises, ends the run in order: finished rounds are kept,
    and the next run goes on from there. So does SIGTERM, as a ``SystemExit`` with code 143, unless the
    program handles that signal itself.

    Args:
        observer: function that is called with every event, such as ``print``, or an object with any of the
            methods ``on_note``, ``on_step``, ``on_measuring`` and ``on_verdict``. None: nobody is told.
        in_process: sample in this process instead of on a Ray cluster. None: where the backend can do so, a
            single engine is asked for, and no cluster is named.
        address: Ray cluster to join, as for ``keel run --address``; None: one of its own on this machine.
        insecure_cluster: join a cluster on another host although it asks for no token.
        wait_s: seconds that a cluster's nodes may take to have room.

    Raises:
        UserError: the campaign, its inputs or its store cannot be used; nothing was changed.
        RunError: a round failed; finished rounds stay as they are.
    """
    return campaign.run(
        observer,
        in_process=in_process,
        address=address,
        insecure_cluster=insecure_cluster,
        wait_s=wait_s,
    )
