"""The preflight of the orphan cleanup: its bucket, its columns, and columns that it may lack (REQUIREMENTS O4, S5, S6).

Whether a file is an orphan is not asked here: a preview of `orphan_cleanup` reads every value and lists the bucket.
Here the bucket is listed for `LISTING` at most, and a few values of each column are looked up in it. That is a sample,
and the items call it one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from lamplighter.deletion import buckets, claims
from lamplighter.deletion.ramp import FIRST_OBJECTS
from lamplighter.kernel.errors import Permanent, Retryable
from lamplighter.kernel.media import Reference, folder_of
from lamplighter.kernel.preflight import (
    S3_STORAGE,
    Item,
    Look,
    Severity,
    amount,
    counted,
    explained,
    failures,
    not_reached,
    period,
    sentence,
)
from lamplighter.media import documents, listing, values
from lamplighter.media.extensions import is_media
from lamplighter.media.folding import Scope, bare_paths, fold_batch, readings

if TYPE_CHECKING:
    from sqlalchemy import Connection

NAME: Final = "media.references"
BUCKET: Final = "media.bucket"
LISTING: Final = timedelta(seconds=15)
"""For how long the bucket is listed ..."""
LISTED: Final = 50_000
"""... and how many of its objects at most."""
COUNTING: Final = timedelta(seconds=5)
"""How long counting the values of a column may take."""
SAMPLING: Final = timedelta(seconds=1)
"""How long reading a few values of a column may take."""
RESERVE: Final = timedelta(seconds=30)
"""Of the preflight's time, what the columns leave to the rest."""
SEARCHING: Final = timedelta(seconds=30)
"""How long columns that may name files are looked for, altogether."""
LOOKED_INTO: Final = 400
"""Columns of which values are read."""
SAMPLE: Final = 20
"""Values of a column."""
LONGEST: Final = 8_192
"""Bytes of a value that is sampled, as stored."""
ASKED: Final = 5
"""Values of a column that are looked for in a bucket which was not listed whole."""
PROPOSED: Final = 20
"""Columns that are proposed."""
SECONDS_PER_KEY: Final = 21.01 / 1_000_000
"""Of a scan, for each object and as many values (bench/README.md, "Orphan scan")."""
PER_REQUEST: Final = 0.005 / 1_000
"""Dollars of a listing request, of up to 1 000 objects (Amazon S3 Pricing, us-east-1)."""

_LIKELY: Final = (
    "(key|path|file|image|img|photo|picture|avatar|thumb|video|media|attachment|logo|cover|banner|icon|url|src|asset|"
    "document|upload|body|content|html)"
)
"""Names of columns that are looked into first."""
_COLUMNS: Final = """
    SELECT nspname AS schema, relname AS table, attname AS column, base.typname AS type,
        base.typcategory = 'A' AS is_array
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
    JOIN pg_type ON pg_type.oid = atttypid
    JOIN pg_type AS base ON base.oid = CASE pg_type.typtype WHEN 'd' THEN pg_type.typbasetype ELSE pg_type.oid END
    WHERE relkind IN ('r', 'p', 'm') AND NOT relispartition AND nspname !~ '^(pg_|information_schema$)'
        AND nspname <> :own
        AND base.typname IN ('text', 'varchar', 'bpchar', 'citext', 'json', 'jsonb', '_text', '_varchar')
        AND has_schema_privilege(relnamespace, 'USAGE') AND has_column_privilege(pg_class.oid, attnum, 'SELECT')
        AND NOT row_security_active(pg_class.oid) AND reltuples <> 0
        AND strpos(nspname || relname || attname, '.') = 0 AND strpos(nspname || relname || attname, ',') = 0
    ORDER BY attname !~* :likely, reltuples DESC, nspname, relname, attnum LIMIT :most
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """What the bucket holds below the folder, as far as it was listed."""

    count: int
    bytes: int
    is_whole: bool
    """Whether all of it was listed."""
    folded: frozenset[str]


def part(look: Look) -> Iterator[Item]:
    """Items on the bucket, each column, and columns that are not declared."""
    rules = look.settings.media
    if not rules.enabled:
        yield Item(severity=Severity.NOTE, name="media.enabled", sentence="The orphan cleanup is switched off.")
        return
    bucket, folder = look.environment.get("MEDIA_BUCKET", ""), folder_of(rules.base_path)
    fault = Severity.of_fault(applied=rules.apply)
    objects = yield from _bucket(look, bucket, folder, fault)
    if look.engine is None:
        yield Item(
            severity=Severity.NOTE,
            name=NAME,
            sentence="The columns that name files were not looked at, because there is no database to look into.",
        )
        return
    lookup = _lookup(look, bucket, folder, objects)
    for position, reference in enumerate(rules.references):
        if look.left() < RESERVE:
            yield not_reached(NAME)
            return
        try:
            yield from _reference(look, position, reference, fault=fault, lookup=lookup)
        except failures() as error:
            yield Item(
                severity=fault,
                name=NAME,
                sentence=sentence(
                    f"{reference} cannot be read, so the orphan cleanup refuses to run: {explained(error)}"
                ),
                advice="Grant SELECT on the column, or correct media.references.",
            )
    try:
        yield from _undeclared(look, lookup)
    except failures() as error:
        yield Item(
            severity=Severity.WARNING,
            name=NAME,
            sentence=f"Columns that are not declared could not be searched. {explained(error)}",
            advice="Check that every column that names a file is in media.references.",
        )


# -- the bucket --------------------------------------------------------------------------------------------------------


def _bucket(look: Look, bucket: str, folder: str, fault: Severity) -> Generator[Item, None, Objects | None]:
    """Items on the bucket. Returns what it holds, None where it cannot be listed."""
    rules = look.settings.media
    if problem := buckets.listing_problem(look.s3, bucket):
        yield Item(severity=fault, name=BUCKET, sentence=problem[0], advice=problem[1])
        return None
    severity = Severity.NOTE if rules.allow_unversioned else fault
    days = int(look.environment.get("UNDO_DAYS") or 30)
    yield from buckets.undo_items(look.s3, bucket, folder, name=BUCKET, days=days, severity=severity)
    stack = claims.Stack.of_environment(look.environment)
    try:
        taken = claims.look(look.s3, bucket, folder, stack=stack, now=look.now)
    except failures() as error:
        taken = f"Whether another stack cleans {bucket} could not be read. {explained(error)}"
    if taken:
        yield Item(
            severity=fault, name=BUCKET, sentence=sentence(taken), advice="Give each stack a folder (media.base_path)."
        )
    try:
        objects = _list(look, bucket, folder)
    except failures() as error:
        yield Item(
            severity=fault,
            name=BUCKET,
            sentence=f"The bucket {bucket} could not be listed. {explained(error)}",
            advice="Correct what the sentence names.",
        )
        return None
    yield _holds(look, bucket, folder, objects)
    return objects


def _list(look: Look, bucket: str, folder: str) -> Objects:
    """The first objects below the folder."""
    end = look.left() - min(LISTING, look.left() / 4)
    count, size, folded, is_whole = 0, 0, set[str](), True
    for batch in listing.batches(look.s3, bucket, folder):
        count += len(batch)
        size += sum(int(one[3]) for one in batch)
        folded.update(fold_batch([one[0] for one in batch]))
        if count >= LISTED or look.left() < end:
            is_whole = False
            break
    return Objects(count=count, bytes=size, is_whole=is_whole, folded=frozenset(folded))


def _holds(look: Look, bucket: str, folder: str, objects: Objects) -> Item:
    where = f"{bucket}/{folder}" if folder else bucket
    least = "" if objects.is_whole else "at least "
    rules = look.settings.media
    first = f"The first run in earnest removes at most {FIRST_OBJECTS} of them. " if rules.ramp else ""
    seconds, dollars = objects.count * SECONDS_PER_KEY, -(-objects.count // 1000) * PER_REQUEST
    facts: dict[str, Any] = {
        "applied": rules.apply,
        "objects": objects.count,
        "bytes": objects.bytes,
        "listed_whole": objects.is_whole,
        "scan_seconds": round(seconds, 1),
        "scan_listing_usd": round(dollars, 4),
        "rates": 'bench/README.md, "Orphan scan": 1 000 000 keys and as many values took 21 s; Amazon S3 Pricing',
        "storage_usd_a_month": round(objects.bytes / 1e9 * S3_STORAGE.usd, 2),
        "storage_price": S3_STORAGE.source,
        "unknown": "s3:DeleteObject and s3:DeleteObjectVersion are known only to a run that deletes",
    }
    return Item(
        severity=Severity.NOTE,
        name=BUCKET,
        sentence=f"The orphan cleanup {'is applied' if rules.apply else 'only previews'}. {where} holds {least}"
        f"{counted(objects.count, 'object')} ({amount(objects.bytes)}). {first}A scan takes {least}{period(seconds)} "
        f"and {least}{_cents(dollars)} of listing. Whether the functions may delete is known only to a run that does.",
        advice="" if rules.apply else "Preview `orphan_cleanup`: it says which files no row names.",
        facts=facts,
        settings=None if rules.apply else {"media": {"apply": False}},
    )


def _cents(dollars: float) -> str:
    return f"{dollars:,.2f} USD" if dollars >= 0.01 else "less than a cent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Which values name an object of the bucket."""

    names: Callable[[str], bool]
    most: int
    """Values that are asked about: of a bucket that was not listed whole, each takes requests."""
    is_empty: bool


def _lookup(look: Look, bucket: str, folder: str, objects: Objects | None) -> Lookup | None:
    """None where the bucket cannot be asked."""
    if objects is None:
        return None
    scope = Scope(bucket, folder)

    def listed(value: str) -> bool:
        return any(reading in objects.folded for reading in readings(value, scope))

    def asked(value: str) -> bool:
        path = bare_paths(value)[-1].lstrip("/")
        paths = dict.fromkeys(one.removeprefix(f"{bucket}/") for one in (path, unquote(path)))
        keys = dict.fromkeys(lead + one for one in paths for lead in ("", folder) if (lead + one).startswith(folder))
        return any(listing.look(look.s3, bucket, key) for key in keys)

    names = listed if objects.is_whole else lambda value: listed(value) or asked(value)
    is_empty = objects.is_whole and not objects.count
    return Lookup(names=names, most=SAMPLE if objects.is_whole else ASKED, is_empty=is_empty)


# -- declared columns --------------------------------------------------------------------------------------------------


def _reference(
    look: Look, position: int, reference: Reference, *, fault: Severity, lookup: Lookup | None
) -> Iterator[Item]:
    """An item on a column: how many values it has, and whether a few of them name objects."""
    age = timedelta(hours=look.settings.media.min_age_hours)
    try:
        with look.reading(statement=COUNTING) as connection:
            column = values.identified(connection, position, reference, max_lag=age)
            rows, size = _size(connection, reference)
    except (Permanent, Retryable) as error:
        yield Item(
            severity=fault,
            name=NAME,
            sentence=sentence(str(error).removeprefix("references: ")) + " The orphan cleanup refuses to run.",
            advice="Correct media.references, or grant SELECT on the column.",
        )
        return
    number, is_exact = _count(look, column, rows)
    short = f" WHERE pg_column_size({_quoted(reference.column)}) < {LONGEST}"
    texts = _sample(look, f"SELECT {column.expression} AS x FROM {column.source}{short}")  # noqa: S608 - as `identified`
    sample = _values(texts, column.kind)[: lookup.most if lookup else SAMPLE]
    found = None if lookup is None else sum(map(lookup.names, sample))
    facts: dict[str, Any] = {
        "column": str(reference),
        "values": number,
        "values_are": "counted" if is_exact else "estimated from pg_class",
        "table_bytes_estimated": size,
        "sampled": len(sample),
        "sampled_that_name_an_object": found,
        "scan_seconds": round(max(number, 0) * SECONDS_PER_KEY, 1),
    }
    about = "" if is_exact else "about "
    if number == 0 or (number < 0 and not sample):
        yield Item(
            severity=Severity.WARNING,
            name=NAME,
            sentence=f"{reference} has no values; a cleanup refuses when no reference names a file.",
            advice="Correct media.references, unless the application has not stored a file yet.",
            facts=facts,
        )
        return
    words = f"{reference} has {about}{number:,} values" if number >= 0 else f"{reference} has values"
    checked = f"; of a sample of {len(sample)}, {found} name an object of the bucket" if found is not None else ""
    unknown = lookup is not None and found == 0 and len(sample) >= ASKED and not lookup.is_empty
    yield Item(
        severity=Severity.WARNING if unknown else Severity.NOTE,
        name=NAME,
        sentence=f"{words}{checked}. Reading them takes {period(max(number, 0) * SECONDS_PER_KEY)}.",
        advice="Declare how the column writes keys (strip, elsewhere, folder, kind), or correct media.base_path."
        if unknown
        else "",
        facts=facts,
    )


def _size(connection: Connection, reference: Reference) -> tuple[float, int]:
    """Rows and bytes of a table, estimated; -1 where the database has no estimate, as of views."""
    from lamplighter.kernel import inspection

    oid = inspection.locate(connection, reference.table)
    if oid is None:
        return -1, 0
    description = inspection.describe(connection, oid)
    return (-1 if description.kind in "vf" else description.rows), description.bytes


def _count(look: Look, column: Any, estimated: float) -> tuple[int, bool]:
    """The values of a column, and whether they were counted."""
    from sqlalchemy.exc import DBAPIError

    try:
        with look.reading(statement=COUNTING) as connection:
            query = f"SELECT count(x) FROM (SELECT {column.expression} AS x FROM {column.source}) AS v"  # noqa: S608
            return int(connection.exec_driver_sql(query).scalar_one()), True
    except DBAPIError:
        return int(estimated), False


def _sample(look: Look, query: str) -> list[str]:
    """A few texts that a query gives. Empty where reading takes too long, or is refused."""
    from sqlalchemy.exc import DBAPIError

    limited = f"SELECT left(x, {LONGEST}) FROM ({query} LIMIT 1000) AS v WHERE x IS NOT NULL LIMIT {SAMPLE}"  # noqa: S608
    try:
        with look.reading(statement=SAMPLING) as connection:
            return [str(one) for one in connection.exec_driver_sql(limited).scalars()]
    except DBAPIError:
        return []


def _values(texts: Sequence[str], kind: str) -> list[str]:
    """The values that texts of a kind hold; of documents, what names media."""
    if kind == "html":
        found = [text for text, is_counted in documents.in_markup(texts) if is_counted]
    elif kind == "json":
        found = [text for text, is_counted in documents.in_json(texts) if is_counted]
    else:
        found = [text for text in texts if text.strip()]
    return found[:SAMPLE]


# -- columns that are not declared -------------------------------------------------------------------------------------


def _undeclared(look: Look, lookup: Lookup | None) -> Iterator[Item]:
    """Columns that are no reference, and hold values that name objects of the bucket, or look as if they did."""
    from lamplighter.kernel.database import SCHEMA

    asked = {"own": SCHEMA, "likely": _LIKELY, "most": LOOKED_INTO}
    with look.reading(statement=COUNTING) as connection:
        from sqlalchemy import text

        columns = connection.execute(text(_COLUMNS), asked).all()
        declared = {_resolved(connection, one) for one in look.settings.media.references}
    end = look.left() - min(SEARCHING, look.left() / 2)
    number = 0
    for done, one in enumerate(columns):
        if number == PROPOSED or look.left() < end:
            yield Item(
                severity=Severity.WARNING,
                name=NAME,
                sentence=f"Only {done} of {len(columns)} columns were searched for names of files.",
                advice="Check the others yourself: a column that is not declared keeps no file.",
            )
            break
        if (one.schema, one.table, one.column) in declared:
            continue
        if item := _candidate(look, one, lookup):
            number += 1
            yield item


def _resolved(connection: Connection, reference: Reference) -> tuple[str, str, str]:
    """Schema, table and column of a reference as the catalogue has them."""
    from sqlalchemy import text

    from lamplighter.kernel import inspection

    oid = inspection.locate(connection, reference.table)
    query = text(
        "SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE pg_class.oid = :oid"
    )
    found = connection.execute(query, {"oid": oid}).one_or_none()
    return (*(found or ("", "")), reference.column)


def _candidate(look: Look, one: Any, lookup: Lookup | None) -> Item | None:
    """An item on a column that names files, or looks as if it did."""
    quoted = ".".join(_quoted(name) for name in (one.schema, one.table))
    column = _quoted(one.column)
    expression = f"unnest({column}::text[])" if one.is_array else f"{column}::text"
    where = f" WHERE pg_column_size({column}) < {LONGEST}"  # without reading it: one of a gigabyte stays where it is
    texts = _sample(look, f"SELECT {expression} AS x FROM {quoted}{where}")  # noqa: S608 - identifiers are quoted
    kind = "json" if one.type in {"json", "jsonb"} else "array" if one.is_array else _kind(texts)
    found = [value for value in _values(texts, kind) if kind in {"html", "json"} or _is_media(value)]
    # One file name among many texts is a mention; a column that names files does so in most rows.
    if not found or (kind in {"text", "array"} and len(found) * 2 < len(texts)):
        return None
    some = found[: lookup.most if lookup else SAMPLE]
    matching = None if lookup is None else sum(map(lookup.names, some))
    if matching == 0:
        return None
    table = one.table if one.schema == "public" else f"{one.schema}.{one.table}"
    reference: dict[str, Any] = {"table": table, "column": one.column}
    reference |= {"kind": kind} if kind == "html" or (kind == "json" and one.type not in {"json", "jsonb"}) else {}
    proposed = [*(_fields(each) for each in look.settings.media.references), reference]
    why = (
        f"of a sample of {len(some)} values, {matching} name an object of the bucket"
        if matching is not None
        else f"{len(found)} of a sample of {len(texts)} texts look like names of images or videos"
    )
    return Item(
        severity=Severity.NOTE if matching is None else Severity.WARNING,
        name=NAME,
        sentence=sentence(f"{table}.{one.column} is not declared and seems to name files: {why}"),
        advice="If it does, declare it: files that only this column names are orphans otherwise. A sample is no proof.",
        facts={"column": f"{table}.{one.column}", "sampled": len(some), "sampled_that_name_an_object": matching},
        settings={"media": {"references": proposed}},
    )


def _kind(texts: Sequence[str]) -> str:
    """How a column of text is best read."""
    first = [text.lstrip()[:1] for text in texts]
    if texts and all(start in "{[" for start in first if start):
        return "json"
    return "html" if any(re.search(r"<\w+[^>]*>|\]\(", text) for text in texts) else "text"


def _is_media(value: str) -> bool:
    return any(is_media(path.strip()) for path in bare_paths(value)) and "\n" not in value.strip()


def _fields(reference: Reference) -> dict[str, Any]:
    """A reference as the settings write it, without defaults."""
    from dataclasses import MISSING, fields

    given = {field.name: getattr(reference, field.name) for field in fields(reference)}
    defaults = {field.name: field.default for field in fields(reference) if field.default is not MISSING}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if name not in defaults or value != defaults[name]
    }


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
