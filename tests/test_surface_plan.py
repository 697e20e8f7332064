"""surface/compile.py, settings.py: what a map must make sense of, and what defaults mean."""

from __future__ import annotations

import re

import pytest

from holdgate.errors import ConfigError
from holdgate.surface.settings import effective
from surface_requests import index_of, map_of

HEAD = "hosts: ['{h}.a.test']\noperations:\n"
ONE = "  - id: A\n    match: {method: POST, path: '/a/{x}'}\n    surface: data.write\n    effect: commit\n"


def own(text: str) -> str:
    """The good operation with more lines, and `path.x` ignored unless they say something about it."""
    lines = "".join(f"    {line}\n" for line in text.split("\n"))
    return HEAD + ONE + lines + ("" if "path.x" in text else "    ignore: [path.x]\n")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(HEAD + ONE, r"path variable \{x\} is neither", id="a variable that nobody mentions"),
        pytest.param(
            own("params: {y: {from: path.y, type: string}}"),
            "path.y is not in the path",
            id="a variable that is not there",
        ),
        pytest.param(
            own("params: {y: {from: host.b, type: string}}"),
            "is in no host",
            id="a host variable that is not there",
        ),
        pytest.param(
            own("params: {y: {from: body.y, type: string}}"),
            "the operation has no body",
            id="a field of no body",
        ),
        pytest.param(
            own("params: {y: {from: raw.bytes, type: int}}"),
            "the operation has no body",
            id="the size of no body",
        ),
        pytest.param(
            own("body: {decode: json}\nparams: {y: {from: args.y, type: int}}"),
            "merge",
            id="an argument without merge",
        ),
        pytest.param(
            own("params: {y: {from: header.Authorization, type: string}}"),
            "is a credential",
            id="a credential as parameter",
        ),
        pytest.param(
            own("params: {y: {from: query.y, type: string, encoded_slash: true}}"),
            "encoded_slash is for path",
            id="a slash in a query",
        ),
        pytest.param(
            own("conflict_key: [params.y]"), "conflict_key names 'y'", id="a conflict key of nothing"
        ),
        pytest.param(
            own(
                "params: {y: {from: body.y, type: string}, z: {from: body.z, type: list<string>}}\n"
                "body: {decode: form}\nconflict_key: {x: [params.y, params.z]}"
            ),
            "a list stands alone",
            id="a list among others in a conflict key",
        ),
        pytest.param(own("idempotency: {natural: [y]}"), "natural names 'y'", id="a natural key of nothing"),
        pytest.param(
            own("body: {decode: form}\nparams: {y: {from: body.a.b, type: list<string>, repeat: true}}"),
            "top-level",
            id="a nested field that repeats",
        ),
        pytest.param(
            own("body: {decode: form}\nredact: [body.c.*]\nparams: {y: {from: body.c.d, type: string}}"),
            "is redacted",
            id="a parameter that is redacted",
        ),
        pytest.param(
            own("redact: [body.c.d]\nbody: {decode: json}\nparams: {y: {from: body.c, type: json}}"),
            "is redacted",
            id="a whole with a redacted part",
        ),
        pytest.param(
            own("redact: [body.c.d]\nbody: {decode: json}\nparams: {y: {from: body.**.d, type: origins}}"),
            "is redacted",
            id="a search that may find what is redacted",
        ),
        pytest.param(
            own("body: {decode: json}\nidempotency: {from: body.**.key}"),
            "is for parameters",
            id="a key that may stand anywhere",
        ),
    ],
)
def test_sm15_what_cannot_exist_is_an_error(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        index_of(spec)
    assert (caught.value.file, caught.value.line) == ("own.yaml", 7)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        pytest.param("as: Nothing", "names 'Nothing', which is not an operation", id="unknown operation"),
        pytest.param("as: Bare", "no surface of its own", id="operation without surface"),
        pytest.param("one_of: {x: All}", "no surface of its own", id="itself"),
        pytest.param("as: A, item: {z: Z}", "'z', which is not a parameter", id="unknown parameter"),
    ],
)
def test_sm15_a_batch_names_operations_and_parameters_that_exist(operation: str, message: str) -> None:
    spec = own("") + "  - {id: Bare, match: {method: GET, path: /b}}\n"
    spec += (
        f"  - {{id: All, match: {{method: POST, path: /all}}, body: {{decode: json}},"
        f" explode: {{over: body.i, max: 2, {operation}}}}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        index_of(spec)


def test_sm15_an_unassigned_operation_needs_no_parameters() -> None:
    index = index_of(HEAD + "  - {id: A, match: {method: GET, path: '/{x}'}}")
    assert index.surfaces() == frozenset()


def settings_of(defaults: str, operation: str) -> object:
    loaded = map_of(
        f"hosts: [a.test]\ndefaults: {{{defaults}}}\noperations:\n  - {{id: A,"
        f" match: {{method: POST, path: /a}}, {operation}}}"
    )
    return effective(loaded.operations[0], loaded.defaults)


@pytest.mark.parametrize(
    ("defaults", "operation", "name", "value"),
    [
        pytest.param(
            "ignore: [query.a]", "ignore: [query.b]", "ignore", ("query.a", "query.b"), id="ignore adds"
        ),
        pytest.param("headers: [A]", "headers: [b]", "headers", ("a", "b"), id="headers add"),
        pytest.param(
            "volatile: [query.a]", "redact: [body.b]", "volatile", ("query.a",), id="volatile is kept"
        ),
        pytest.param("sensitive: true", "sensitive: false", "sensitive", False, id="sensitive is replaced"),
        pytest.param(
            "unknown_params: pass_body", "sensitive: true", "pass_body", True, id="pass_body is kept"
        ),
        pytest.param(
            "body: {max: 1KiB}", "body: {decode: json}", "max", 1024, id="max is kept with another decoder"
        ),
        pytest.param(
            "body: {decode: form, syntax: brackets}",
            "body: {decode: json}",
            "syntax",
            "flat",
            id="syntax belongs to its decoder",
        ),
        pytest.param(
            "body: {decode: form, syntax: brackets}",
            "body: {max: 1KiB}",
            "syntax",
            "brackets",
            id="syntax is kept",
        ),
        pytest.param(
            "body: {decode: json, content_types: [a/b]}",
            "body: {decode: xml}",
            "content_types",
            frozenset({"application/xml", "text/xml"}),
            id="types belong to their decoder",
        ),
        pytest.param(
            "body: {content_codings: [gzip]}",
            "body: {decode: json}",
            "content_codings",
            ("gzip",),
            id="codings are kept",
        ),
        pytest.param(
            "body: {decode: json}",
            "body: {decode: opaque}",
            "content_types",
            None,
            id="opaque takes any type",
        ),
        pytest.param(
            "body: {decode: json}",
            "body: {content_types: [absent, a/b]}",
            "absent_type",
            True,
            id="a missing type",
        ),
        pytest.param(
            "body: {decode: json}", "sensitive: true", "decode_written", False, id="inherited decoder"
        ),
    ],
)
def test_sm16_defaults_and_own_settings(defaults: str, operation: str, name: str, value: object) -> None:
    assert getattr(settings_of(defaults, operation), name) == value


def test_sm16_deadlines_merge_and_idempotency_replaces() -> None:
    found = settings_of(
        "deadlines: {connect: 1s, total: 1m}, idempotency: {from: header.k, provider: true}",
        "deadlines: {total: 2m}, idempotency: {on_missing: require}",
    )
    deadlines, key = found.deadlines, found.idempotency  # type: ignore[attr-defined]
    assert (deadlines.connect_s, deadlines.first_byte_s, deadlines.total_s) == (1, None, 120)
    assert (key.sources, key.provider, key.require) == ((), False, True)


ASKED = """\
hosts: [a.test]
operations:
  - id: A
    match: {method: POST, path: '/a'}
    surface: data.write
    effect: commit
    body: {decode: json}
    idempotency: {from: header.x-key, provider: true}
    params: {x: {from: query.x, type: string}, many: {from: query.m, type: list<string>, repeat: true}}
    reconcile:
      read: B
      by: key
      with: {query.type: const.made, path.of: params.x}
      at: created
      where: {key: request.key, params.x: a}
  - id: B
    match: {method: GET, path: '/b/{of}'}
    surface: data.read
    effect: read
    params: {of: {from: path.of, type: string}, type: {from: query.type, type: string}}
  - id: C
    match: {method: POST, path: '/c/{of}'}
    surface: data.read
    effect: read
    ignore: [path.of]
"""


def test_sm38_a_rule_that_fits_is_compiled() -> None:
    spec = index_of(ASKED).operation("data.write", "m0.A").spec.reconcile
    assert spec is not None and spec.by == "key"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("read: B", "read: D", "'D' is no operation", id="no such read"),
        pytest.param("read: B", "read: A", "not a GET with the effect read", id="itself"),
        pytest.param("read: B", "read: C", "not a GET with the effect read", id="a POST"),
        pytest.param(
            "{from: header.x-key, provider: true}", "{natural: [x]}", "needs `idempotency", id="no key"
        ),
        pytest.param("key: request.key, ", "", "'key' must be used", id="the key is compared with nothing"),
        pytest.param("by: key", "by: params.x", "`key` only", id="a key that does not count"),
        pytest.param("params.x: a", "params.y: a", "'y', which is not a parameter", id="no such parameter"),
        pytest.param("params.x: a", "params.many: a", "which is a list", id="a list"),
        pytest.param("query.type: const", "query.kind: const", "is nothing that 'B' takes", id="a query"),
        pytest.param(", path.of: params.x", "", "has the path variables ['of']", id="no variable"),
        pytest.param("path.of", "path.off", "has the path variables ['of']", id="another variable"),
        pytest.param("query.type: const", "header.authorization: const", "is a credential", id="a secret"),
        pytest.param("effect: commit\n", "effect: commit\n    sensitive: true\n", "too", id="in clear"),
        pytest.param("effect: commit\n", "effect: read\n", "only a prepare or a commit", id="of a read"),
    ],
)
def test_sm38_a_rule_asks_what_the_map_has(old: str, new: str, message: str) -> None:
    assert old in ASKED
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        index_of(ASKED.replace(old, new, 1))
    assert (caught.value.file, caught.value.line) == ("own.yaml", 7)
