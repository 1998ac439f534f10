"""`lamplighter.cloud.descriptions` says of services what botocore says."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import botocore
import pytest
from botocore.loaders import JSONFileLoader, Loader
from botocore.model import ServiceModel

from lamplighter.cloud.descriptions import SECTIONS, PiecewiseLoader, Section

DOCUMENTS = "documentation"
DATA = Path(botocore.__file__).with_name("data")


def newest(service: str) -> str:
    """The service's description, as loaders are asked for it."""
    return str(max(path for path in (DATA / service).iterdir() if path.is_dir()) / "service-2")


def undocumented(value: Any) -> Any:
    """As plain data, without what documents it."""
    if isinstance(value, dict):
        return {name: undocumented(one) for name, one in value.items() if not isinstance(one, str) or name != DOCUMENTS}
    return [undocumented(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("service", ["ec2", "elbv2", "cloudwatch", "logs", "sts", "rbin"])
def test_every_operation_and_shape_is_botocores(service: str) -> None:
    ours = PiecewiseLoader().load_file(newest(service))
    theirs = JSONFileLoader().load_file(newest(service))

    assert list(ours) == list(theirs)
    for section in SECTIONS:
        assert isinstance(ours[section], Section), "It was read as a whole: botocore writes its files otherwise now."
        assert list(ours[section]) == list(theirs[section])
        for name, entry in theirs[section].items():
            assert undocumented(ours[section][name]) == undocumented(entry)
            assert list(ours[section][name].get("members", ())) == list(entry.get("members", ()))
    for name in set(theirs) - {*SECTIONS, DOCUMENTS}:
        assert undocumented(ours[name]) == undocumented(theirs[name])


def test_only_what_is_asked_for_is_read() -> None:
    description = Loader(file_loader=PiecewiseLoader()).load_service_model("ec2", "service-2")
    model = ServiceModel(description, "ec2")

    assert model.operation_model("DescribeVolumes").input_shape.members["MaxResults"].type_name == "integer"
    read = [name for name, entry in dict.items(description["shapes"]) if not isinstance(entry, bytes)]
    assert "DescribeVolumesRequest" in read
    assert len(read) < 20


@pytest.mark.parametrize(
    "text",
    [
        '{"operations": {"A": {"name": "A"}}, "shapes": {}}',
        '{\n  "operations":{\n      "A":{}\n  },\n  "shapes":{\n    "B":{}\n  }\n}',
        '{\n  "operations":{\n    "A":{}\n  }\n}',
    ],
)
def test_what_is_written_otherwise_is_read_as_a_whole(tmp_path: Path, text: str) -> None:
    file = tmp_path / "service-2.json.gz"
    file.write_bytes(gzip.compress(text.encode()))
    name = str(tmp_path / "service-2")

    assert PiecewiseLoader().load_file(name) == JSONFileLoader().load_file(name)


def test_other_files_are_read_as_ever() -> None:
    loader = PiecewiseLoader()
    for name in ("endpoints", "ec2/2016-11-15/paginators-1", "sts/2011-06-15/endpoint-rule-set-1"):
        assert loader.load_file(str(DATA / name)) == JSONFileLoader().load_file(str(DATA / name))
    assert loader.load_file(str(DATA / "nothing")) is None
