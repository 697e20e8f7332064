"""A matched operation and an Exchange become typed parameters; whatever nobody declared is refused.

Invariants (tests/test_surface_extract.py):
  SM18  On a commit every header, query key and body field is declared, inert or a credential, or the
      request is unknown_parameter.
  SM19  On a read an undeclared header is part of the digest, and no header can change the method.
  SM40  No credential goes along that the map does not name: neither in a header, on a read as on a commit,
        nor under a usual name in a query or form of which everything is ignored.
  SM20  A receipt gets a parameter only if it is material, not redacted, and exact.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from ..content.checksum import confirms
from ..digest import fingerprint
from ..errors import InputError, Reason
from ..fields import is_inert
from .exchange import Exchange
from .model import Action, Effect, Param, Value
from .plan import Operation, Plan
from .read import ParamPlan, read_param
from .sources import MISSING, base_of
from .types import JSON_SAFE, canonical_json, sha256_text

__all__ = ["action_of", "check_body", "declared_headers", "evaluate", "principal_of"]

_PRESIGNED: Final = frozenset({"x-amz-signature", "x-amz-credential", "x-amz-algorithm", "awsaccesskeyid"})
# The last two name the operation to services of several protocols, whatever path and body say.
_OVERRIDES: Final = (
    "x-http-method", "x-method-override", "x-original-", "x-rewrite-", "x-forwarded-",
    "x-amz-target", "soapaction",
)  # fmt: skip
# Names under which servers take a credential or another method: `query.*` does not speak of them.
_LENT: Final = frozenset(
    """
    access_token api_key api-key apikey auth_token authorization client_secret key oauth_token token
    _method http_method x-http-method x-http-method-override
    """.split()
)
_PLAIN_NAME: Final = re.compile(r"[0-9a-z\-]+")
# The decoder of aws-chunked compares these with the body.
_AWS_FRAMING: Final = frozenset({"x-amz-decoded-content-length", "x-amz-trailer"})
_NAMED: Final = frozenset({"form", "json"})  # decoders whose records have names that servers may fold
_BEARER: Final = re.compile(r"(?i:bearer) ([\x21-\x7e]+)\Z")
_BASIC: Final = re.compile(r"(?i:basic) ([A-Za-z0-9+/]+={0,2})\Z")
_SIGV4: Final = re.compile(r"AWS4-[A-Z0-9-]+ +Credential=([A-Za-z0-9_]+)/[^\s,]*,.*\Z")


def evaluate(op: Operation, exchange: Exchange) -> tuple[dict[str, Value], list[str]]:
    """Parameters by name, and the names of headers that are part of the meaning. Raises InputError."""
    plan = op.plan
    exchange.decode(plan.body)
    if exchange.slash_escaped:
        _check_slashes(op, plan, exchange)
    headers = declared_headers(plan, exchange)
    if exchange.query:
        _check_query(plan, exchange)
    check_body(plan, exchange)
    _check_spellings(plan, exchange)
    values = {}
    for param in plan.params:
        value = read_param(param, exchange)
        if value is not None:
            values[param.name] = value
    return values, headers


def _check_slashes(op: Operation, plan: Plan, exchange: Exchange) -> None:
    for name in plan.slashless:
        if any("/" in text for text in op.raw_path(name, exchange)):
            raise InputError(Reason.NON_CANONICAL_PATH, f"an escaped slash in path variable {name!r}")


def declared_headers(plan: Plan, exchange: Exchange) -> list[str]:
    """Names of the headers that are part of the meaning. Raises InputError on one that nobody declared."""
    found = []
    digested, silent, strict = plan.digest_headers, plan.silent_headers, plan.effect is not Effect.READ
    for name in exchange.fields:
        if name in digested:
            found.append(name)
        elif name in silent or is_inert(name):
            continue
        elif name.startswith(plan.header_prefixes):
            if name not in plan.secret_headers:  # the digest has no key: a credential never enters it
                found.append(name)
        elif strict:
            if not _says_the_body(name, exchange):
                raise InputError(Reason.UNKNOWN_PARAMETER, f"header {name!r} is not in the surface map")
        elif name.startswith(_OVERRIDES) or _PLAIN_NAME.fullmatch(name) is None:
            # CGI and WSGI servers read `x_amz_target`, some `x-amz.target` too, as `x-amz-target`.
            raise InputError(Reason.UNKNOWN_PARAMETER, f"header {name!r} could change the operation")
        elif name in plan.secret_headers:
            raise InputError(Reason.UNKNOWN_PARAMETER, f"credential {name!r} is not in the surface map")
        else:
            found.append(name)
    for name in exchange.repeated:
        if not is_inert(name):
            raise InputError(Reason.DUPLICATE_PARAMETER, f"header {name!r} occurs more than once")
    return found


def _says_the_body(name: str, exchange: Exchange) -> bool:
    """Whether a header repeats what the body says, and was checked against it."""
    if name in _AWS_FRAMING:
        return exchange.framed_by_aws
    return exchange.given is None and confirms(name, exchange.fields[name], exchange.content)


def _check_query(plan: Plan, exchange: Exchange) -> None:
    for key, values in exchange.query.items():
        if plan.presigned and key.lower() in _PRESIGNED:
            raise InputError(Reason.UNKNOWN_PARAMETER, "credentials in the query (a presigned URL)")
        if key in plan.single_query:
            if len(values) > 1:
                raise InputError(Reason.DUPLICATE_PARAMETER, f"query key {key!r} occurs more than once")
        elif not (key in plan.free_query or plan.any_query or key.startswith(plan.query_prefixes)):
            raise InputError(Reason.UNKNOWN_PARAMETER, f"query key {key!r} is not in the surface map")
    if plan.merged and exchange.kind == "json" and exchange.body:
        # Servers read a query and a form as one; beside JSON some leave the query out, some do not.
        raise InputError(Reason.DUPLICATE_PARAMETER, "arguments in the query beside a JSON body")


def _check_spellings(plan: Plan, exchange: Exchange) -> None:
    """Another spelling of a name that the map reads, with a modifier (FHIR's `_include:iterate`), an index
    (`_include[]`) or in other letters, is the same to some servers: only what names it speaks of it, not
    `ignore: [query.*]` and not `pass_body`. So is a credential, in a query or form. Raises InputError."""
    body, cover = exchange.body, plan.cover
    named = cover.children if cover is not None else {}
    keys = [key for key in body if key not in named] if exchange.kind in _NAMED and type(body) is dict else []
    keys += [
        key
        for key in exchange.query
        if key not in plan.single_query and key not in plan.free_query
        and not key.startswith(plan.query_prefixes)
    ]  # fmt: skip
    for key in keys:
        base = base_of(key).casefold()
        if key not in plan.read_keys and base in plan.read_names:
            raise InputError(Reason.UNKNOWN_PARAMETER, f"{key!r} is not in the surface map; one like it is")
        if base in _LENT and (key in exchange.query or exchange.kind == "form"):
            raise InputError(
                Reason.UNKNOWN_PARAMETER, f"{key!r} could lend a credential or change the method"
            )


def check_body(plan: Plan, exchange: Exchange) -> None:
    """Raises InputError on a body field that nobody declared."""
    cover = plan.cover
    if cover is None or exchange.kind == "none" or exchange.kind == "opaque":
        return
    field = cover.first_uncovered(exchange.body, exchange.kind == "xml")
    if field is not None:
        raise InputError(Reason.UNKNOWN_PARAMETER, f"body field {field!r} is not in the surface map")


def action_of(op: Operation, values: dict[str, Value]) -> Action:
    """Raises InputError when nobody gave the operation a surface."""
    spec = op.spec
    if spec.surface is None or spec.effect is None:
        raise InputError(Reason.UNASSIGNED_OPERATION, f"operation {op.name} has no surface")
    params, absent = [], []
    for param in op.plan.params:
        value = values.get(param.name)
        if value is not None:
            params.append(Param(name=param.name, value=value, public=_public(param, value)))
        elif param.absent_means is not None:
            absent.append((param.name, param.absent_means))
    return Action(
        surface=spec.surface,
        operation=op.name,
        effect=op.plan.effect,
        params=tuple(params),
        absent=tuple(absent),
    )


def _public(param: ParamPlan, value: Value) -> str | int | bool | tuple[str | int, ...] | None:
    if not param.material or param.hidden:
        return None
    if param.digest_only:
        return sha256_text(value if type(value) is str else canonical_json(plain(value)))
    if type(value) is tuple:
        return tuple([_exact(item) for item in value if type(item) is str or type(item) is int])
    return _exact(value)  # type: ignore[arg-type]


def _exact(value: str | int | bool) -> str | int | bool:
    return str(value) if type(value) is int and not -JSON_SAFE <= value <= JSON_SAFE else value


def plain(value: Value) -> object:
    """The value as JSON data."""
    return [plain(item) for item in value] if type(value) is tuple else value


def principal_of(plan: Plan, exchange: Exchange) -> str | None:
    """Fingerprint of the credential that the map names, None when the request has none."""
    found: tuple[str, bool] | None = None
    for read, in_header in plan.principal:
        value = read(exchange)
        if value is MISSING:
            continue
        if found is not None:
            raise InputError(Reason.DUPLICATE_PARAMETER, "credentials in two places")
        if type(value) is not str or not value:
            raise InputError(Reason.PARAMETER_TYPE, "the credential is not a text")
        found = value, in_header
    if found is None:
        return None
    value, in_header = found
    for form in plan.principal_forms:
        # A form is a form of a header; a token in a body or query stands alone.
        secret = _credential(form, value) if in_header else value
        if secret is not None:
            return fingerprint(secret.encode("utf-8", "surrogatepass"))
    raise InputError(Reason.PARAMETER_TYPE, "the credential has another form than the surface map says")


def _credential(form: str, value: str) -> str | None:
    match form:
        case "bearer":
            found = _BEARER.match(value)
            return found[1] if found else None
        case "basic-user":
            return _basic_user(value)
        case "sigv4-access-key":
            found = _SIGV4.match(value)
            return found[1] if found and value.lower().count("credential=") == 1 else None
        case _:
            return value


def _basic_user(value: str) -> str | None:
    found = _BASIC.match(value)
    if found is None:
        return None
    try:
        decoded = base64.b64decode(found[1], validate=True)
        user, colon, _ = decoded.decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    if base64.b64encode(decoded).decode("ascii") != found[1]:  # padding twice, or bits that nobody reads
        return None
    return user if colon and user else None
