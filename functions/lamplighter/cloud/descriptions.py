"""Reads botocore's descriptions of services piece by piece, as operations and shapes are asked for.

EC2's is the largest of all: read as a whole it takes a tenth of a second and 30 MB, nearly all for operations that
nobody here calls. What documents something is left out, and dictionaries are plain ones, which keep their order, too.
"""

from __future__ import annotations

import gzip
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from botocore.loaders import JSONFileLoader

SECTIONS: Final = ("operations", "shapes")
_ENTRY: Final = re.compile(rb'\n    "(\w+)":(?={)')
"""Where an entry of a section begins, by how botocore's files are indented; strings have no line breaks in JSON."""
_DOCUMENTATION: Final = re.compile(rb'"documentation":"[^\n]*"')
"""A line of its own, up to the comma."""


class PiecewiseLoader(JSONFileLoader):
    """For botocore's `Loader(file_loader=...)`."""

    def load_file(self, file_path: str) -> Any:
        """What is in the file of this name, which is without its ending; None where there is no such file."""
        for path, opener in ((Path(f"{file_path}.json"), open), (Path(f"{file_path}.json.gz"), gzip.open)):
            if path.is_file():
                with opener(path, "rb") as file:
                    text = file.read()
                if path.name.startswith("service-2."):
                    with suppress(ValueError):  # written otherwise than expected: read as a whole
                        return piecewise(text)
                return json.loads(text)
        return None


class Section(dict[str, Any]):
    """Entries by name, each read when it is asked for."""

    def __init__(self, text: bytes) -> None:
        starts = list(_ENTRY.finditer(text))
        if not starts or starts[0].start():
            raise ValueError("no entries, or something before them")
        ends = [*(found.start() for found in starts[1:]), len(text)]
        super().__init__(
            (found[1].decode(), text[found.end() : end].rstrip(b",\n "))
            for found, end in zip(starts, ends, strict=True)
        )

    def __getitem__(self, name: str) -> Any:
        entry = super().__getitem__(name)
        if isinstance(entry, bytes):
            entry = self[name] = json.loads(entry)
        return entry


def piecewise(text: bytes) -> dict[str, Any]:
    """A service's description, its sections to be read later.

    Raises:
        ValueError: it is not written as botocore's files are.
    """
    text = _DOCUMENTATION.sub(b'"documentation":""', text)
    sections: dict[str, Section] = {}
    for name in SECTIONS:
        head = b'\n  "%s":{' % name.encode()
        start = text.index(head) + len(head)
        end = text.index(b"\n  }", start)
        sections[name] = Section(text[start:end])
        text = text[:start] + text[end:]
    description: dict[str, Any] = json.loads(text)
    return description | sections
