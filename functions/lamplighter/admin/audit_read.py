"""Reads the audit log's archive back and proves that it is whole. By hand, wherever boto3 and credentials are.

    PYTHONPATH=functions python -m lamplighter.admin.audit_read --bucket BUCKET [--from 2026-08-01] [--to 2026-08-31]

prints the rows of those days, a JSON object a line, each object's only once its hashes are proven; `--verify` prints a
sentence instead. What is wrong is told on standard error, with its day, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from tempfile import TemporaryFile
from typing import IO, Any, Final

from lamplighter.admin.audit_chain import Chain, Damaged, Link, Meter, Missing

KEPT_DAYS: Final = 2555
"""The template's default of AuditArchiveDays."""
THREADS: Final = 16
"""Links are small: what they cost is the way to S3 and back."""


@dataclass(kw_only=True)
class Found:
    """What was read, and a sentence for each thing that is wrong."""

    rows: int = 0
    objects: int = 0
    expired: int = 0
    """Objects that the bucket's lifecycle has removed."""
    problems: list[str] = field(default_factory=list)


def read_links(chain: Chain, found: Found) -> list[Link]:
    """All links, oldest first; breaks of the chain go to `found`."""
    numbers = chain.numbers()

    def read(number: int) -> Link | Damaged:
        try:
            return chain.link(number)
        except Damaged as damaged:
            return damaged

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(read, numbers))
    links = [result for result in results if isinstance(result, Link)]
    found.problems += [str(result) for result in results if isinstance(result, Damaged)]
    before: Link | None = None
    for link in links:
        if link.number != (before.number + 1 if before else 0):
            found.problems.append(f"{link.day}: the chain is broken, link {link.number - 1} is missing.")
        elif link.previous != (before.sha256 if before else None):
            found.problems.append(
                f"{link.day}: the chain is broken, link {link.number} does not follow the one before."
            )
        before = link
    return links


def read_objects(
    chain: Chain, links: Iterable[Link], found: Found, *, expired_before: datetime, out: IO[bytes] | None
) -> None:
    """Read each object from its first byte to its last; write its lines to `out` if they are what was archived."""
    for link in links:
        meter = Meter()
        with TemporaryFile() as lines:
            try:
                for piece in chain.pieces(link.key, meter):
                    if out:
                        lines.write(piece)
            except Missing as missing:
                if datetime.fromisoformat(link.archived_at) < expired_before:
                    found.expired += 1
                else:
                    found.problems.append(f"{link.day}: {missing}")
                continue
            except Damaged as damaged:
                found.problems.append(f"{link.day}: {damaged}")
                continue
            if meter.contents != link.contents:
                found.problems.append(f"{link.day}: {link.key} is not what was archived.")
                continue
            found.rows += meter.rows
            found.objects += 1
            if out:
                lines.seek(0)
                shutil.copyfileobj(lines, out)


def main(arguments: Sequence[str], *, s3: Any = None, now: datetime | None = None) -> int:
    """Run the command; the exit status."""
    told = _parser().parse_args(arguments)
    if s3 is None:
        import boto3

        s3 = boto3.client("s3")
    chain, found = Chain(s3, told.bucket), Found()
    links = read_links(chain, found)
    if told.head and told.head not in {link.sha256 for link in links}:
        found.problems.append(f"No link has the hash {told.head}: the chain's end was cut off, or altered.")
    chosen = {link.key: link for link in links if told.first <= date.fromisoformat(link.day) <= told.last}
    inside = sorted(chosen.values(), key=lambda link: (link.day, link.number))
    expired_before = (now or datetime.now(UTC)) - timedelta(days=told.kept_days)
    out = None if told.verify else sys.stdout.buffer
    read_objects(chain, inside, found, expired_before=expired_before, out=out)
    for problem in found.problems:
        print(problem, file=sys.stderr)  # noqa: T201 - a command
    if told.verify and not found.problems:
        print(_sentence(links, inside, found))  # noqa: T201
    return 1 if found.problems else 0


def _sentence(links: Sequence[Link], inside: Sequence[Link], found: Found) -> str:
    if not links:
        return "The archive is empty."
    days = sorted({link.day for link in inside})
    span = f" ({days[0]} to {days[-1]})" if days else ""
    gone = f"; {found.expired} more have expired" if found.expired else ""
    return (
        f"{found.rows} rows of {len(days)} days{span} in {found.objects} objects are as they were archived{gone}. "
        f"The chain of {len(links)} links is unbroken; its head is {links[-1].sha256}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lamplighter.admin.audit_read", description="Read the audit log's archive back, verified."
    )
    parser.add_argument("--bucket", required=True, help="the stack's output ArchiveBucketName")
    parser.add_argument("--from", dest="first", type=_day, default=date.min, metavar="DAY", help="first day (UTC)")
    parser.add_argument("--to", dest="last", type=_day, default=date.max, metavar="DAY", help="last day, included")
    parser.add_argument("--verify", action="store_true", help="print no rows, only whether all is whole")
    parser.add_argument("--head", metavar="SHA256", help="the hash that a run reported as the chain's head")
    parser.add_argument(
        "--kept-days",
        type=int,
        default=KEPT_DAYS,
        help="the stack's AuditArchiveDays: an object that is missing after so long has expired (default: %(default)s)",
    )
    return parser


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a day such as 2026-08-24, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
