"""S3: what MiniStack's listings of versions lack."""

from __future__ import annotations

from typing import Any


def apply() -> None:
    encode_keys_of_versions()


def encode_keys_of_versions() -> None:
    """ListObjectVersions ignores `encoding-type=url`, which boto3 always asks for: one key with a control character,
    which XML cannot hold, made the whole listing an error 500."""
    from ministack.services import s3

    body = s3._xml_body

    def encoded(root: Any) -> bytes:
        if root.tag == "ListVersionsResult" and root.find("EncodingType") is None:
            for element in root.iter():
                if element.tag in {"Key", "Prefix", "KeyMarker", "NextKeyMarker", "Delimiter"} and element.text:
                    element.text = s3._url_encode(element.text)
            s3.SubElement(root, "EncodingType").text = "url"
        answer: bytes = body(root)
        return answer

    s3._xml_body = encoded
