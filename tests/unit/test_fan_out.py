"""A phase that is divided into items, over the in-memory ledger and by the state machine's own definition (C17, K2, K7,
K8)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from lamplighter.kernel import fan_out, phases
from lamplighter.kernel.errors import DatabaseUnavailable, Permanent
from lamplighter.kernel.job import Report, Run
from lamplighter.kernel.ledger.ledger import Ledger
from lamplighter.kernel.ledger.row import Job, Status
from lamplighter.kernel.phased_job import Division, Done, Phase, PhasedJob
from lamplighter.kernel.settings import Settings
from tests.memory_store import MemoryStore
from tests.state_machine import Execution, ExecutionFailed, Killed, load
from tests.template.project import ROOT
from tests.unit.conftest import FakeClock, FakeContext

DEFINITION = load((ROOT / "statemachines/cloud.asl.yaml").read_text(), CloudScan="steps", Stack="stack")
ROOMS = [{"floor": "1", "room": f"{n}"} for n in range(1, 6)]

Body = Callable[[Run, dict[str, Any]], Report]


class Swept(Report):
    """Of one room."""

    rows: int = 0

    def counts(self) -> tuple[int, int]:
        return self.rows, 0


class House(Report):
    """Of all rooms."""

    rooms: list[str] = []
    failures: list[str] = []
    rows: int = 0

    def counts(self) -> tuple[int, int]:
        return self.rows, 0


def gathered(done: Sequence[Done]) -> House:
    reports = [Swept.model_validate(one.outcome.report) for one in done if one.outcome]
    failures = [f"{one.item['room']}: {one.error}" for one in done if one.error]
    return House(
        status="completed_with_errors" if failures else "completed",
        rooms=[one.item["room"] for one in done],
        failures=failures,
        rows=sum(report.rows for report in reports),
    )


def rooms(settings: Settings) -> Sequence[dict[str, Any]]:
    if settings.cloud.concurrency == 9:
        raise Permanent("The house has no rooms.")
    return ROOMS


DIVISION = Division(items=rooms, concurrency=lambda settings: settings.cloud.concurrency, gather=gathered)
CATALOGUE = {
    "rooms": Phase(function="room", division=DIVISION),
    "roof": Phase(function="roof"),
}
TYPES = {
    "sweep": PhasedJob(
        "sweep",
        catalogue=CATALOGUE,
        spans={"rooms": (0, 80), "roof": (80, 100)},
        target="states:sweep",
        execution=timedelta(hours=1),
    )
}


class World:
    """The definition, executed in process with the real steps."""

    def __init__(self, ledger: Ledger, clock: FakeClock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.executions = 0
        self.body: Body = lambda run, item: Swept(rows=int(item["room"]))
        self.begun: list[str] = []

    def execution(self, **given: Any) -> Execution:
        self.executions += 1
        return Execution(
            definition=DEFINITION,
            invoke=self.invoke,
            arn=f"arn:{self.executions}",
            started=self.clock().isoformat(),
            input={"job_type": "sweep"} | given,
        )

    def invoke(self, function: str, payload: Any) -> Any:
        context = FakeContext(timedelta(minutes=15))
        match function, payload.get("step"):
            case "stack-room", _:
                self.begun.append(payload["item"]["value"]["room"])
                return fan_out.work(payload, context, self.body)
            case "stack-roof", _:
                return phases.take(payload, context, {"roof": lambda run: Swept(rows=100)})
            case "steps", "begin":
                return phases.begin(payload, TYPES)
            case "steps", "divide":
                return fan_out.divide(payload, TYPES)
            case "steps", "lost":
                return fan_out.lost(payload)
            case "steps", "gather":
                return fan_out.gather(payload, TYPES)
            case "steps", "pass_over":
                return phases.pass_over(payload)
            case "steps", "finish":
                return phases.finish(payload, TYPES)
        raise AssertionError(function)

    def run(self, **given: Any) -> Any:
        return self.execution(**given).run()

    def go_on(self) -> Any:
        """What the dispatcher starts next."""
        job = self.row()
        turn = {"job_id": job.job_id, "attempt": job.attempt, "continuation": job.continuation}
        return self.run(**turn)

    def row(self) -> Job:
        assert isinstance(self.ledger.store, MemoryStore)
        (key,) = self.ledger.store.items
        return self.ledger.get(key.removeprefix("JOB#"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, ledger: Ledger, clock: FakeClock) -> World:
    monkeypatch.setattr(Ledger, "from_environment", lambda: ledger)
    return World(ledger, clock)


def test_every_item_is_done_and_the_run_goes_on_with_one_outcome(world: World) -> None:
    output = world.run()
    assert (output["status"], output["finished"], output["errors"]) == ("completed", True, [])
    assert output["phases"]["rooms"] == {
        "status": "completed",
        "rooms": ["1", "2", "3", "4", "5"],
        "failures": [],
        "rows": 15,
    }
    assert output["phases"]["roof"]["rows"] == 100
    assert (world.row().status, world.row().progress) == (Status.COMPLETED, 100)


def test_items_are_worked_at_as_many_at_a_time_as_the_setting_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_CLOUD_CONCURRENCY", "3")
    execution = world.execution()
    execution.run()
    assert execution.concurrency == [3]


def test_the_row_says_which_item_is_under_way_and_how_far_the_run_is(world: World) -> None:
    """K7."""
    seen = []

    def body(run: Run, item: dict[str, Any]) -> Report:
        seen.append((world.row().progress, world.row().message))
        return Swept()

    world.body = body
    world.run()
    assert seen == [(0, "1, 1"), (16, "1, 2"), (32, "1, 3"), (48, "1, 4"), (64, "1, 5")]


def test_one_items_failure_is_told_and_the_others_are_done(world: World) -> None:
    def body(run: Run, item: dict[str, Any]) -> Report:
        if item["room"] == "3":
            raise ValueError("the door is locked\nand bolted")
        return Swept(rows=1)

    world.body = body
    output = world.run()
    assert (output["status"], output["phases"]["rooms"]["rows"]) == ("completed_with_errors", 4)
    assert output["errors"] == ["rooms: 3: ValueError: the door is locked"]
    assert (world.row().status, world.row().errors) == (Status.COMPLETED, ())


def test_a_function_that_is_killed_loses_its_item_only(world: World) -> None:
    def body(run: Run, item: dict[str, Any]) -> Report:
        if item["room"] == "2":
            raise Killed("Task timed out after 900.00 seconds")
        return Swept(rows=1)

    world.body = body
    output = world.run()
    assert output["errors"] == ["rooms: 2: Runtime.ExitError: Task timed out after 900.00 seconds"]
    assert output["phases"]["rooms"]["rows"] == 4


def test_a_passing_failure_is_called_again(world: World) -> None:
    def body(run: Run, item: dict[str, Any]) -> Report:
        if item["room"] == "1" and world.begun.count("1") < 3:
            raise DatabaseUnavailable("The database went away.")
        return Swept(rows=1)

    world.body = body
    assert world.run()["phases"]["rooms"]["rows"] == 5
    assert world.begun.count("1") == 3


def test_when_every_item_fails_the_attempt_has_failed_and_is_tried_again_whole(world: World) -> None:
    """K5: the ledger alone retries; what comes after the items is not begun."""

    def body(run: Run, item: dict[str, Any]) -> Report:
        raise DatabaseUnavailable("The database at db cannot be reached.")

    world.body = body
    with pytest.raises(ExecutionFailed, match="AllItemsFailed"):
        world.run()
    row = world.row()
    assert (row.status, row.attempt, row.errors[0].type) == (Status.PENDING, 2, "AllItemsFailed")
    assert row.errors[0].message.startswith("rooms: 1: DatabaseUnavailable: The database at db cannot be reached.; ")
    assert row.result is not None and "roof" not in row.result["phases"]
    world.body = lambda run, item: Swept(rows=1)
    assert world.go_on()["phases"]["rooms"]["rows"] == 5


def test_an_error_that_is_too_long_to_travel_ends_with_a_whole_word() -> None:
    for whole in ("The region is gone.", "x" * fan_out.SENTENCE):
        assert fan_out.short(whole) == whole
    told = fan_out.short("word " * 100)
    assert told.endswith("word ...")
    assert len(told) <= fan_out.SENTENCE


@pytest.mark.parametrize("word", ["word ", '"quoted" ', "größer ", "😀 "])
def test_what_travels_is_short_as_json_has_it(word: str) -> None:
    """A quote is two characters there, and a letter that is none of ASCII's six."""
    told = fan_out.short(word * 100)
    assert told.startswith(word.strip())
    assert fan_out.SENTENCE * 0.7 < len(json.dumps(told)) <= fan_out.SENTENCE + 2


def test_what_five_hundred_items_come_to_fits_a_state_and_the_row(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step Functions takes 256 KiB ("Quotas"), a row 400 KB ("Constraints in Amazon DynamoDB"); and each failure is
    told of."""
    many = [{"account": "123456789012", "region": f"ap-southeast-{n}"} for n in range(500)]
    division = Division(
        items=lambda settings: many,
        concurrency=lambda settings: 40,
        gather=lambda done: House(
            status="completed_with_errors",
            failures=[f"{one.item['account']}/{one.item['region']}: {one.error}" for one in done if one.error],
        ),
    )
    monkeypatch.setitem(CATALOGUE, "rooms", Phase(function="room", division=division))

    def body(run: Run, item: dict[str, Any]) -> Report:
        if item != many[-1]:
            raise ValueError('"It is" größer ' * 30)
        return Swept(rows=1)

    def invoke(function: str, payload: Any) -> Any:
        told = (
            fan_out.work(payload, FakeContext(), body) if function == "stack-room" else world.invoke(function, payload)
        )
        assert max(len(json.dumps(payload)), len(json.dumps(told))) < 256 * 1024
        if function != "stack-room":
            row = world.row()
            assert len(json.dumps([row.checkpoint, row.result])) < 390_000
        return told

    execution = world.execution()
    execution.invoke = invoke
    output = execution.run()
    assert len(output["errors"]) == len(output["phases"]["rooms"]["failures"]) == 499


def test_five_hundred_items_that_all_fail_with_long_errors_fit_a_state(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more than Step Functions takes ends an execution in a way that nothing catches."""
    many = [{"account": "123456789012", "region": f"ap-southeast-{n}"} for n in range(500)]
    division = Division(
        items=lambda settings: many,
        concurrency=lambda settings: 40,
        gather=lambda done: House(failures=[str(one.error) for one in done]),
    )
    monkeypatch.setitem(CATALOGUE, "rooms", Phase(function="room", division=division))

    def body(run: Run, item: dict[str, Any]) -> Report:
        raise ValueError("long " * 1000)

    def invoke(function: str, payload: Any) -> Any:
        assert len(json.dumps(payload)) < 256 * 1024
        return (
            fan_out.work(payload, FakeContext(), body) if function == "stack-room" else world.invoke(function, payload)
        )

    execution = world.execution()
    execution.invoke = invoke
    with pytest.raises(ExecutionFailed, match="AllItemsFailed") as failed:
        execution.run()
    assert len(failed.value.cause) < 32_768


def test_a_run_that_is_cancelled_begins_no_other_item_and_says_what_it_had_done(world: World) -> None:
    """K7."""

    def body(run: Run, item: dict[str, Any]) -> Report:
        if item["room"] == "3":
            world.ledger.cancel(run.job_id)
            world.clock.tick(seconds=3)
            fan_out.ask(run)
            raise AssertionError("it goes on")
        return Swept(rows=1)

    world.body = body
    output = world.run()
    assert (output["status"], output["finished"]) == ("cancelled", True)
    assert output["phases"]["rooms"] == {"status": "completed", "rooms": ["1", "2"], "failures": [], "rows": 2}
    assert "roof" not in output["phases"]
    assert (world.row().status, world.begun) == (Status.CANCELLED, ["1", "2", "3", "4", "5"])


def test_no_item_is_begun_that_could_outlast_the_execution_and_the_next_one_does_the_rest(world: World) -> None:
    """K8: never restarted from zero."""

    def body(run: Run, item: dict[str, Any]) -> Report:
        world.clock.tick(minutes=14)
        return Swept(rows=int(item["room"]))

    world.body = body
    output = world.run()
    assert (output["finished"], output["phases"]["rooms"]["rows"]) == (False, 10)
    assert (world.row().status, world.row().continuation) == (Status.PENDING, 1)
    world.begun.clear()
    output = world.go_on()
    assert (output["finished"], world.begun) == (True, ["5"])
    assert (output["phases"]["rooms"]["rooms"], output["phases"]["rooms"]["rows"]) == (["1", "2", "3", "4", "5"], 15)
    assert output["phases"]["roof"]["rows"] == 100


def test_an_item_that_takes_longer_than_its_function_may_ends_by_itself_with_a_sentence(world: World) -> None:
    def body(run: Run, item: dict[str, Any]) -> Report:
        if item["room"] == "1":
            world.clock.tick(minutes=14, seconds=41)
            fan_out.ask(run)
        return Swept(rows=1)

    world.body = body
    output = world.run()
    assert output["errors"] == [
        "rooms: 1: It was not done within the 15 min that a function may take; nothing of it is recorded."
    ]
    assert output["phases"]["rooms"]["rows"] == 4


def test_an_attempt_that_was_declared_dead_begins_nothing_and_the_next_one_starts_over(world: World) -> None:
    """K2: its execution was aborted while items were under way."""

    def body(run: Run, item: dict[str, Any]) -> Report:
        if item["room"] == "2":
            world.clock.tick(hours=1)
            world.ledger.expire(world.row())
        return Swept(rows=1)

    world.body = body
    with pytest.raises(ExecutionFailed, match="LostLease"):
        world.run()
    assert (world.row().status, world.row().attempt, world.row().checkpoint) == (Status.PENDING, 2, None)
    world.body = lambda run, item: Swept(rows=1)
    assert world.go_on()["phases"]["rooms"]["rows"] == 5


def test_an_item_that_is_delivered_twice_is_done_twice_and_told_once(world: World) -> None:
    execution = world.execution()
    steps = execution.steps()
    while next(steps) != "Items":
        pass
    share = execution.share(0)
    first = fan_out.work(share, FakeContext(), world.body)
    assert fan_out.work(share, FakeContext(), world.body) == first
    assert first == {"item": ROOMS[0], "outcome": {"items": 1, "bytes": 0, "report": {"rows": 1}}}


@pytest.mark.parametrize("name", ["roof", "cellar"])
@pytest.mark.parametrize("step", [fan_out.divide, fan_out.gather])
def test_a_phase_that_has_no_items_is_one_sentence(world: World, name: str, step: Any) -> None:
    state = phases.begin(
        {"step": "begin", "input": {"job_type": "sweep"}, "execution": "arn:1", "started": world.clock().isoformat()},
        TYPES,
    )
    state["left"][0]["name"] = name
    with pytest.raises(Permanent, match=f"phase: '{name}' is not divided into items"):
        step({"state": state}, TYPES)


def test_items_that_cannot_be_told_are_the_phases_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPLIGHTER_CLOUD_CONCURRENCY", "9")
    output = world.run()
    assert (output["status"], output["errors"]) == (
        "completed_with_errors",
        ["rooms: Permanent: The house has no rooms."],
    )
    assert output["phases"]["roof"]["rows"] == 100


def test_when_every_item_fails_permanently_the_run_is_final(world: World) -> None:
    """REQUIREMENTS K14."""

    def body(run: Run, item: dict[str, Any]) -> Report:
        raise Permanent("The role may not be assumed.")

    world.body = body
    with pytest.raises(ExecutionFailed, match="AllItemsFailed"):
        world.run()
    row = world.row()
    assert (row.status, row.attempt, row.dead_letter) == (Status.FAILED, 1, "permanent")
    assert sorted(world.begun) == sorted({*world.begun}), "no item is begun twice"


def test_when_the_items_cannot_be_told_permanently_no_attempt_tells_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMPLIGHTER_CLOUD_CONCURRENCY", "9")
    with pytest.raises(ExecutionFailed, match="AllPhasesFailed"):
        world.run(phases=["rooms"])
    row = world.row()
    assert (row.status, row.attempt, row.errors[0].message) == (
        Status.FAILED,
        1,
        "rooms: Permanent: The house has no rooms.",
    )
