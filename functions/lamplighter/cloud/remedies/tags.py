"""Reading and writing the tags of one resource, whichever service it belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from lamplighter.cloud.remedies.action import Place, absence_as_gone, tag_list, tag_map


def read(place: Place, resource_id: str) -> dict[str, str]:
    """The tags of a resource as they are now.

    Raises:
        Gone: there is no such load balancer; EC2 answers no tags for what is not there.
    """
    if _is_load_balancer(resource_id):
        with absence_as_gone():
            (answer,) = place.clients("elbv2").describe_tags(ResourceArns=[resource_id])["TagDescriptions"]
        return tag_map(answer["Tags"])
    pages = place.ec2.get_paginator("describe_tags").paginate(
        Filters=[{"Name": "resource-id", "Values": [resource_id]}]
    )
    return tag_map([tag for page in pages for tag in page["Tags"]])


def write(place: Place, resource_id: str, tags: Mapping[str, str]) -> None:
    """Adds tags; one that is there is written over. Raises `Gone`: there is no such resource."""
    with absence_as_gone():
        if _is_load_balancer(resource_id):
            place.clients("elbv2").add_tags(ResourceArns=[resource_id], Tags=tag_list(tags))
        else:
            place.ec2.create_tags(Resources=[resource_id], Tags=tag_list(tags))


def remove(place: Place, resource_id: str, tags: Mapping[str, str]) -> None:
    """Removes tags; EC2 removes one only while it has this very value (DeleteTags). Raises `Gone`, as `write`."""
    with absence_as_gone():
        if _is_load_balancer(resource_id):
            place.clients("elbv2").remove_tags(ResourceArns=[resource_id], TagKeys=list(tags))
        else:
            place.ec2.delete_tags(Resources=[resource_id], Tags=tag_list(tags))


def _is_load_balancer(resource_id: str) -> bool:
    return resource_id.startswith("arn:") and ":elasticloadbalancing:" in resource_id
