"""Events from outside: what does not have the needed shape is refused in one sentence (REQUIREMENTS K14).

Every handler calls `json_object` or `parsed` before it reads an event. Only `parsed` imports pydantic, which takes half
the start of the functions that run every minute.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from lamplighter.kernel.errors import Permanent

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

SENTENCE: Final = 300
"""Characters of a refusal."""
DEPTH: Final = 32
"""Levels of objects and lists that an event may have."""
SHOWN: Final = 60
"""Characters of a bad name or value that a refusal repeats."""

OLDEST: Final = timedelta(days=30)
NEWEST: Final = timedelta(days=1)
"""How far a planned moment may be from now: schedules deliver within a day, an operator repeats a tick within weeks."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The attempt that an event asks a function to start."""

    job_id: str
    attempt: int
    continuation: int


def json_object(event: object, takes: str, names: Collection[str] | None = None) -> dict[str, Any]:
    """The event, if it is a JSON object.

    Args:
        takes: what the function takes, for the sentence.
        names: the only fields that it may have; None lets all through.

    Raises:
        Permanent: it is none; the message says what is wrong with which field.
    """
    if not isinstance(event, dict):
        raise Permanent(f"The event must be a JSON object: {takes}; got {type(event).__name__}.")
    if names is not None and (unknown := event.keys() - names):
        known = ", ".join(sorted(names)) or "no fields"
        raise Permanent(f"{short(min(unknown))}: is not known here (takes {known}).")
    return event


def demand_storable(event: Mapping[str, Any]) -> None:
    """Refuse an event that a row and its history cannot hold.

    Raises:
        Permanent: the message says why.
    """
    if why := unstorable(event):
        raise Permanent(f"The event {why}.")


def unstorable(value: Any) -> str | None:
    """Why rows and their history cannot hold a JSON value, or None.

    Postgres keeps no U+0000 in JSON, and nothing keeps half of a surrogate pair.
    """
    waiting = [(value, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEPTH:
            return f"takes {DEPTH} levels of objects and lists at most"
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= each <= "\udfff" for each in value)):
            return "takes no text with U+0000 or half of a surrogate pair"
        if isinstance(value, float) and not math.isfinite(value):
            return "takes no numbers that are not finite"
        if isinstance(value, dict):
            waiting += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
    return None


def turn(event: Mapping[str, Any]) -> Turn:
    """The attempt that the dispatcher asks for.

    Raises:
        Permanent: a field is missing, unknown or of another type.
    """
    names = {"job_id", "attempt", "continuation"}
    given = json_object(event, "job_id, attempt and continuation", names)
    if missing := sorted(names - given.keys()):
        raise Permanent(f"{missing[0]}: is missing; an attempt is named by job_id, attempt and continuation.")
    job_id, attempt, continuation = given["job_id"], given["attempt"], given["continuation"]
    if not isinstance(job_id, str):
        raise Permanent(f"job_id: takes the id of a job, got {shown(job_id)}.")
    for name, value, least in (("attempt", attempt, 1), ("continuation", continuation, 0)):
        if type(value) is not int or value < least:
            raise Permanent(f"{name}: takes a whole number from {least}, got {shown(value)}.")
    return Turn(job_id, attempt, continuation)


def moment(name: str, value: object, *, now: datetime, oldest: timedelta = OLDEST) -> datetime:
    """The planned or reported moment that a field gives, in UTC.

    Raises:
        Permanent: it is no ISO-8601 time with an offset, or too far from now. Far moments are errors of a caller, and
            no job_id can hold them.
    """
    with suppress(ValueError, OverflowError):
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
        if at and at.tzinfo and now - oldest <= at.astimezone(UTC) <= now + NEWEST:
            return at.astimezone(UTC)
    raise Permanent(
        f"{name}: takes an ISO-8601 time such as 2026-01-31T03:00:00Z, at most {oldest.days} days ago and "
        f"{NEWEST.days} day ahead, got {shown(value)}."
    )


def parsed[M: BaseModel](model: type[M], event: object) -> M:
    """The event as the model has it.

    Raises:
        Permanent: it is not; the message names a field and says what it takes.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(json_object(event, ", ".join(model.model_fields)))
    except ValidationError as error:
        raise Permanent(sentences(problems(error, model.model_fields))) from None


def problems(error: ValidationError, known: Iterable[str]) -> list[tuple[str, str]]:
    """What pydantic found, as (field, sentence without its full stop); `known` are the fields there are."""
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        name = ".".join(short(str(part)) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        match problem["type"]:
            case "missing":
                sentence = f"{name}: is missing"
            case "extra_forbidden":
                sentence = f"{name}: is not known here (takes {', '.join(known)})"
            case "value_error" if not name:
                sentence = message
            case _:
                name = name or "the event"
                sentence = f"{name}: {message[:1].lower()}{message[1:]}, got {shown(problem['input'])}"
        found.append((name, sentence))
    return found


def sentences(found: Iterable[tuple[str, str]]) -> str:
    """The problems in one text of at most about `SENTENCE` characters: those that fit, and how many more there are."""
    texts = [sentence for _, sentence in found]
    fit = texts[:1]
    for text in texts[1:]:
        if len("; ".join([*fit, text])) > SENTENCE:
            break
        fit.append(text)
    more = len(texts) - len(fit)
    return "; ".join([*fit, *([f"and {more} more"] if more else [])]) + "."


def shown(value: object) -> str:
    """A value as a refusal repeats it: what does not print is escaped, what is long is cut."""
    try:
        return short(repr(value))
    except RecursionError:
        return f"a {type(value).__name__} of too many levels"


def short(text: str, limit: int = SHOWN) -> str:
    """The text, cut to `limit` characters; what does not print is escaped."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= limit else f"{text[:limit]}..."
