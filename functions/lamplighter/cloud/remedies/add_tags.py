"""Adds tags that a resource has to have and lacks. Never writes over one. Undo removes what it added."""

from __future__ import annotations

from typing import Any

from lamplighter.cloud.remedies import tags
from lamplighter.cloud.remedies.action import Action, Kept, Offence, Place, Step


def look(_place: Place, offence: Offence) -> Step:
    """The required tags that are missing, as far as the owner has given values for them."""
    missing = [name for name in offence.limits.required_tags if name not in offence.tags]
    added = {name: value for name, value in (offence.remedy.values or {}).items() if name in missing}
    if not added:
        raise Kept(
            f"There is no value for what it lacks ({', '.join(missing)})."
            if missing
            else "No tag is missing; one is empty."
        )
    return Step(outcome="tags_added", state={"added": added})


def act(place: Place, resource_id: str, step: Step) -> dict[str, Any]:
    """One call for all."""
    tags.write(place, resource_id, step.state["added"])
    return step.state


def found(place: Place, resource_id: str, step: Step) -> dict[str, Any] | None:
    """They were missing when the plan was made."""
    return step.state if step.state["added"].items() <= tags.read(place, resource_id).items() else None


def undo(place: Place, resource_id: str, state: dict[str, Any], dry_run: bool) -> tuple[str, dict[str, Any]]:
    """Removes those that still say what we wrote."""
    there = tags.read(place, resource_id)
    unchanged = {name: value for name, value in state["added"].items() if there.get(name) == value}
    if not unchanged:
        changed = state["added"].keys() & there.keys()
        return "changed_since" if changed else "already_restored", state
    if not dry_run:
        tags.remove(place, resource_id, unchanged)
    return "restored", state


action = Action(id="add_tags", look=look, act=act, found=found, undo=undo, undone="tags_added")
