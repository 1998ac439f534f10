"""Parameters of the orphan cleanup: they make a run stricter than its settings, never looser (REQUIREMENTS S2)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamplighter.kernel.job import InvalidParams
from lamplighter.kernel.media import Reference, scope_of, scopes_around
from lamplighter.kernel.settings import Settings, parse
from lamplighter.media.orphan_cleanup import handler
from lamplighter.media.parameters import Params, tightened

SETTINGS: dict[str, Any] = {
    "base_path": "shop",
    "min_age_hours": 24,
    "max_delete_gb": 10,
    "quarantine_hours": 48,
    "max_orphan_share": 0.2,
    "references": ["media_files.storage_key"],
}
STORAGE_KEY = Reference(table="media_files", column="storage_key")
AVATAR = Reference(table="users", column="avatar")


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack's."""
    monkeypatch.setenv("MEDIA_BUCKET", "media")


def resolved(settings: dict[str, Any] | None = None, **params: Any) -> Params:
    return handler.validated(params).resolved(in_force(settings))


def in_force(more: dict[str, Any] | None = None) -> Settings:
    allow = {"allow_override": True} if (more or {}).get("allow_override") else {}
    media = SETTINGS | {name: value for name, value in (more or {}).items() if name != "allow_override"}
    return parse(allow | {"media": media}, source="a test")


def test_what_is_not_given_comes_from_the_settings() -> None:
    assert resolved() == Params(
        bucket="media",
        base_path="shop",
        references=(STORAGE_KEY,),
        min_age_hours=24,
        dry_run=True,
        max_delete_gb=10,
        quarantine_hours=48,
        max_orphan_share=0.2,
    )


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"min_age_hours": 23.9}, "min_age_hours: takes 24 or more (the setting media.min_age_hours)"),
        ({"min_age_hours": 0}, "min_age_hours: takes 24 or more"),
        ({"max_delete_gb": 10.1}, "max_delete_gb: takes 10 or less (the setting media.max_delete_gb)"),
        ({"max_orphan_share": 0.21}, "max_orphan_share: takes 0.2 or less (the setting media.max_orphan_share"),
        ({"quarantine_hours": 47}, "quarantine_hours: takes 48 or more (the setting media.quarantine_hours)"),
        ({"bucket": "backups"}, "bucket: takes media (the stack's media bucket), got 'backups'"),
        (
            {"base_path": ""},
            "base_path: takes a folder below shop/ (the setting media.base_path), got the who",
        ),
        ({"base_path": "/"}, "base_path: takes a folder below shop/"),
        ({"base_path": "shopping"}, "base_path: takes a folder below shop/"),
        ({"base_path": "Shop"}, "base_path: takes a folder below shop/"),
        ({"dry_run": False}, "dry_run: false needs the setting media.apply to be true"),
        (
            {"references": [{"table": "media_files", "column": "storage_key", "max_unmatched": 9}]},
            "references: media_files.storage_key is configured otherwise (the setting media.references)",
        ),
    ],
)
def test_a_looser_parameter_is_refused_in_one_sentence_unless_overriding_is_allowed(
    params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        resolved(**params)

    assert sentence in str(caught.value)
    assert str(caught.value).endswith("only with the setting allow_override may it be looser.")
    assert [name for name, _ in caught.value.problems] == list(params)
    assert resolved({"allow_override": True}, **params)


@pytest.mark.parametrize(
    "params",
    [
        {"min_age_hours": 25},
        {"max_delete_gb": 0},
        {"max_orphan_share": 0.01},
        {"quarantine_hours": 49},
        {"bucket": "media"},
        {"base_path": "shop/2026"},
        {"dry_run": True},
        {"override": True},
    ],
)
def test_a_stricter_parameter_is_taken(params: dict[str, Any]) -> None:
    assert resolved(**params) == resolved().model_copy(update=handler.validated(params).model_dump(exclude_unset=True))


def test_references_are_added_to_the_configured_ones() -> None:
    avatar = {"table": "users", "column": "avatar"}

    assert resolved(references=[avatar]).references == (STORAGE_KEY, AVATAR)
    assert resolved(references=[{"table": "media_files", "column": "storage_key"}]).references == (STORAGE_KEY,)
    assert resolved({"allow_override": True}, references=[avatar]).references == (AVATAR,)


def test_a_reference_may_be_given_as_text() -> None:
    """As in the settings."""
    assert resolved(references=["users.avatar"]).references == (STORAGE_KEY, AVATAR)
    with pytest.raises(InvalidParams) as caught:
        resolved(references=["users"])
    assert "references.0" in str(caught.value)


def test_acting_is_allowed_where_the_settings_apply_the_cleanup() -> None:
    assert resolved({"apply": True}).dry_run is False
    assert resolved({"apply": True}, dry_run=False).dry_run is False


@pytest.mark.parametrize("number", ["NaN", "inf", "-inf", -1, -1e-9, 1e300, "x", None])
@pytest.mark.parametrize("name", ["min_age_hours", "max_delete_gb", "quarantine_hours", "max_orphan_share"])
def test_no_number_gets_past_the_limits(name: str, number: Any) -> None:
    if number is None:
        assert resolved(**{name: None}) == resolved()
        return
    with pytest.raises(InvalidParams, match=name):
        resolved({"allow_override": True}, **{name: float(number) if number in {"NaN", "inf", "-inf"} else number})


@pytest.mark.parametrize(
    "path",
    ["shop/../other", "shop//other", "shop/.", "shop/%2e%2e/other", "shop/%2E%2e", "shop\\..\\x", "shop/ /x", "a\0b"],
)
def test_a_folder_is_one_folder_in_any_reading(path: str) -> None:
    with pytest.raises(InvalidParams, match="base_path: takes a folder without empty segments"):
        resolved({"allow_override": True}, base_path=path)


def test_a_reference_that_no_table_can_have_is_one_sentence() -> None:
    with pytest.raises(InvalidParams, match=r"references\.0"):
        resolved(references=[{"table": "t\0", "column": "c"}])


@given(
    age=st.floats(0, 10**6),
    gigabytes=st.floats(0, 10**9),
    quarantine=st.floats(0, 10**6),
    share=st.floats(0, 1, exclude_min=True),
)
def test_what_passes_is_never_looser(age: float, gigabytes: float, quarantine: float, share: float) -> None:
    given_params = Params(
        min_age_hours=age, max_delete_gb=gigabytes, quarantine_hours=quarantine, max_orphan_share=share
    )
    try:
        params = tightened(given_params, in_force())
    except InvalidParams:
        return
    assert params.min_age_hours is not None
    assert params.min_age_hours >= 24
    assert params.quarantine_hours is not None
    assert params.quarantine_hours >= 48
    assert params.max_delete_gb is not None
    assert params.max_delete_gb <= 10
    assert params.max_orphan_share is not None
    assert params.max_orphan_share <= 0.2


@pytest.mark.parametrize(
    ("folder", "around"),
    [
        ("", ["media/-"]),
        ("-/", ["media/-%2F", "media/-"]),
        (
            "shop/ä ö/50%/",
            ["media/shop%2F%C3%A4%20%C3%B6%2F50%25%2F", "media/shop%2F%C3%A4%20%C3%B6%2F", "media/shop%2F", "media/-"],
        ),
    ],
)
def test_the_scopes_around_a_folder_are_those_of_the_folders_that_hold_it(folder: str, around: list[str]) -> None:
    assert scopes_around(scope_of("media", folder)) == around
    assert scopes_around(around[-1]) == ["media/-"]
