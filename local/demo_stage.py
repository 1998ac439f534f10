"""Where the demo's chapters play: the deployed local AWS, the database, and how things are told and checked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from rich.filesize import decimal

from local.console import console, say, table
from local.servers import LocalAwsError
from local.stack import LocalAws

if TYPE_CHECKING:
    from pg8000.native import Connection

PATIENCE: Final = timedelta(minutes=3)
"""How long something may take that happens by itself: a schedule's minute, a run that its schedule has begun, and what
follows from it."""


class Stage:
    """A deployed local AWS, and what was told of it so far."""

    def __init__(self, aws: LocalAws, database: Connection) -> None:
        self.aws = aws
        self.database = database
        self.outputs = aws.outputs()
        self.began = datetime.now(UTC)
        self.chapters = 0
        self.settings: dict[str, Any] = {}
        """What the SSM parameter holds outside of `overridden`."""
        self.summary: list[tuple[str, str, str, str]] = []

    def chapter(self, title: str, sentence: str) -> None:
        """Begin the next chapter."""
        self.chapters += 1
        console.print(f"\n[bold blue]{self.chapters}  {title}[/]")
        say(sentence)

    def did(self, job: str, did: str, seconds: float, look: str) -> None:
        """Note a line of the summary at the end; `look` says where it can be seen."""
        self.summary.append((job, did, f"{seconds:.1f}", look))

    def invoke(self, job: str, event: Mapping[str, Any]) -> dict[str, Any]:
        """What a job answers; while another run of it holds its lock, as its schedule's may, that is waited for."""

        def answered() -> dict[str, Any] | None:
            try:
                answer: dict[str, Any] = self.aws.invoke(job, event)
            except LocalAwsError as error:
                if f"{job} failed: AlreadyRunning: " in str(error):
                    return None
                raise
            return answer

        return self.wait(f"The lock of {job}", answered)

    def refusal(self, job: str, event: Mapping[str, Any]) -> str:
        """The sentence with which the job refuses the event."""
        return self.refusal_of(lambda: self.invoke(job, event))

    def refusal_of(self, call: Callable[[], Mapping[str, Any]]) -> str:
        """The sentence with which a call is refused."""
        try:
            answer = call()
        except LocalAwsError as error:
            return str(error).splitlines()[0].split(": ", 2)[-1]  # without the error's type and its stack trace
        raise Answered(f"A job should have refused, but answered {json.dumps(answer)}.")

    def override(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Put settings into the SSM parameter and apply them; answers what the function `settings` says."""
        ssm, name = self.aws.client("ssm"), self.outputs["SettingsParameterName"]
        value = json.dumps(settings)
        if ssm.get_parameter(Name=name)["Parameter"]["Value"] != value:
            ssm.put_parameter(Name=name, Value=value, Overwrite=True)
        return self.invoke("settings", {})

    @contextmanager
    def overridden(self) -> Iterator[None]:
        """Put the demo's settings back after the block."""
        try:
            yield
        finally:
            self.override(self.settings)

    def wait[T](self, what: str, look: Callable[[], T | None]) -> T:
        """What `look` finds, once it finds something."""
        end = time.monotonic() + PATIENCE.total_seconds()
        while (found := look()) is None:
            self.expect(time.monotonic() < end, f"{what} did not come within {PATIENCE.total_seconds():.0f} seconds.")
            time.sleep(0.1)
        return found

    def expect(self, holds: bool, otherwise: str) -> None:
        """End the demo with a sentence unless something is as it should be."""
        if not holds:
            raise LocalAwsError(f"{otherwise} The logs are in {self.aws.directory / 'log'}.")


class Answered(LocalAwsError):
    """A job answered where it had to refuse."""


def reports(names: Sequence[str], reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Reports of one job side by side."""
    rows = [(name, *(_value(name, report[name]) for report in reports.values())) for name in names]
    table(("report", *reports), rows, right=tuple(reports))


def _value(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return decimal(value)
    if name.endswith("_seconds"):
        return f"{value:.1f}"
    return number(len(value) if isinstance(value, list) else value)


def number(value: int) -> str:
    """With its thousands apart."""
    return f"{value:,}".replace(",", " ")


def short(text: str, width: int) -> str:
    """At most so many characters of it."""
    return text if len(text) <= width else f"{text[: width - 1]}…"
