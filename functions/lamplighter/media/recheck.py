"""Asks the database once more, right before a deletion, whether a row holds a key in a usual form.

The second reading decides (`lamplighter.media.scan`). This is an additional guard against rows written since, and costs
a look-up each: only columns of plain text with an index are asked, and only for the key itself, with a slash before it,
without leading folders of `base_path`, and percent-encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from lamplighter.kernel.media import Reference

_PLAIN: Final = re.compile(r"[A-Za-z0-9/_.~-]*")
"""Tails that every way of percent-encoding leaves as they are."""
_ENCODE_URI: Final = "/!#$&'()*+,:;=?@~"
"""What JavaScript's encodeURI leaves as it is, besides what Python's quote does."""


class Recheck:
    """The columns that can be asked by their index.

    Args:
        connection: outside of a transaction.
        references: all columns.
        folder: the `base_path`, empty or ending with a slash.
        max_lag: how far behind its primary a standby may be.
    """

    def __init__(
        self, connection: Connection, references: Sequence[Reference], *, folder: str, max_lag: timedelta
    ) -> None:
        self._connection = connection
        self._folder = folder
        self._max_lag = max_lag
        with connection.begin():
            columns = [found for one in references if (found := _indexed(connection, one))]
        self._query = _query(columns) if columns else None

    def named(self, keys: Sequence[str]) -> set[int]:
        """The positions of those keys that a row holds in a usual form.

        Raises:
            Permanent: the rows cannot be seen in full.
        """
        if self._query is None or not keys:
            return set()
        from lamplighter.kernel.database import whole_view

        spellings: list[str] = []
        owners: list[int] = []
        for position, key in enumerate(keys):
            written = sorted(spell(key, self._folder))
            spellings += written
            owners += [position] * len(written)
        with self._connection.begin():
            whole_view(self._connection, max_lag=self._max_lag)
            found = self._connection.execute(self._query, {"keys": json.dumps(spellings, ensure_ascii=False)})
            return {owners[n - 1] for n in found.scalars()}


def spell(key: str, folder: str) -> set[str]:
    """The usual values that would name `key`."""
    leads = [folder[:end] for end in range(len(folder) + 1) if end == 0 or folder[end - 1] == "/"]
    tails = {key.removeprefix(lead) for lead in leads}
    encoded = {spelling for tail in tails for spelling in _encodings(tail)}
    return encoded | {f"/{tail}" for tail in encoded}


def _encodings(tail: str) -> set[str]:
    if _PLAIN.fullmatch(tail):
        return {tail}
    return {tail, quote(tail), quote_plus(tail, safe="/"), quote(tail, safe=_ENCODE_URI)}


def _indexed(connection: Connection, reference: Reference) -> tuple[str, str] | None:
    """The quoted names of table and column, if it is a column of text with an index of its own."""
    from sqlalchemy import text

    if reference.kind not in {None, "text"} or reference.folder:
        return None
    quoted = connection.dialect.identifier_preparer.quote_identifier
    source = ".".join(quoted(part) for part in reference.table.split(".", 1))
    found = connection.execute(
        text(
            "SELECT EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid"
            "  AND a.attnum = i.indkey[0] JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS m ON m.oid = c.relam"
            " WHERE i.indrelid = to_regclass(:source) AND a.attname = :name AND a.atttypid IN (25, 1043)"
            "  AND i.indisvalid AND i.indpred IS NULL AND m.amname IN ('btree', 'hash'))"
        ),
        {"source": source, "name": reference.column},
    ).scalar_one()
    return (source, quoted(reference.column)) if found else None


def _query(columns: Sequence[tuple[str, str]]) -> Any:
    """Positions of the values that some column holds.

    The values travel as one JSON array: it can hold whatever a key can. The planner expects few rows of it, hence looks
    each up in the index.
    """
    from sqlalchemy import text

    conditions = " OR ".join(
        f"EXISTS (SELECT FROM {source} AS r WHERE r.{name} = t.key)".replace(":", r"\:") for source, name in columns
    )
    return text(
        f"SELECT n FROM json_array_elements_text(CAST(:keys AS json)) WITH ORDINALITY AS t(key, n) WHERE {conditions}"  # noqa: S608
    )
