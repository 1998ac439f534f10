"""The regions that a run works in, entered once each."""

from __future__ import annotations

from lamplighter.cloud import targets
from lamplighter.cloud.remedies.action import Place
from lamplighter.kernel.job import Run


class Places:
    """The regions of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._places: dict[tuple[str, str], Place] = {}

    def __call__(self, account: str, region: str) -> Place:
        """A region of an account.

        Raises:
            Permanent: it is no target of the scans any more, or its role cannot be assumed.
            Retryable: its role cannot be assumed now.
        """
        if (account, region) not in self._places:
            run = self._run
            clients = targets.find(run.settings, account, region).enter(run.job_id)
            self._places[account, region] = Place(
                account=account, region=region, clients=clients, job_id=run.job_id, now=run.now()
            )
        return self._places[account, region]
