"""Which keys does the database name? Columns of text that hold object keys, in whatever form their application chose.

A stored value is `prefix + tail`: the prefix is nothing, a slash, or the origin of a URL (`https://cdn.example.com/`,
`s3://bucket/`), the tail is the key: whole, without leading folders of `base_path`, behind the bucket's name
(path-style URLs), percent-encoded or not. A value that fits a key in any of these ways keeps the object.

1. `profile` reads each column once: which prefixes occur, how often, and, by asking the bucket for a sample of the
   values of each prefix, whether they name objects at all. Those that do not are *unmapped*, and counted: the governor
   must not mistake a mapping that fails for a bucket full of orphans (immich #7436).
2. `References.missing` sends a batch of keys as one parameter and gets back those that no row names, by the columns'
   ordinary indexes: first by the form that most values have, then the few that are left by every form.

The scan and the re-check before deletion ask the same question.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from pydantic import BaseModel

from lamplighter.kernel.errors import Permanent
from lamplighter.kernel.media import Reference

if TYPE_CHECKING:
    from sqlalchemy import Connection, TextClause

MAX_PREFIXES: Final = 20
"""Prefixes of a column that are told apart; values with others are unmapped."""
SAMPLE: Final = 20
"""Values of each prefix that are looked up in the bucket."""
MIN_FOUND_SHARE: Final = 0.5
"""Below this share of a prefix's sample, all values with the prefix count as unmapped."""
PROFILE_TIMEOUT: Final = timedelta(minutes=5)

_PLAIN: Final = re.compile(r"[A-Za-z0-9/_.~-]*")
"""Tails that every way of percent-encoding leaves as they are."""
_ENCODE_URI: Final = "/!#$&'()*+,:;=?@~"
"""What JavaScript's encodeURI leaves as it is, beside what Python's quote does."""
_ENCODE_URI_COMPONENT: Final = "/!'()*~"
"""The same for encodeURIComponent applied between slashes."""


class ColumnCount(BaseModel):
    """What `profile` found in one column: `values` that are not null, and how many of them can be mapped to keys."""

    column: str
    values: int
    mapped: int
    unmapped: int
    unmapped_examples: list[str] = []
    """Prefixes of unmapped values, with their counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """What the values of a column begin with, and how many do."""

    text: str
    count: int
    mappable: bool = True
    """False for what cannot name a key: an empty value, a URL with a query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a column writes most keys: `prefix` in place of the key's first `dropped` characters."""

    prefix: str = ""
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A reference column as `profile` found it."""

    source: str
    """`"schema"."table"`, quoted for SQL."""
    name: str
    """The column, quoted for SQL."""
    prefixes: tuple[str, ...]
    usual: Form
    count: ColumnCount


class References:
    """The columns that keep objects alive.

    Args:
        columns: as `profile` found them.
        bucket: whose objects they name.
        folder: the `base_path`, empty or ending with a slash.
    """

    def __init__(self, columns: Sequence[Column], *, bucket: str, folder: str) -> None:
        self.columns = columns
        self._bucket = bucket
        self._folder = folder
        self._usual = _usual_query(columns)
        self._any = _any_query(columns)

    def missing(self, connection: Connection, keys: Sequence[str]) -> list[int]:
        """The positions in `keys` (without NUL characters) of those that no row names, ascending."""
        if not keys:
            return []
        forms: dict[str, Any] = {}
        for n, column in enumerate(self.columns):
            forms |= {f"prefix{n}": column.usual.prefix, f"from{n}": column.usual.dropped + 1}
        rest = connection.execute(self._usual, forms | {"keys": json.dumps(keys, ensure_ascii=False)}).scalars()
        positions = [position - 1 for position in rest]
        spellings: list[str] = []
        owners: list[int] = []
        prefixes = {prefix for column in self.columns for prefix in column.prefixes}
        for position in positions:
            written = spell(keys[position], prefixes, bucket=self._bucket, folder=self._folder)
            spellings += written
            owners += [position] * len(written)
        found = connection.execute(self._any, {"keys": json.dumps(spellings, ensure_ascii=False)}).scalars()
        named = {owners[n - 1] for n in found}
        return sorted(position for position in positions if position not in named)


def spell(key: str, prefixes: Iterable[str], *, bucket: str, folder: str) -> set[str]:
    """Every value that would name `key`."""
    tails = {key[len(lead) :] for lead in _leads(folder) if key.startswith(lead)}
    encoded = {spelling for tail in tails for spelling in _encodings(tail)}
    in_bucket = {f"{bucket}/{spelling}" for spelling in _encodings(key)}
    return {prefix + tail for prefix in prefixes for tail in (encoded | in_bucket if prefix else encoded)}


def _leads(folder: str) -> list[str]:
    """The leading folders of `base_path` that a stored value may lack: `a/b/` gives nothing, `a/`, `a/b/`."""
    return [folder[:end] for end in range(len(folder) + 1) if end == 0 or folder[end - 1] == "/"]


def _encodings(tail: str) -> set[str]:
    if _PLAIN.fullmatch(tail):
        return {tail}
    upper = {
        quote(tail),
        quote_plus(tail, safe="/"),
        quote(tail, safe=_ENCODE_URI),
        quote(tail, safe=_ENCODE_URI_COMPONENT),
    }
    lower = {re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), text) for text in upper}
    return {tail} | upper | lower


def profile(
    connection: Connection, references: Sequence[Reference], *, bucket: str, folder: str, exists: Callable[[str], bool]
) -> References:
    """Finds out what the columns hold.

    Args:
        connection: in a transaction of its own; reads each column once.
        references: the columns, at least one.
        bucket: the bucket that is to be cleaned.
        folder: its `base_path`, empty or ending with a slash.
        exists: whether the bucket holds a key.

    Raises:
        Permanent: a column does not exist or is not of text; names `references`.
    """
    from lamplighter.kernel.database import bound_statements

    bound_statements(connection, statement=PROFILE_TIMEOUT)
    columns = [_profile(connection, reference, bucket, folder, exists) for reference in references]
    return References(columns, bucket=bucket, folder=folder)


def _profile(
    connection: Connection, reference: Reference, bucket: str, folder: str, exists: Callable[[str], bool]
) -> Column:
    source, name = _identify(connection, reference)
    prefixes, total = _prefixes(connection, source, name)
    usual, usual_count, mapped, bad = Form(), 0, 0, []
    for prefix in prefixes:
        forms: Counter[Form] = Counter()
        sample = _sample(connection, source, name, prefix) if prefix.mappable else []
        for value in sample:
            form = _form(value, prefix.text, bucket, folder, exists)
            forms.update([form] if form else [])
        if forms.total() < max(1, MIN_FOUND_SHARE * len(sample)):
            why = f"{forms.total()} of {len(sample)} sampled found" if prefix.mappable else "empty, or with a query"
            bad.append(f"{prefix.text or 'no prefix'} ({prefix.count}, {why})")
            continue
        mapped += prefix.count
        if prefix.count > usual_count:
            usual, usual_count = forms.most_common(1)[0][0], prefix.count
    if others := total - sum(prefix.count for prefix in prefixes):
        bad.append(f"further prefixes ({others})")
    count = ColumnCount(
        column=str(reference), values=total, mapped=mapped, unmapped=total - mapped, unmapped_examples=bad
    )
    seen = {prefix.text for prefix in prefixes}
    return Column(source=source, name=name, prefixes=("", "/", *sorted(seen - {"", "/"})), usual=usual, count=count)


def _identify(connection: Connection, reference: Reference) -> tuple[str, str]:
    """The quoted names of table and column."""
    from sqlalchemy import text

    quoted = connection.dialect.identifier_preparer.quote_identifier
    source = ".".join(quoted(part) for part in reference.table.split(".", 1))
    kind = connection.execute(
        text(
            "SELECT to_regclass(:source) IS NOT NULL, (SELECT format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = to_regclass(:source) AND attname = :name AND attnum > 0 AND NOT attisdropped)"
        ),
        {"source": source, "name": reference.column},
    ).one()
    if not kind[0]:
        raise Permanent(f"references: there is no table {reference.table} in the database.")
    if kind[1] is None:
        raise Permanent(f"references: the table {reference.table} has no column {reference.column}.")
    if kind[1] not in {"text", "character varying"}:
        raise Permanent(f"references: {reference} is of type {kind[1]}; a column of text or varchar is needed.")
    return source, quoted(reference.column)


def _prefixes(connection: Connection, source: str, name: str) -> tuple[list[Prefix], int]:
    """The most frequent prefixes of a column, and how many values it has in all."""
    from sqlalchemy import text

    rows = connection.execute(
        text(
            f"""
            SELECT prefix, mappable, count(*) AS n, sum(count(*)) OVER () AS total
            FROM (
                SELECT CASE
                    WHEN left(v, 2) = '//' THEN '//' || split_part(v, '/', 3) || '/'
                    WHEN left(v, 1) = '/' THEN '/'
                    WHEN strpos(v, '://') > 0 AND split_part(v, '://', 1) ~ '^[A-Za-z][A-Za-z0-9+.-]*$'
                        THEN split_part(v, '/', 1) || '//' || split_part(v, '/', 3) || '/'
                    ELSE ''
                END AS prefix,
                v <> '' AND NOT (strpos(v, '://') > 0 AND strpos(v, '?') + strpos(v, '#') > 0) AS mappable
                FROM (SELECT {name} AS v FROM {source} WHERE {name} IS NOT NULL) AS reference
            ) AS form
            GROUP BY prefix, mappable ORDER BY n DESC, prefix LIMIT {MAX_PREFIXES}
            """  # noqa: S608 - identifiers quoted by `_identify`
        )
    ).all()
    prefixes = [Prefix(text=row.prefix, count=row.n, mappable=row.mappable) for row in rows]
    return prefixes, int(rows[0].total) if rows else 0


def _sample(connection: Connection, source: str, name: str, prefix: Prefix) -> Sequence[str]:
    """A few values that begin with `prefix`, from all over the table."""
    from sqlalchemy import text

    others = f"AND left({name}, 1) <> '/' AND strpos({name}, '://') = 0"  # what `_prefixes` calls by other names
    if "://" in prefix.text:
        others = f"AND strpos({name}, '?') + strpos({name}, '#') = 0"
    elif prefix.text:
        others = ""
    return (
        connection.execute(
            text(
                f"SELECT {name} FROM {source} WHERE {name} <> '' AND starts_with({name}, :prefix) {others}"  # noqa: S608
                " AND random() < :share LIMIT :sample"
            ),
            {"prefix": prefix.text, "share": 1.5 * SAMPLE / prefix.count, "sample": SAMPLE},
        )
        .scalars()
        .all()
    )


def _form(value: str, prefix: str, bucket: str, folder: str, exists: Callable[[str], bool]) -> Form | None:
    """How `value` names an object that the bucket holds, or None if it names none."""
    tail = value.removeprefix(prefix)
    tries = [(Form(prefix=prefix, dropped=len(lead)), lead + tail) for lead in _leads(folder)]
    if prefix and tail.startswith(f"{bucket}/"):
        tries.append((Form(prefix=f"{prefix}{bucket}/"), tail.removeprefix(f"{bucket}/")))
    for form, key in tries:
        if any(exists(spelling) for spelling in {key, unquote(key), unquote_plus(key)}):
            return form
    return None


def _usual_query(columns: Sequence[Column]) -> TextClause:
    """Positions of the keys that no column holds in its usual form.

    The keys travel as one JSON array: it can hold whatever a key can (any separator could be part of one), and costs
    what splitting a string costs. The planner expects few rows of it, hence looks each key up in the index.
    """
    from sqlalchemy import text

    conditions = " AND ".join(
        f"NOT EXISTS (SELECT FROM {column.source} AS r WHERE r.{column.name} = :prefix{n} || substr(t.key, :from{n}))"
        for n, column in enumerate(columns)
    )
    return text(f"SELECT n FROM {_KEYS} WHERE {conditions}")  # noqa: S608 - identifiers quoted by `_identify`


def _any_query(columns: Sequence[Column]) -> TextClause:
    """Positions of the values that some column holds."""
    from sqlalchemy import text

    conditions = " OR ".join(
        f"EXISTS (SELECT FROM {column.source} AS r WHERE r.{column.name} = t.key)" for column in columns
    )
    return text(f"SELECT n FROM {_KEYS} WHERE {conditions}")  # noqa: S608 - identifiers quoted by `_identify`


_KEYS: Final = "json_array_elements_text(CAST(:keys AS json)) WITH ORDINALITY AS t(key, n)"
