"""Who may ask the admin API for what: one middleware in front of every endpoint.

    request -> method -> Host -> token and role -> endpoint -> headers that every answer carries

A browser that was lured to this address (DNS rebinding) names a host that is not ours; a page of another
origin has no token and we set no cookies.

Invariants (tests/test_admin.py has one test named after each):
  U1  Every path but health, readiness and public keys needs a token, unless `admin.open` or no tokens at all.
  U2  Tokens are compared by SHA-256, all of them, in constant time; the token itself is never kept or shown.
  U3  A request whose Host is not ours is answered 421, whatever it asks for.
  U4  Only GET and HEAD exist, but for the decision doors: POST with a token that has the role decider.
  U5  Every answer, errors included, carries the security headers and no cookie; errors are problem+json.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ...config import AdminToken, OpenDoor
from ...config_admin import DECIDER

__all__ = ["PRESENTED", "Access", "Problem", "Rules", "dressed", "guard"]

log = logging.getLogger("holdgate.admin")

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "holdgate",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
PRESENTED: Final = "holdgate.presented"  # where an endpoint finds the AdminToken that was presented


class Access(StrEnum):
    """What an endpoint asks of the caller."""

    PUBLIC = "public"
    METRICS = "metrics"  # any token, or admin.open
    CHECKPOINT = "checkpoint"  # any token, or admin.open
    RECEIPTS = "receipts"  # auditor or operator
    DECISIONS = "decisions"  # decider, by POST


# The roles of which a token needs one; any token will do for what is not listed.
_ROLES: Final = {Access.RECEIPTS: frozenset({"auditor", "operator"}), Access.DECISIONS: frozenset({DECIDER})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The `admin:` block, as far as it says who may read."""

    tokens: tuple[AdminToken, ...]
    open: frozenset[OpenDoor]
    hosts: frozenset[str]  # lower-case names without port, besides the address that was dialled


class Problem(Exception):
    """An error answer: RFC 9457."""

    def __init__(self, status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.detail, self.headers = status, detail, headers or {}
        super().__init__(detail)

    def response(self) -> web.Response:
        body = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
        }
        return web.Response(
            status=self.status.value,
            body=json.dumps(body).encode(),
            content_type="application/problem+json",
            headers=self.headers,
        )


def guard(rules: Rules, access: dict[str, Access]) -> Middleware:
    """The middleware. `access` is by route template; a route that is not in it cannot be reached."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            need = access.get(_place(request))
            _check_method(request, need)
            _check_host(request, rules.hosts)
            if need is None:
                raise Problem(HTTPStatus.NOT_FOUND, "There is nothing here.")
            request[PRESENTED] = _check_token(request, rules, need)
            response = await handler(request)
        except Problem as problem:
            response = problem.response()
        except web.HTTPException as error:
            response = Problem(HTTPStatus(error.status), error.reason).response()
        except Exception:  # the edge of the admin API: say nothing, log everything
            log.exception("admin request failed")
            response = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "See the log.").response()
        return response

    return check


def dressed[T: web.StreamResponse](response: T) -> T:
    """With the headers that every answer carries (U5)."""
    for name, value in _HEADERS.items():
        response.headers[name] = value
    return response


def _place(request: web.Request) -> str:
    """The template of the path, whatever the method."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else request.path


def _check_method(request: web.Request, need: Access | None) -> None:
    allowed = ("POST",) if need is Access.DECISIONS else ("GET", "HEAD")
    if request.method not in allowed:
        names = " and ".join(allowed)
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, f"Only {names}.", {"Allow": ", ".join(allowed)})


def _check_host(request: web.Request, hosts: frozenset[str]) -> None:
    values = request.headers.getall("Host", [])
    name = _host_name(values[0]) if len(values) == 1 else ""
    local = request.transport.get_extra_info("sockname") if request.transport is not None else None
    # The address that was dialled is no name that an attacker could have pointed at us.
    if name not in hosts and not (local and name == local[0]):
        raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "The Host header does not name this server.")


def _host_name(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower()


def _check_token(request: web.Request, rules: Rules, need: Access) -> AdminToken | None:
    """The token that lets this request in; None where none is needed."""
    if need is Access.PUBLIC or (need in (Access.METRICS, Access.CHECKPOINT) and _is_open(rules, need)):
        return None
    token = _token(request.headers.getall("Authorization", []), rules.tokens)
    if token is None:
        challenge = {"WWW-Authenticate": 'Bearer realm="holdgate"'}
        raise Problem(HTTPStatus.UNAUTHORIZED, "A token of admin.tokens is needed.", challenge)
    roles = _ROLES.get(need)
    if roles is not None and roles.isdisjoint(token.roles):
        names = ", ".join(sorted(roles))
        raise Problem(HTTPStatus.FORBIDDEN, f"This token does not have the role: {names}.")
    return token


def _is_open(rules: Rules, need: Access) -> bool:
    return not rules.tokens or need.value in rules.open


def _token(values: list[str], tokens: tuple[AdminToken, ...]) -> AdminToken | None:
    """The configured token that was presented; None when it is missing or unknown."""
    if len(values) != 1:
        return None
    scheme, _, secret = values[0].partition(" ")
    if scheme.lower() != "bearer":
        return None
    digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
    found: AdminToken | None = None
    for token in tokens:
        if hmac.compare_digest(digest, token.sha256):
            found = token
    return found
