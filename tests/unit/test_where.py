"""The condition of a rule: one expression over the row, whatever strings and comments hide."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from lamplighter.kernel.retention.where import BadWhere, bound, check, reads_tables


@pytest.mark.parametrize(
    "where",
    [
        "true",
        "status = 'completed'",
        "note IN (')', '(') -- )",
        "note = 'it''s )' AND (a OR b)",
        'things."odd ) name" IS NULL',
        "note = $$ ) $$ OR note = $a$ $$ ) $a$",
        "/* ) /* ' */ ( */ state = 'x'",
        "note ~ '^\\d+$' AND data ? 'k' AND data->>'a:b' = 'c;d'",
        "tags[1:2] = '{a}' AND at::date < now()::date",
        "refresh_expires_at IS NULL OR refresh_expires_at < :cutoff",
        "EXISTS (SELECT FROM accounts WHERE accounts.id = things.account AND (SELECT true))",
        "NOT exists /* any */ (SELECT FROM accounts)",
        "(true AND (true AND EXISTS (SELECT FROM a WHERE (a.id = (SELECT max(id) FROM a)))))",
        "tokenable_type = 'App\\Models\\User'",
        "selected AND table_name = 'select'",
        "state = 'x' -- the end",
        "größe > 3",
    ],
)
def test_one_expression_is_taken(where: str) -> None:
    check(where)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("true) OR (true", "closes a parenthesis"),
        ("note = ')' -- (\n) OR (true", "closes a parenthesis"),
        ("/* ' */ true) OR (true /* ' */", "closes a parenthesis"),
        ('"a""" = 1) OR ("a" = 1', "closes a parenthesis"),
        ("$a$ ' $a$ = '') OR (true OR '' = $a$ ' $a$", "closes a parenthesis"),
        ("/* /* */ ' */ true) OR (true /* ' */", "closes a parenthesis"),
        ("true -- '\n) OR (true -- '", "closes a parenthesis"),
        ("note = E'\\' OR true) OR (note = E'\\'", "backslash before a quote"),
        ("note = 'a\\' OR '", "backslash before a quote"),
        ("(true", "opens a parenthesis"),
        ("true; DELETE FROM things", "one expression, without a semicolon"),
        ("id > $1", "no parameter but :cutoff"),
        ("id % 2 = 0", r"takes no operator %; write mod\(a, b\)"),
        ("id %s", "takes no operator %"),
        ("note = 'open", "a quote that does not end"),
        ('"open', "a quote that does not end"),
        ("note = $x$ open $y$", "a quote that does not end"),
        ("true /* open /* */", "a comment that does not end"),
        ("id IN (SELECT id FROM others)", r"only inside EXISTS \(SELECT"),
        ("EXISTS (SELECT FROM a) AND id = ANY (select id from b)", r"only inside EXISTS \(SELECT"),
        ("EXISTS (SELECT FROM a) AND (true AND (id = (SELECT max(id) FROM b)))", r"only inside EXISTS \(SELECT"),
        ("id IN (TABLE others)", r"only inside EXISTS \(SELECT"),
        ("true UNION SELECT", r"only inside EXISTS \(SELECT"),
        ("", "takes an SQL expression"),
        (" -- nothing", "takes an SQL expression"),
    ],
)
def test_anything_else_is_refused_with_its_reason(where: str, reason: str) -> None:
    with pytest.raises(BadWhere, match=reason):
        check(where)


@pytest.mark.parametrize(
    ("where", "sent"),
    [
        ("at < :cutoff", "at < %s"),
        ("at < :cutoff::date", "at < %s::date"),
        ("at::date < now() AND tags[1:n] = '{}'", "at::date < now() AND tags[1:n] = '{}'"),
        ("note = 'a :cutoff b' AND note <> 'x:y' -- :z", "note = 'a :cutoff b' AND note <> 'x:y'  "),
        ("/* it's :x */ note = $a$it's$a$", "  note = 'it''s'"),
        ("note ~ $$^\\d$$", "note ~ $$^\\d$$"),
        ("note LIKE 'a%s'", "note LIKE 'a%s'"),
        ("note = 'a\\:b'", "note = 'a:b'"),
        ("note = $$a :cutoff$$", "note = 'a :cutoff'"),
    ],
)
def test_only_the_colon_of_the_cutoff_begins_a_parameter(where: str, sent: str) -> None:
    """A JSON document holds SQL as one writes it, casts and times of day included."""
    from sqlalchemy.dialects.postgresql import pg8000

    assert str(text(bound(where)).compile(dialect=pg8000.dialect())) == sent


def test_a_condition_that_reads_other_tables_is_known() -> None:
    assert reads_tables("NOT EXISTS (SELECT FROM a)")
    assert not reads_tables("note = 'exists' -- exists")
