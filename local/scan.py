"""Looks an AWS account over for waste and risk, before anything is deployed: `python -m local.scan --help`.

The same checks that the deployed jobs run, read-only, with the caller's own credentials, region and endpoint, as boto3
finds them. It exits with 0 when it has looked at a region at least, whatever it found there; regions that it could not
look at are in the errors. It exits with 2, and one sentence, when it could not look at all.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lamplighter.cloud.access import Clients
    from lamplighter.cloud.check import Finding, Judgement, Undetermined
    from lamplighter.cloud.exemptions import Exemption, Exemptions
    from lamplighter.kernel.cloud import Limits

FUNCTIONS: Final = Path(__file__).parent.parent / "functions"
REGIONS_AT_A_TIME: Final = 4
LIMITS: Final = "LAMPLIGHTER_CLOUD_LIMITS"
"""The environment variable that overrides what counts as waste or risk, as it does for the deployed jobs."""
SEVERITIES: Final = ("critical", "high", "medium", "low", "informational")


@dataclass(kw_only=True)
class Scan:
    """What was found."""

    account: str
    regions: Sequence[str]
    findings: list[Finding] = field(default_factory=list)
    """What is worth most first, then what is most severe."""
    exempted: list[tuple[Finding, Exemption]] = field(default_factory=list)
    expired: Sequence[Exemption] = ()
    """Exceptions that cover nothing any more, for owners to renew or remove."""
    unknown: list[Undetermined] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    """Why a region could not be looked at, by region."""
    api_calls: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "api_calls": self.api_calls,
            "seconds": round(self.seconds, 3),
            "findings": [_as_json(one) for one in self.findings],
            "exempted": [_as_json(one) | {"exemption": why.as_json()} for one, why in self.exempted],
            "expired_exceptions": [one.as_json() for one in self.expired],
            "unknown": [
                {
                    "check": one.check,
                    "resource_id": one.resource_id,
                    "region": one.region,
                    "account": one.account,
                    "reason": one.reason,
                }
                for one in self.unknown
            ],
            "errors": [
                {"region": region, "account": self.account, "error": error} for region, error in self.errors.items()
            ],
        }


def scan(regions: Sequence[str], exemptions: Exemptions, limits: Limits, now: datetime) -> Scan:
    """Look at `regions` with the caller's credentials.

    Raises:
        Permanent: the caller is nobody, or no region may be read.
        Retryable: AWS cannot be reached.
    """
    from lamplighter.cloud import access
    from lamplighter.kernel.errors import Permanent, Retryable

    clients = access.clients(regions[0], session_name="lamplighter-scan")
    done = Scan(account=_account(clients, regions), regions=regions, expired=exemptions.expired(now))

    def look(region: str) -> Judgement | str:
        try:
            return _look(clients.elsewhere(region), done.account, region, limits, now)
        except (Permanent, Retryable) as error:
            return str(error)

    with ThreadPoolExecutor(REGIONS_AT_A_TIME) as pool:
        for region, judgement in zip(regions, pool.map(look, regions), strict=True):
            if isinstance(judgement, str):
                done.errors[region] = judgement
                continue
            done.unknown += judgement.unknown
            for finding in judgement.findings:
                if exemption := exemptions.covering(finding, now):
                    done.exempted.append((finding, exemption))
                else:
                    done.findings.append(finding)
    if len(done.errors) == len(regions):
        raise Permanent(" ".join(done.errors.values()))
    done.findings.sort(key=_rank)
    done.api_calls = clients.calls
    return done


def _look(clients: Clients, account: str, region: str, limits: Limits, now: datetime) -> Judgement:
    from lamplighter.cloud import checks, reader
    from lamplighter.cloud.check import Basis, judge, wanted
    from lamplighter.cloud.prices import Prices

    every = checks.BY_ID.values()
    inventory = reader.read(clients, account=account, region=region, now=now, limits=limits, needs=wanted(every))
    return judge(inventory, Basis(now=now, limits=limits, prices=Prices.from_file(region)), every)


def _regions(named: Sequence[str]) -> list[str]:
    from lamplighter.cloud import access
    from lamplighter.kernel.errors import Permanent

    regions = list(dict.fromkeys(named)) or [own for own in [access.own_region()] if own]
    if not regions:
        raise Permanent("No region is set: give --region, or set AWS_DEFAULT_REGION.")
    known = access.regions()
    for region in regions:
        if region not in known:
            from difflib import get_close_matches

            like = [f"; did you mean {one}" for one in get_close_matches(region, sorted(known), n=1)]
            raise Permanent(f"region: AWS has none called {region}{''.join(like)}{'?' if like else '.'}")
    return regions


def _account(clients: Clients, regions: Sequence[str]) -> str:
    """Who asks: the account of the credentials, by the first region that knows it. One that is not enabled does not."""
    from botocore.exceptions import ClientError, NoCredentialsError

    from lamplighter.cloud.access import failures, is_passing
    from lamplighter.kernel.errors import Permanent, Retryable

    refusals = list[Exception]()
    for region in regions:
        try:
            return str(clients.elsewhere(region)("sts").get_caller_identity()["Account"])
        except NoCredentialsError:
            raise Permanent(
                "There are no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from None
        except failures() as error:
            refusals.append(error)
    first = refusals[0]
    if is_passing(first):
        raise Retryable(f"AWS cannot be reached: {first}") from first
    if isinstance(first, ClientError):
        raise Permanent(f"AWS does not accept these credentials: {first}") from first
    raise Permanent(f"The AWS configuration is not usable: {first}") from first


def _limits(environment: str | None) -> Limits:
    from lamplighter.kernel.cloud import Limits

    if not environment:
        return Limits()
    from lamplighter.kernel import settings

    return settings.parse({"cloud_limits": environment}, source=f"the environment ({LIMITS})").cloud.limits


def _exemptions(file: Path | None) -> Exemptions:
    from lamplighter.cloud.exemptions import Exemptions
    from lamplighter.kernel.errors import Permanent

    if file is None:
        return Exemptions()
    try:
        return Exemptions.parse(file.read_bytes())
    except OSError as error:
        raise Permanent(f"--exceptions: {file} cannot be read: {error.strerror}.") from None
    except (Permanent, UnicodeDecodeError) as error:
        raise Permanent(f"--exceptions: in {file}: {error}") from None


def _rank(finding: Finding) -> tuple[object, ...]:
    return -(finding.score or 0), SEVERITIES.index(finding.severity), finding.region, finding.check, finding.resource_id


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "resource_id": finding.resource_id,
        "region": finding.region,
        "account": finding.account,
        "severity": finding.severity,
        "monthly_usd": None if finding.monthly_usd is None else round(finding.monthly_usd, 2),
        "confidence": round(finding.confidence, 3),
        "evidence": dict(finding.evidence),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(
        prog="python -m local.scan",
        description="Look an AWS account over for waste and risk: read-only, with your own credentials.",
        epilog=f"{LIMITS}, a JSON object, says what counts as waste or risk, where not as documented (docs/checks.md).",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="table for people (the default)")
    parser.add_argument("--region", action="append", default=[], help="may be given several times; your own by default")
    parser.add_argument("--exceptions", type=Path, metavar="FILE", help="findings that somebody answers for, as JSON")
    asked = parser.parse_args(arguments)
    sys.path.insert(0, str(FUNCTIONS))  # the package that the functions are made of
    # botocore loads PyOpenSSL where it is installed, as moto's is here, only to find Python's own SSLContext behind it:
    # 10 MB and a twentieth of a second. Without it, it finds that at once.
    sys.modules.setdefault("urllib3.contrib.pyopenssl", None)  # type: ignore[arg-type]
    # And awscrt, 5 MB, which SAM CLI brings along: for credentials of `aws login`, which the environment's precede.
    if "AWS_ACCESS_KEY_ID" in os.environ:
        sys.modules.setdefault("awscrt", None)  # type: ignore[arg-type]
    from lamplighter.kernel.errors import Permanent, Retryable

    try:
        exemptions, limits = _exemptions(asked.exceptions), _limits(os.environ.get(LIMITS))
        done = scan(_regions(asked.region), exemptions, limits, datetime.now(UTC))
    except (Permanent, Retryable) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    done.seconds = time.perf_counter() - began
    if asked.format == "json":
        print(json.dumps(done.as_json()))
    else:
        from local.scan_table import show

        show(done)
    return 0


if __name__ == "__main__":
    gc.disable()  # nothing here makes cycles that pile up, of 10 000 instances neither; to look for them took a fifth
    sys.exit(main())
