"""What a job made of phases is: its type, its phases, and the `State` of a run, which travels from step to step.

The row keeps as much of it as the next attempt needs, to go on from there after an execution that died. What the steps
do with it is in `kernel.phases`, and in `kernel.fan_out` where a phase is divided into items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from lamplighter.kernel.events import short
from lamplighter.kernel.job import InvalidParams, JobType, Params, Report, Run, Unfinished
from lamplighter.kernel.ledger.row import Job, Policy
from lamplighter.kernel.no_database import NoDatabase, has_database
from lamplighter.kernel.settings import Settings

EXECUTION: Final = timedelta(minutes=5)
"""How long one execution may take, in the state machine and in the ledger, where its type does not say otherwise
(REQUIREMENTS B1, B6)."""

NAMED: Final = 3
"""Unknown phases that a refusal names."""
LISTED: Final = 30
"""Phases that it lists."""

SENTENCE_LIMIT: Final = 500
"""Characters of an error in the result; its stack trace is in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a job. `function` serves it, a name below the stack's; `check` raises Permanent if the settings do not
    let it run, before any phase of the run has begun. One with a `division` is divided into items.

    A phase with `applied` changes what is the owner's: it only previews while that answers False (REQUIREMENTS S4).
    One with `database` needs a database: a run without one leaves it out, and refuses to do it alone (P5).
    """

    function: str
    check: Callable[[Settings], object] | None = None
    division: Division | None = None
    applied: Callable[[Settings], bool] | None = None
    database: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a phase is divided into items, each a call of its function: JSON objects that tell one from another."""

    items: Callable[[Settings], Sequence[dict[str, Any]]]
    """What is to be done; some hundred at most, since what becomes of them travels too."""
    concurrency: Callable[[Settings], int]
    """How many are worked at together."""
    gather: Callable[[Sequence[Done]], Report]
    """The phase's report, from what has become of the items so far."""


class PhaseParams(Params):
    """What a run of phases takes."""

    phases: tuple[str, ...] | None = Field(None, min_length=1)
    """Only these, in the catalogue's order; by default those of the job type."""
    dry_run: bool | None = None
    """True previews every phase. None previews those that the settings have not applied, and the others act. False is
    refused where one of them is not applied, unless the setting `allow_override` is true."""


class Turn(BaseModel):
    """One phase of a run: which function serves it, and the part of the progress bar that is its own."""

    name: str
    function: str
    span: tuple[int, int]
    divided: bool = False


class Outcome(BaseModel):
    """What a phase did so far."""

    items: int
    bytes: int
    report: dict[str, Any]


class Item(BaseModel):
    """One item of a phase, and the progress that the run has made when it is begun."""

    value: dict[str, Any]
    progress: int


class Done(BaseModel):
    """What has become of an item: an outcome, an error, or nothing where it was `left` because the run had to stop."""

    item: dict[str, Any]
    outcome: Outcome | None = None
    error: str | None = None
    final: bool = False
    """Whether another attempt would fail, too: the error was Permanent (K14)."""
    left: bool = False


class Caught(BaseModel):
    """An error as Step Functions hands it to the state after it."""

    Error: str
    Cause: str = ""

    @property
    def sentence(self) -> str:
        """`Error: what it says`, from the JSON in which Lambda wraps an exception."""
        text = self.Cause
        with suppress(ValueError, TypeError, KeyError):
            text = json.loads(self.Cause)["errorMessage"]
        first = text.strip().partition("\n")[0]
        return f"{self.Error}: {first}"[:SENTENCE_LIMIT] if first else self.Error


class State(BaseModel):
    """What travels from step to step of an execution."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    attempt: int
    continuation: int
    job_type: str
    left: list[Turn]
    """The phases still to be done; the first is under way."""
    checkpoint: dict[str, Any] | None = None
    """Where the phase under way goes on."""
    outcomes: dict[str, Outcome] = {}
    errors: dict[str, str] = {}
    """Why a phase failed, by its name."""
    final: list[str] = []
    """Failed phases that another attempt would fail, too: their errors were Permanent (K14)."""
    parts: list[Item] = []
    """What the phase under way is divided into, `concurrency` of them at a time."""
    concurrency: int = 1
    results: list[Done] = []
    """Put here by the state machine's Map: what became of each."""
    next: Literal["phase", "divide", "items", "finish"] = "phase"
    error: Caught | None = None
    """Put here by the state machine's Catch."""

    def kept(self) -> dict[str, Any]:
        """What the row keeps, to go on from."""
        return self.model_dump(mode="json", include={"left", "checkpoint", "outcomes", "errors", "final"})

    @property
    def status(self) -> Literal["completed", "completed_with_errors", "failed"]:
        """How the run as a whole stands: one phase's failure is not that of the others (REQUIREMENTS B10, K11)."""
        if self.errors and self.outcomes.keys() <= self.errors.keys():
            return "failed"
        whole = all(outcome.report["status"] == "completed" for outcome in self.outcomes.values())
        return "completed" if whole and not self.errors else "completed_with_errors"

    @property
    def sentences(self) -> list[str]:
        """What went wrong: why phases failed, and the failures of single items that they report."""
        found = [f"{phase}: {error}" for phase, error in self.errors.items()]
        for phase, outcome in self.outcomes.items():
            failures = outcome.report.get("failures") or outcome.report.get("errors") or []
            shown = failures if isinstance(failures, list) else [f"{failures} failures, which the log has"]
            found += [f"{phase}: {failure}" for failure in shown]
        return found

    def items(self, phase: str) -> int:
        """How many items a phase dealt with; none if it did not run."""
        return self.outcomes[phase].items if phase in self.outcomes else 0


class PhaseRun(Run):
    """A run as one of its phases sees it: with a checkpoint and a part of the progress bar of its own, and with what
    became of the phases before it."""

    def __init__(self, job: Job, state: State, **options: Any) -> None:
        super().__init__(job, **options)
        self.outcomes: Mapping[str, Outcome] = state.outcomes
        self.errors: Mapping[str, str] = state.errors
        """Why phases before this one failed, by their names."""
        self._span = state.left[0].span
        self._own_checkpoint = state.checkpoint

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """What the phase's previous stretch left, or None at its start."""
        return self._own_checkpoint

    def progress(self, percent: int, message: str) -> None:
        """Say how far the phase is."""
        low, high = self._span
        super().progress(low + (high - low) * min(percent, 100) // 100, message)


Body = Callable[[PhaseRun], Report | Unfinished]


class PhasedJob(JobType[PhaseParams]):
    """A job type whose runs are executions of a state machine. A singleton, and critical: its final failure alerts."""

    def __init__(
        self,
        job_type: str,
        *,
        catalogue: Mapping[str, Phase],
        spans: Mapping[str, tuple[int, int]],
        target: str,
        execution: timedelta = EXECUTION,
    ) -> None:
        """`catalogue` has all phases that a run may select, in order; `spans` the type's own, with their progress.

        `execution` is how long the state machine `target` lets one execution take.
        """
        policy = Policy(timeout=execution, target=target, singleton=True, critical=True)
        super().__init__(job_type, params=PhaseParams, policy=policy)
        self.catalogue = catalogue
        self.spans = spans

    def all_phases(self, settings: Settings) -> Mapping[str, Phase]:  # noqa: ARG002 - for those that settings add to
        """The phases that a run may select under these settings, in order."""
        return self.catalogue

    def own_spans(self, settings: Settings) -> Mapping[str, tuple[int, int]]:  # noqa: ARG002 - likewise
        """The type's own phases under these settings, with their progress."""
        return self.spans

    def previews(self, params: PhaseParams, settings: Settings) -> bool:
        """Whether no phase of a run changes anything.

        Raises:
            InvalidParams: there is no such phase under these settings; or it is to act in earnest, and they have not
                applied one of its phases.
        """
        phases = {name: phase.applied for name, phase in self._selected(params, settings).items()}
        if params.dry_run:
            return True
        waiting = [name for name, applied in phases.items() if applied and not applied(settings)]
        if params.dry_run is None:
            return len(waiting) == len(phases)
        if waiting and not settings.allow_override:
            several = ", ".join(waiting)
            sentence = (
                f"dry_run: false is refused, because the settings do not apply {several}; set "
                f"retention.rules.{waiting[0]}.apply to true, select other phases, or leave dry_run out"
            )
            raise InvalidParams([("dry_run", sentence)])
        return False

    def _selected(self, params: PhaseParams, settings: Settings) -> dict[str, Phase]:
        """The phases of a run, in the catalogue's order.

        Raises:
            InvalidParams: there is no such phase under these settings.
            NoDatabase: none is configured, and a phase that is asked for, or all of the type's own, need one.
        """
        every = self.all_phases(settings)
        if unknown := set(params.phases or ()) - every.keys():
            named = ", ".join(map(short, sorted(unknown)[:NAMED]))
            several = ", ".join(list(every)[:LISTED]) + (
                f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
            )
            sentence = f"phases: {named} is no phase of {self.job_type} (it takes {several})"
            raise InvalidParams([("phases", sentence)])
        selected = {name: every[name] for name in every if name in (params.phases or self.own_spans(settings))}
        needing = [name for name, phase in selected.items() if phase.database]
        if has_database() or not needing:
            return selected
        if params.phases or len(needing) == len(selected):
            raise NoDatabase(", ".join(needing) if params.phases else self.job_type)
        return {name: phase for name, phase in selected.items() if not phase.database}

    def turns(self, params: PhaseParams, settings: Settings) -> list[Turn]:
        """The phases of a run. Raises Permanent if the settings do not let one of them run."""
        chosen, own = self._selected(params, settings), self.own_spans(settings)
        spans = own if own.keys() >= chosen.keys() else evenly(list(chosen))
        for check in dict.fromkeys(phase.check for phase in chosen.values()):
            if check:
                check(settings)
        return [
            Turn(name=name, function=phase.function, span=spans[name], divided=phase.division is not None)
            for name, phase in chosen.items()
        ]

    def result(self, state: State) -> dict[str, Any]:
        """What the row says of the run: each phase's own report, and what went wrong."""
        reports = {phase: outcome.report for phase, outcome in state.outcomes.items()}
        return {"status": state.status, "phases": reports, "errors": state.sentences}


def evenly(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The progress bar in equal parts."""
    return {name: (100 * n // len(names), 100 * (n + 1) // len(names)) for n, name in enumerate(names)}
