"""Errors by what the caller should do; their names are the `ErrorEquals` contract of the state machines."""


class Retryable(Exception):
    """The attempt failed for a passing reason: try again, with backoff, while attempts are left."""


class DatabaseUnavailable(Retryable):
    """The database cannot be reached now, or went away in the middle."""


class Permanent(Exception):
    """Trying again cannot help (bad input, a refused plan): fail for good, at once."""


class AlreadyRunning(Exception):
    """A singleton job type is held by another run, which the message names: do not start a second one."""


class LostLease(Exception):
    """This attempt no longer owns its job (it timed out, or ended elsewhere): stop, change nothing."""


class AllItemsFailed(Exception):
    """A phase that was divided into items came to nothing with each: the attempt failed, which the ledger has."""
