"""Who finds what: our checks, Cloud Custodian and Prowler on one generated account. `python -m bench.cloud_agreement`.

The account has one of each kind of resource, by names that say what it is, and hundreds more (`local.estate`). Ours
have to find exactly what was planted, or this fails; where a peer finds more or less, the kinds are named.
docs/checks.md says why that is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench import cloud_peers as peers
from bench.cloud_scan import ours, run
from bench.cloud_stub import Account, account
from bench.tables import show

NAMED: Final = 8


def found_by_each(stub: Account) -> dict[str, peers.Found]:
    """What each scanner that is there finds."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _, said = run(ours(directory), stub, directory)
        found = {"lamplighter": {(one["check"], one["resource_id"]) for one in json.loads(said)["findings"]}}
        if peers.CUSTODIAN.install():
            run(peers.custodian(directory), stub, directory)
            found[peers.CUSTODIAN.name] = peers.custodians(directory)
        if peers.PROWLER.install():
            run(peers.prowler(directory), stub, directory)
            found[peers.PROWLER.name] = peers.prowlers(directory)
    return found


def main() -> None:
    """Compare and print.

    Raises:
        SystemExit: ours do not find what was planted.
    """
    with account("--specimens") as stub:
        planted = stub.planted()
        found = found_by_each(stub)
    names = {one.resource_id: one.name for one in planted}
    known = {(check, one.resource_id) for one in planted for check in one.found}
    mistaken = found.pop("lamplighter") ^ known
    kinds = sorted({check for check, _ in known})

    def of(those: peers.Found, check: str) -> set[str]:
        return {resource for one, resource in those if one == check}

    def specimens(resources: Iterable[str]) -> str:
        """Those that are one of their kind; the others have numbers for names."""
        own = sorted(name for name in (names.get(one, one) for one in resources) if not name[-1:].isdigit())
        return ", ".join(own[:NAMED])

    for peer, theirs in found.items():
        rows = []
        for check in kinds:
            planted_so, found_so = of(known, check), of(theirs, check)
            less, more = planted_so - found_so, found_so - planted_so
            if not found_so:
                rows.append((check, len(planted_so), "has no such check", "", "", ""))
            else:
                rows.append(
                    (check, len(planted_so), len(less), specimens(less), len(more), specimens(more)),
                )
        show(f"{peer}", ("check", "planted", "not found", "such as", "found beside", "such as"), rows)
    print(f"\nlamplighter: {len(known)} planted, {len(mistaken)} found wrongly or not")
    if mistaken:
        raise SystemExit(f"such as {sorted((check, names.get(one, one)) for check, one in mistaken)[:NAMED]}")


if __name__ == "__main__":
    main()
