"""What the checks find in generated accounts, held against what was planted there: nothing more, nothing less.

The labels were given when the resources were made (`local.estate`), by somebody who does not know the checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer

from lamplighter.cloud import access, checks, reader
from lamplighter.cloud.check import Basis, Judgement, judge, wanted
from lamplighter.cloud.prices import Prices
from lamplighter.kernel.cloud import Limits
from local.estate import Estate

ACCOUNT = "123456789012"  # moto's own: of any access key
SEEDS = {"us-east-1": 1, "eu-west-1": 2, "ap-southeast-2": 3}
"""An account in each region: the regions share nothing."""


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The URL of a moto server of this process, whose backends tests reach into."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urlopen(Request(f"{url}/moto-api/reset", method="POST"), timeout=30).read()  # moto keeps one cloud a process
    yield url
    server.stop()


@pytest.fixture
def credentials(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's: anybody's."""
    for name, value in {"ENDPOINT_URL": moto, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


def judged(region: str, now: datetime) -> Judgement:
    """What the checks say of a region as it is read, with no history kept."""
    limits, every = Limits(), checks.BY_ID.values()
    clients = access.clients(region, session_name="test")
    needs = wanted(every)
    inventory = reader.read(clients, account=ACCOUNT, region=region, now=now, limits=limits, needs=needs)
    assert not inventory.gaps
    return judge(inventory, Basis(now=now, limits=limits, prices=Prices.from_file(region)), every)


def told(estate: Estate, what: str) -> set[tuple[str, str, str]]:
    """Check, name and id of what was planted to be `found`, or to be `unknown`."""
    return {(check, one.name, one.resource_id) for one in estate.planted for check in getattr(one, what)}


def named(estate: Estate, those: Any) -> set[tuple[str, str, str]]:
    """The same of findings, or of what could not be judged."""
    names = {one.resource_id: one.name for one in estate.planted}
    return {(one.check, names.get(one.resource_id, "not planted"), one.resource_id) for one in those}


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(("region", "seed"), SEEDS.items())
def test_findings_are_exactly_what_was_planted(region: str, seed: int) -> None:
    now = datetime.now(UTC)
    estate = Estate(ACCOUNT, region, now=now, seed=seed)
    estate.plant_specimens()
    estate.plant(instances=40, volumes=60, snapshots=40, security_groups=20)

    judgement = judged(region, now)

    assert named(estate, judgement.findings) == told(estate, "found")
    assert named(estate, judgement.unknown) == told(estate, "unknown")
    assert judgement.judged == set(checks.BY_ID) == {check for check, *_ in told(estate, "found")}


@pytest.mark.usefixtures("credentials")
def test_every_kind_of_waste_is_told_in_dollars() -> None:
    now = datetime.now(UTC)
    estate = Estate(ACCOUNT, "eu-central-1", now=now)
    estate.plant_specimens()
    waste = {check.id for check in checks.WASTE}
    priced = {one.check for one in judged("eu-central-1", now).findings if one.monthly_usd}
    assert priced >= waste
