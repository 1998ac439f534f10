"""What the jobs that take back what a run did have in common."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lamplighter.kernel.job import Params


class UndoParams(Params):
    """What an undo takes: the job whose run it is about, or the address of that run's manifest."""

    job_id: str | None = None
    """The job that is to be undone."""
    manifest: str | None = None
    """The key of its manifest in the archive bucket, as its report gives it: for runs the ledger has forgotten."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """The manifest's hash, from the same report."""
    dry_run: bool = True

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.job_id) == bool(self.manifest) or bool(self.manifest) != bool(self.sha256):
            raise ValueError("give either job_id, or manifest and sha256")
        return self
