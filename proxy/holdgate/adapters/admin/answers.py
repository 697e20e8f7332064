"""A JSON answer of the admin API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

__all__ = ["json_answer"]


def json_answer(
    value: Any, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=json.dumps(value).encode() + b"\n",
        status=status.value,
        content_type="application/json",
        headers=headers,
    )
