"""Revokes the very rules of a security group that let everybody in to a sensitive port. Undo authorises them again.

EC2 shows rules that share protocol and ports as one permission; here each is revoked by the id it has of its own, so
that the other ranges of the permission stay (FAILURES 14).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lamplighter.cloud.remedies.action import (
    Action,
    Gone,
    Kept,
    Offence,
    Place,
    Step,
    absence_as_gone,
    tag_list,
    tag_map,
)

_KEPT: Final = ("IpProtocol", "FromPort", "ToPort", "CidrIpv4", "CidrIpv6", "PrefixListId", "Description")
_SOURCES: Final = {
    "CidrIpv4": ("IpRanges", "CidrIp"),
    "CidrIpv6": ("Ipv6Ranges", "CidrIpv6"),
    "PrefixListId": ("PrefixListIds", "PrefixListId"),
}
"""Where a rule names whom it lets in, and where AuthorizeSecurityGroupIngress takes that."""


def look(place: Place, offence: Offence) -> Step:
    """The rules that the finding's evidence names, each as it is now."""
    offending = {_named(rule) for rule in offence.evidence["permissions"]}
    rules = [rule for rule in _rules(place, offence.resource_id) if _identity(rule) in offending]
    if not rules:
        raise Kept("None of the rules that were found is there any more.")
    return Step(outcome="revoked", state={"rules": rules})


def act(place: Place, resource_id: str, step: Step) -> dict[str, Any]:
    """All or none: EC2 refuses the call if one of the ids is gone."""
    place.ec2.revoke_security_group_ingress(
        GroupId=resource_id, SecurityGroupRuleIds=[rule["SecurityGroupRuleId"] for rule in step.state["rules"]]
    )
    return step.state


def found(place: Place, resource_id: str, step: Step) -> dict[str, Any] | None:
    """All were there when the plan was made, and an id is never given twice."""
    there = {rule["SecurityGroupRuleId"] for rule in _rules(place, resource_id)}
    gone = not any(rule["SecurityGroupRuleId"] in there for rule in step.state["rules"])
    return step.state if gone else None


def undo(place: Place, resource_id: str, state: dict[str, Any], dry_run: bool) -> tuple[str, dict[str, Any]]:
    """Authorises each rule that is not there in the same words."""
    try:
        there = {_identity(rule) for rule in _rules(place, resource_id)}
    except Gone:
        return "not_restorable", state
    missing = [rule for rule in state["rules"] if _identity(rule) not in there]
    if not missing:
        return "already_restored", state
    if not dry_run:
        for rule in missing:
            _authorise(place, resource_id, rule)
    return "restored", state


def _rules(place: Place, group: str) -> list[dict[str, Any]]:
    """The ingress rules of a group, as far as undo needs them."""
    pages = place.ec2.get_paginator("describe_security_group_rules").paginate(
        Filters=[{"Name": "group-id", "Values": [group]}]
    )
    found = [rule for page in pages for rule in page["SecurityGroupRules"] if not rule["IsEgress"]]
    if not found:  # the filter is silent about a group that is not there
        with absence_as_gone():
            place.ec2.describe_security_groups(GroupIds=[group])
    return [
        {"SecurityGroupRuleId": rule["SecurityGroupRuleId"]}
        | {name: rule[name] for name in _KEPT if rule.get(name) is not None}
        | ({"Tags": tag_map(rule["Tags"])} if rule.get("Tags") else {})
        for rule in found
    ]


def _identity(rule: Mapping[str, Any]) -> tuple[Any, ...]:
    """Protocol, ports and whom it lets in: no group has two rules that agree in these."""
    ports = (None, None) if rule["IpProtocol"] == "-1" else (rule.get("FromPort"), rule.get("ToPort"))
    return (rule["IpProtocol"], *ports, next((rule[name] for name in _SOURCES if name in rule), None))


def _named(rule: Mapping[str, Any]) -> tuple[Any, ...]:
    """A rule as the evidence of `open_ports` names it."""
    ports = (None, None) if rule["protocol"] == "-1" else (rule["from_port"], rule["to_port"])
    return (rule["protocol"], *ports, rule.get("prefix_list") or rule["cidr"])


def _authorise(place: Place, group: str, rule: Mapping[str, Any]) -> None:
    name = next(name for name in _SOURCES if name in rule)
    ranges, key = _SOURCES[name]
    source = {key: rule[name]} | ({"Description": rule["Description"]} if "Description" in rule else {})
    permission = {name: rule[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in rule}
    tags = {key: value for key, value in rule.get("Tags", {}).items() if not key.startswith("aws:")}  # AWS's own
    labelled = {"TagSpecifications": [{"ResourceType": "security-group-rule", "Tags": tag_list(tags)}]} if tags else {}
    place.ec2.authorize_security_group_ingress(
        GroupId=group, IpPermissions=[permission | {ranges: [source]}], **labelled
    )


action = Action(id="revoke", look=look, act=act, found=found, undo=undo, undone="revoked")
