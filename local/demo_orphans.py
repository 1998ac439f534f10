"""The demo's chapters about orphaned files: preview, refusal and answer, fuses, ramp, removal, undo.

They run with the settings of an owner's deployment, in which nothing may be overridden.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.filesize import decimal

from local import demo_data
from local.console import console, say, step, table
from local.demo_data import Media
from local.demo_evidence import Evidence
from local.demo_stage import Stage, number, reports, short

COLUMN: Final = {"table": "media_files", "column": "storage_key"}
OWNERS: Final = {"min_age_hours": 0, "quarantine_hours": 0, "ramp": True, "exclude": [demo_data.EXCLUDE]}
"""The demo's files are minutes old. By default they wait for a day, and for another one in quarantine."""
ANSWER: Final = COLUMN | {
    "strip": [demo_data.PREFIX],
    "elsewhere": [demo_data.HOST],
    "max_unmatched": demo_data.MISSING,
}
"""What the refusal asks the owner to declare."""
FIRST: Final = 100
"""What the ramp lets the first run remove."""
EARNEST: Final = {"dry_run": False}

_SCAN: Final = ("scanned_files", "skipped_not_media", "orphaned_files")
_KEPT: Final = ("excluded", "kept_derived", "kept_ambiguous")
_ACCOUNT: Final = ("matched", "outside", "unmatched", "missing_files")
_WOULD: Final = ("would_delete_files", "held_by_ramp", "duration_seconds")
_DONE: Final = ("orphaned_files", "would_delete_files", "deleted_files", "deleted_bytes", "held_by_ramp")
_CHECKED: Final = ("kept_referenced_again", "kept_changed", "failed_deletions", "duration_seconds")


class Orphans:
    """Chapters on a stage, in the order of the methods."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.bucket = stage.outputs["MediaBucketName"]
        self.evidence = Evidence(aws=stage.aws, outputs=stage.outputs)

    def run(self, media: Sequence[Media], before: Mapping[str, str]) -> list[str]:
        """Show the chapters; the ids of the runs that removed files. `before` is the bucket's listing."""
        self.media, self.before = media, before
        with self.stage.overridden():
            self._set()
            preview = self._preview()
            accepted = self._refusal(preview)
            self._fuses()
            runs = self._removal(accepted)
            self.stage.settings["media"] = {"references": [ANSWER], "exclude": OWNERS["exclude"]}
        self._undo(runs)
        return [run["job_id"] for run in runs]

    def _set(self, **media: Any) -> None:
        """Put settings of the section `media` in force, beside those of an owner's deployment."""
        section = {"media": OWNERS | media}
        self.stage.override(self.stage.settings | {"allow_override": False} | section)

    def _run(self, **parameters: Any) -> dict[str, Any]:
        """A run of the cleanup, which has to account for every value and keep what it has to keep."""
        report = self.stage.invoke("orphan-cleanup", parameters)
        (column,) = report["references"]
        adds_up = column["values"] == report["matched"] + report["outside"] + report["unmatched"]
        self.stage.expect(adds_up, "The account does not add up.")
        return report

    def _preview(self) -> dict[str, Any]:
        self.stage.chapter(
            "Orphan cleanup: the preview",
            "These chapters use the settings of a deployment: nothing may be overridden, and the ramp holds. The files "
            "of the demo are minutes old, so the settings demand no age and no quarantine.",
        )
        report = self._run(dry_run=True)
        reports([*_SCAN, *_KEPT, *_ACCOUNT, *_WOULD], {"preview": report})
        (column,) = report["references"]
        kept = Counter(one.kept for one in self.media)
        expected = {
            "excluded": kept["excluded"],
            "kept_derived": kept["kept_derived"],
            "kept_ambiguous": kept["kept_ambiguous"] + demo_data.PREFIXED,
            "unmatched": demo_data.PREFIXED + demo_data.HOSTED + demo_data.MISSING,
        }
        found = {name: report[name] for name in expected}
        self.stage.expect(found == expected, f"The demo data say {expected}, the report {found}.")
        say(
            f"{column['column']} holds {number(column['values'])} values: {number(column['matched'])} matched, "
            f"{column['outside']} outside, {column['unmatched']} unmatched. The job counts each value, not a sample. "
            f"{report['kept_ambiguous']} files stay because an unmatched value could mean them."
        )
        entries = self.evidence.manifest(report["manifest"])
        odd = {entry["key"].rpartition("/")[2]: entry for entry in entries if entry["key"].startswith("odd/")}
        table(
            ("some of the orphans", "bytes", "outcome"),
            [(short(one["key"], 44), one["size"], one["outcome"]) for one in [*entries[:2], *odd.values()][:6]],
            right=("bytes",),
        )
        say(f"The manifest names all {number(len(entries))}:")
        console.print(f"s3://{report['manifest']['bucket']}/{report['manifest']['key']}", markup=False, soft_wrap=True)
        did = f"previewed {number(len(entries))} orphans"
        self.stage.did("orphan-cleanup", did, report["duration_seconds"], "its manifest in S3")
        return report

    def _refusal(self, preview: Mapping[str, Any]) -> dict[str, Any]:
        self.stage.chapter(
            "Orphan cleanup: a refusal, and the answer",
            "A run in earnest is refused while values match no file. The refusal groups those values by host and first "
            "folder, and says what to declare.",
        )
        began = time.monotonic()
        say(self.stage.refusal("orphan-cleanup", EARNEST))
        self.stage.expect(demo_data.listing(self.stage.aws, self.bucket) == self.before, "The refused run changed it.")
        say(f"\nThe bucket still holds the same {number(len(self.before))} objects. The answer goes into the settings:")
        console.print(json.dumps({"media": {"references": [ANSWER]}}), style="cyan", markup=False, soft_wrap=True)
        with step("Settings") as current:
            self._set(references=[ANSWER])
            current.say("the column is declared")
        accepted = self._run(dry_run=True)
        reports([*_ACCOUNT, "kept_ambiguous", "refusals"], {"before": preview, "declared": accepted})
        self.stage.expect(not accepted["refusals"], f"Still refused: {accepted['refusals']}")
        outside, kept = accepted["outside"], Counter(one.kept for one in self.media)["kept_ambiguous"]
        self.stage.expect(outside == demo_data.HOSTED, f"{outside} values are outside, not {demo_data.HOSTED}.")
        self.stage.expect(accepted["kept_ambiguous"] == kept, f"{accepted['kept_ambiguous']} files are kept.")
        missing = self.evidence.missing(accepted["manifest"])
        gone = set(demo_data.other_rows()[demo_data.HOSTED :])
        self.stage.expect(set(missing) == gone, "The manifest names other missing files than there are.")
        table(("missing files: rows whose object is gone",), [*((value,) for value in missing[:3]), ("…",)])
        say(f"The manifest names all {len(missing)}. The owner accepts that many by max_unmatched, and no more.")
        self.stage.did("orphan-cleanup", "refused, then accepted", time.monotonic() - began, "the settings")
        return accepted

    def _fuses(self) -> None:
        self.stage.chapter(
            "Fuses", "A run's parameters may only tighten what the settings allow. Each try gets one sentence."
        )
        tries: dict[str, dict[str, Any]] = {
            "a higher share of orphans": {"max_orphan_share": 0.9},
            "a column declared otherwise": {"references": [COLUMN]},
            "a column that is not there": {"references": [{"table": "media_files", "column": "path"}]},
            "a misspelt parameter": {"dry-run": False},
        }
        began = time.monotonic()
        answers = [(what, self.stage.refusal("orphan-cleanup", EARNEST | event)) for what, event in tries.items()]
        table(("what was asked", "the answer"), answers, lines=True)
        self.stage.did("orphan-cleanup", f"refused {len(answers)} times", time.monotonic() - began, "the dead letters")

    def _removal(self, preview: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.stage.chapter(
            "Orphan cleanup: the ramp, and the removal",
            f"The first run in earnest removes at most {FIRST} files. The limit rises tenfold 24 hours later, unless "
            "that run is undone. Then the setting media.ramp becomes false, and a second run removes the rest.",
        )
        ramped = self._run(**EARNEST)
        with step("Settings") as current:
            self._set(references=[ANSWER], ramp=False)
            current.say("the ramp is lifted")
        rest = self._run(**EARNEST)
        reports([*_DONE, *_CHECKED], {"preview": preview, "with the ramp": ramped, "without": rest})
        orphans = sum(1 for one in self.media if _is_orphan(one))
        self.stage.expect(preview["orphaned_files"] == orphans, f"There are {orphans} orphans.")
        held = orphans - FIRST
        self.stage.expect((ramped["deleted_files"], ramped["held_by_ramp"]) == (FIRST, held), "The ramp did not hold.")
        self.stage.expect((rest["deleted_files"], rest["held_by_ramp"]) == (held, 0), "Some orphans are left.")
        after = demo_data.listing(self.stage.aws, self.bucket)
        named = {demo_data.key_of(key, self.bucket) for (key,) in self._values()}
        gone = self.before.keys() - after.keys()
        self.stage.expect(len(gone) == orphans, "The bucket lacks other objects than the reports say.")
        self.stage.expect(not gone & named, "An object that a row names was removed.")
        say(
            f"Counted independently: {number(len(self.before))} objects before, {number(len(after))} now. Of the "
            f"{number(len(named & self.before.keys()))} that a row names, {len(gone & named)} are gone."
        )
        size = decimal(ramped["deleted_bytes"] + rest["deleted_bytes"])
        seconds = ramped["duration_seconds"] + rest["duration_seconds"]
        self.stage.did("orphan-cleanup", f"removed {number(orphans)} files, {size}", seconds, "system_logs")
        return [ramped, rest]

    def _values(self) -> list[Any]:
        found: list[Any] = self.stage.database.run("SELECT storage_key FROM media_files")
        return found

    def _undo(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self.stage.chapter(
            "Undo", "The id of a run is enough to restore what it removed. By default an undo only previews."
        )
        first, last = ({"job_id": run["job_id"]} for run in runs)
        preview = self.stage.invoke("undo", last)
        done = [self.stage.invoke("undo", event | EARNEST) for event in (last, first)]
        again = self.stage.invoke("undo", last | EARNEST)
        names = ["would_restore_files", "restored_files", "restored_bytes", "already_restored", "left_alone"]
        names += ["not_restorable", "duration_seconds"]
        shown = ("preview", "last run", "first run", "last, again")
        reports(names, dict(zip(shown, (preview, *done, again), strict=True)))
        after = demo_data.listing(self.stage.aws, self.bucket)
        self.stage.expect(after == self.before, "After the undo the bucket is not as it was.")
        say(
            f"The bucket is as it was: {number(len(after))} objects, each with the ETag it had. The ramp starts again "
            f"at {FIRST}."
        )
        files, size = (sum(one[name] for one in done) for name in ("restored_files", "restored_bytes"))
        seconds = sum(one["duration_seconds"] for one in done)
        self.stage.did("undo", f"restored {number(files)} files, {decimal(size)}", seconds, "system_logs")


def _is_orphan(one: Media) -> bool:
    return one.stored_as is None and one.kept is None and not one.key.startswith(demo_data.OTHER_FILES)
