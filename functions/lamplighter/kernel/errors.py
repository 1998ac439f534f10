"""Errors by what the caller should do; their names are the `ErrorEquals` contract of the state machines."""

from __future__ import annotations

from typing import ClassVar, Final


class Retryable(Exception):
    """The attempt failed for a passing reason: try again, with backoff, while attempts are left."""


class DatabaseUnavailable(Retryable):
    """The database, or the bucket that keeps findings in its place, cannot be reached now, or went away meanwhile."""


class Permanent(Exception):
    """Trying again cannot help (bad input, a refused plan): fail permanently, at once."""

    traced: ClassVar[bool] = True
    """Whether the ledger keeps its stack trace; False where the sentence says all (K14)."""


class AlreadyRunning(Exception):
    """A singleton job type is held by another run, which the message names: do not start a second one."""


class LostLease(Exception):
    """This attempt no longer owns its job (it timed out, or ended elsewhere): stop, change nothing."""


class AllItemsFailed(Exception):
    """A phase that was divided into items came to nothing with each: the attempt failed, which the ledger has."""


class Unreadable(Permanent):
    """A bucket, table or service is not there or may not be used: until somebody changes that, every attempt fails."""

    traced = False


class NoTable(Unreadable):
    """A table that a statement, a rule or a phase names is not there."""


class Unfit(Permanent):
    """A rule or a phase cannot use the table of its name: it is a view, it lacks a column, a column is of another type,
    the user has no right to it, or rows that depend on it would change with it."""

    traced = False


_AWS: Final = frozenset(
    {
        *("AccessDenied", "AccessDeniedException", "AllAccessDisabled", "AuthorizationError", "NotAuthorized"),
        *("UnauthorizedOperation", "UnauthorizedAccess", "OptInRequired", "NoSuchBucket", "KMS.DisabledException"),
        *("KMS.NotFoundException", "AWSOrganizationsNotInUseException", "InvalidClientTokenId", "403"),
    }
)
"""Error codes of AWS that no retry mends."""
_SQL: Final = ("42", "3D", "3F", "28", "25006")
"""SQLSTATE classes that no retry mends: names and rights, databases, schemas, who asks; and a read-only database."""
NO_TABLE: Final = "42P01"
"""SQLSTATE undefined_table."""


UNFIT: Final = ("42501", "42703", "42804", "42846", "42883", "22003", "22007", "22008", "22P02")
"""SQLSTATEs of a statement that is for another table: insufficient_privilege, undefined_column, datatype_mismatch,
cannot_coerce, undefined_function (operators, too), and literals that the column's type does not take."""


def unfit(error: BaseException) -> NoTable | Unfit | None:
    """An error that says that a table is not there or does not fit, in one sentence; None for any other error."""
    if isinstance(error, NoTable | Unfit):
        return error
    match getattr(getattr(error, "orig", None), "args", None):
        case ({"C": str(state), "M": str(message)}, *_) if state in (NO_TABLE, *UNFIT):
            kind = NoTable if state == NO_TABLE else Unfit
            return kind(_sentence(f"The database refuses a statement ({state}): {message}"))
    return None


def unreadable(error: BaseException) -> Unreadable | None:
    """An error of botocore or SQLAlchemy in one sentence, if it says that a resource may not be used or is not there.

    Neither library is imported for it.
    """
    match getattr(error, "response", None):
        case {"Error": {"Code": str(code), **said}} if code in _AWS:
            operation = getattr(error, "operation_name", "the request")
            return Unreadable(
                _sentence(f"AWS refuses {operation} ({code}): {said.get('Message') or 'no reason given'}")
            )
    match getattr(getattr(error, "orig", None), "args", None):
        case ({"C": str(state), "M": str(message)}, *_) if state.startswith(_SQL):
            kind = NoTable if state == NO_TABLE else Unreadable
            return kind(_sentence(f"The database refuses a statement ({state}): {message}"))
    return None


def _sentence(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return f"{line if len(line) <= _LIMIT else line[:_LIMIT] + ' ...'}."


_LIMIT: Final = 500
"""Characters of such a sentence: names of roles and resources are long."""
