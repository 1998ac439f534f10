"""API Gateway: a path with a line break finds its route.

MiniStack takes `/{proxy+}` for the regular expression `(.+)`, in which a dot is any character but a line break. So a
path with `%0A` was answered by the emulator itself, and not by the API.
"""

from __future__ import annotations

from typing import Final

_STAND_IN: Final = "\ue000"
"""Of a line break; a character for private use."""


def apply() -> None:
    match_line_breaks()


def match_line_breaks() -> None:
    from ministack.services import apigateway

    parameters = apigateway._extract_path_params

    def matched(route_path: str, request_path: str) -> dict[str, str] | None:
        found = parameters(route_path, request_path.replace("\n", _STAND_IN))
        return found and {name: value.replace(_STAND_IN, "\n") for name, value in found.items()}

    apigateway._extract_path_params = matched
