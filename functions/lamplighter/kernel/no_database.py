"""Whether this deployment has a database, and the one sentence for what needs one where it has none (REQUIREMENTS P5).

It imports no driver, so that any function may ask.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from lamplighter.kernel.errors import Permanent

VARIABLES: Final = ("DATABASE_URL", "DATABASE_SECRET_ARN", "DATABASE_HOST")
"""Each of them names a database; where all are empty there is none."""
SENTENCE: Final = "No database is configured"
_WHAT_TO_DO: Final = "Deploy with DatabaseSecretArn, DatabaseHost or DatabaseUrl"


class NoDatabase(Permanent):
    """No database is configured."""

    traced = False

    def __init__(self, needs: str = "this") -> None:
        """`needs` is what needs one, such as `the phase downloads`."""
        super().__init__(f"{SENTENCE}: {needs} needs one. {_WHAT_TO_DO}.")


def has_database(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a database is configured; whether it can be reached is another question."""
    return any(environment.get(name) for name in VARIABLES)
