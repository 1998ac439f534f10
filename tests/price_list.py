"""The AWS Price List as `GetProducts` answers: a JSON document for each product, in a string."""

from __future__ import annotations

import json
from typing import Any


def product(usagetype: str, unit: str, *dimensions: tuple[str, str], family: str = "Storage", **attributes: str) -> str:
    """A product with one on-demand term, whose `dimensions` are where each begins and its dollars."""
    sku = "J4T9Z6QFX2M8B7WD"
    term = f"{sku}.JRTCKXETXF"
    return json.dumps(
        {
            "product": {
                "productFamily": family,
                "attributes": {
                    "regionCode": "eu-west-1",
                    "servicecode": "AmazonEC2",
                    "servicename": "Amazon Elastic Compute Cloud",
                    "location": "EU (Ireland)",
                    "locationType": "AWS Region",
                    "usagetype": usagetype,
                    **attributes,
                },
                "sku": sku,
            },
            "serviceCode": "AmazonEC2",
            "terms": {
                "OnDemand": {
                    term: {
                        "priceDimensions": {
                            f"{term}.{number}": {
                                "unit": unit,
                                "endRange": "Inf",
                                "description": f"${usd} per {unit}",
                                "appliesTo": [],
                                "rateCode": f"{term}.{number}",
                                "beginRange": begin,
                                "pricePerUnit": {"USD": usd},
                            }
                            for number, (begin, usd) in enumerate(dimensions)
                        },
                        "sku": sku,
                        "effectiveDate": "2026-11-01T00:00:00Z",
                        "offerTermCode": "JRTCKXETXF",
                        "termAttributes": {},
                    }
                },
                "Reserved": {},
            },
            "version": "20261101000000",
            "publicationDate": "2026-11-01T00:00:00Z",
        }
    )


def instance(type_: str, operation: str, usd: str) -> str:
    """An instance on demand, in shared tenancy."""
    return product(
        f"EU-BoxUsage:{type_}",
        "Hrs",
        ("0", usd),
        family="Compute Instance",
        instanceType=type_,
        operation=operation,
        tenancy="Shared",
        capacitystatus="Used",
        marketoption="OnDemand",
    )


GP3 = (
    product("EU-EBS:VolumeUsage.gp3", "GB-Mo", ("0", "0.0880000000"), volumeApiName="gp3"),
    product(
        "EU-EBS:VolumeP-IOPS.gp3",
        "IOPS-Mo",
        ("0", "0.0000000000"),
        ("3000", "0.0055000000"),
        family="System Operation",
        volumeApiName="gp3",
        group="EBS IOPS",
    ),
    product(
        "EU-EBS:VolumeP-Throughput.gp3",
        "GiBps-mo",
        ("0", "0.0000000000"),
        ("0.1220703125", "45.0560000000"),
        family="Provisioned Throughput",
        volumeApiName="gp3",
    ),
)
SNAPSHOTS = (
    product("EU-EBS:SnapshotUsage", "GB-Mo", ("0", "0.0510000000"), family="Storage Snapshot"),
    product("EU-EBS:SnapshotArchiveStorage", "GB-Mo", ("0", "0.0126000000"), family="Storage Snapshot"),
    product("EU-EBS:SnapshotUsageUnderBilling", "GB-Mo", ("0", "0.0000000000"), family="Storage Snapshot"),
    product("EU-EBS:SnapshotUsage.outposts", "GB-Mo", ("0", "0.9000000000"), family="Storage Snapshot"),
)


def page(*products: str, more: str | None = None) -> dict[str, Any]:
    """An answer of `GetProducts`."""
    return {"FormatVersion": "aws_v1", "PriceList": list(products), **({"NextToken": more} if more else {})}
