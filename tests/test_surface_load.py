"""surface/load*.py: what a map may say, and how a mistake is reported."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from holdgate.errors import ConfigError
from holdgate.strictyaml import load
from holdgate.surface.load import load_map, load_maps
from surface_requests import ENVELOPE, MAPS, map_of

GOOD = """
hosts: [a.test]
operations:
  - id: A
    match: {method: POST, path: /a}
    surface: data.write
    effect: commit
    params: {x: {from: query.x, type: int}}
"""


def test_a_map_is_loaded_with_its_defaults() -> None:
    loaded = map_of(GOOD)
    assert (loaded.name, loaded.refusal, loaded.base) == ("own", "problem", "")
    assert [(h.host, h.scheme, h.port) for h in loaded.hosts] == [("a.test", "https", 443)]
    assert loaded.operations[0].params[0].type == "int"


def test_directories_are_searched_and_other_kinds_passed_over(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    text = ENVELOPE + textwrap.indent(GOOD, "  ")
    (tmp_path / "deep" / "a.yaml").write_text(text)
    (tmp_path / "p.yaml").write_text("apiVersion: holdgate/v1\nkind: Policy\nmetadata: {name: p}\nspec: {}\n")
    (tmp_path / "notes.txt").write_text("not YAML: [")
    assert [one.name for one in load_maps([tmp_path])] == ["own"]
    assert {one.name for one in load_maps([MAPS])} == {
        "pay",
        "cloud.rpc",
        "cloud.query",
        "store",
        "ehr",
        "chat",
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({}, "no surface map here", id="empty directory"),
        pytest.param({"a.yaml": "kind: Policy"}, "needs the key", id="no envelope"),
        pytest.param({"a.yaml": "a", "b.yaml": "a"}, "must be a mapping", id="no mapping"),
        pytest.param(
            {
                "a.yaml": ENVELOPE + textwrap.indent(GOOD, "  "),
                "b.yaml": ENVELOPE + textwrap.indent(GOOD, "  "),
            },
            "exists already",
            id="two maps of one name",
        ),
        pytest.param(
            {"a.yaml": ENVELOPE.replace("SurfaceMap", "SurfaceMaps") + "  hosts: []"},
            "kind must be one of",
            id="a typing error in kind",
        ),
    ],
)
def test_a_directory_that_does_not_hold_maps_is_refused(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_maps([tmp_path])


def test_a_file_of_another_kind_is_refused_when_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("apiVersion: holdgate/v1\nkind: Policy\nmetadata: {name: p}\nspec: {}\n")
    with pytest.raises(ConfigError, match="kind must be SurfaceMap here"):
        load_maps([file])


def wrong(old: str, new: str) -> str:
    if old not in GOOD:
        raise ValueError(f"{old!r} is not in the good map")
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("spec", "line", "message"),
    [
        pytest.param(wrong("hosts:", "host:"), 6, "unknown key 'host'", id="unknown key"),
        pytest.param(wrong("[a.test]", "[A.test]"), 6, "lower-case labels", id="host in capitals"),
        pytest.param(wrong("[a.test]", '["a.{x}"]'), 6, "last label", id="variable as last label"),
        pytest.param(wrong("[a.test]", '["a-{x}.test"]'), 6, "exactly one label", id="half a label"),
        pytest.param(wrong("[a.test]", '["a.test:8443"]'), 6, "the port is a key", id="port in the name"),
        pytest.param(
            wrong("[a.test]", "[{host: a.test, port: 0}]"), 6, "between 1 and 65535", id="port zero"
        ),
        pytest.param(wrong("[a.test]", "[{host: a.test, scheme: ftp}]"), 6, "http, https", id="scheme"),
        pytest.param(wrong("[a.test]", "[]"), 6, "empty list", id="no host"),
        pytest.param(
            wrong("hosts:", "base: v1\nhosts:"), 6, "base must look like /v1", id="base without slash"
        ),
        pytest.param(
            wrong("hosts:", "refusal: none\nhosts:"), 6, "refusal must be one of", id="refusal shape"
        ),
        pytest.param(wrong("id: A", "id: 'A B'"), 8, "letters, digits", id="operation id"),
        pytest.param(wrong("path: /a", "path: a"), 9, "must start with /", id="path without slash"),
        pytest.param(wrong("path: /a", "path: /a%20b"), 9, "no query, escape", id="escape in a path"),
        pytest.param(wrong("method: POST", "method: post"), 9, "upper-case", id="method in lower case"),
        pytest.param(wrong("method: POST, ", ""), 9, "match needs 'method'", id="no method"),
        pytest.param(
            wrong("path: /a}", "path: /a, target: X}"), 9, "needs `dispatch`", id="target without dispatch"
        ),
        pytest.param(
            wrong("path: /a}", "path: /a, body: {'a[]': present}}"),
            9,
            "cannot discriminate",
            id="list as discriminator",
        ),
        pytest.param(
            wrong("path: /a}", "path: /a, body: {'**.a': present}}"),
            9,
            "cannot discriminate",
            id="search as discriminator",
        ),
        pytest.param(
            wrong("path: /a}", "path: /a, body: {a: '=query.x'}}"),
            9,
            "=path.var",
            id="comparison with a query key",
        ),
        pytest.param(wrong("data.write", "DataWrite"), 10, "payments.refund", id="surface name"),
        pytest.param(wrong("effect: commit", "effect: write"), 11, "effect must be one of", id="effect"),
        pytest.param(wrong("from: query.x", "from: cookie.x"), 12, "is not a source", id="source"),
        pytest.param(wrong("from: query.x", "from: body.**.x"), 12, "reads a list", id="a search for one"),
        pytest.param(wrong("type: int", "type: float"), 12, "is not one of", id="type"),
        pytest.param(wrong("{x:", "{X:"), 12, "lower-case letters", id="parameter name"),
        pytest.param(wrong("{x:", "{in:"), 12, "not one of", id="parameter named like a CEL word"),
        pytest.param(
            wrong("type: int", "type: string, min: 1"), 12, "min and max are for integers", id="min of a text"
        ),
        pytest.param(wrong("type: int", "type: int, repeat: true"), 12, "repeats", id="repeat of a scalar"),
        pytest.param(
            wrong("from: query.x, type: int", "from: 'body.x[]', type: int"),
            12,
            "reads a list",
            id="list as integer",
        ),
        pytest.param(
            wrong("type: int", "type: int, required: true, absent_means: FULL"),
            12,
            "never absent",
            id="required and absent",
        ),
        pytest.param(
            wrong("from: query.x", "from: [const.x, query.x]"), 12, "only source", id="constant among others"
        ),
        pytest.param(
            wrong("type: int", "type: int, required: yes"), 12, "true or false", id="yes is no boolean"
        ),
        pytest.param(GOOD + "    conflict_key: [x]\n", 13, "must be params.NAME", id="conflict key"),
        pytest.param(
            GOOD + "    conflict_key: {x: y}\n", 13, "must be params.NAME", id="a thing that is nothing"
        ),
        pytest.param(GOOD + "    conflict_key: {}\n", 13, "must not be empty", id="no conflict key"),
        pytest.param(GOOD + "    conflict_key: {X: params.y}\n", 13, "lower-case", id="the name of a thing"),
        pytest.param(
            GOOD + "    conflict_key: {x: [params.y, params.y]}\n", 13, "occurs twice", id="a parameter twice"
        ),
        pytest.param(GOOD + "    ignore: [amount]\n", 13, "is not a field", id="ignore"),
        pytest.param(GOOD + "    body: {decode: yaml}\n", 13, "decode must be one of", id="decoder"),
        pytest.param(
            GOOD + "    body: {decode: [none, json]}\n", 13, "`none` alone", id="none among decoders"
        ),
        pytest.param(GOOD + "    body: {merge: [body]}\n", 13, "merge must be", id="merge"),
        pytest.param(GOOD + "    body: {content_types: [JSON]}\n", 13, "type/subtype", id="content type"),
        pytest.param(GOOD + "    idempotency: {ttl: 1h}\n", 13, "needs `from`", id="idempotency of nothing"),
        pytest.param(
            GOOD + "    idempotency: {from: query.k}\n", 13, "header.NAME or body.FIELD", id="key in a query"
        ),
        pytest.param(
            GOOD + "    idempotency: {from: header.k, on_missing: derive}\n",
            13,
            "allow, require",
            id="derived key",
        ),
        pytest.param(
            GOOD + "    explode: {over: body.a, max: 2}\n", 13, "exactly one of", id="explode without form"
        ),
        pytest.param(
            GOOD + "    explode: {over: 'body.a[]', max: 2, as: A}\n", 13, "without", id="explode over items"
        ),
        pytest.param(
            GOOD + "    explode: {over: body.a, max: 0, as: A}\n", 13, "between 1", id="explode nothing"
        ),
        pytest.param(
            GOOD + "    explode: {over: body.a, max: 2, as: A}\n",
            10,
            "remove `surface`",
            id="exploded operation with a surface",
        ),
        pytest.param(
            GOOD + "  - {id: A, match: {method: GET, path: /b}}\n",
            13,
            "exists already on line 7",
            id="operation twice",
        ),
    ],
)
def test_sm6_a_mistake_is_named_with_its_line(spec: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        map_of(spec.lstrip("\n"))
    # Four lines of envelope come first; `line` counts them.
    assert (caught.value.file, caught.value.line) == ("own.yaml", line - 1)


@pytest.mark.parametrize("text", ["4096", "4 KiB", "0KiB", "4KB", "-1MiB", "1.5MiB"])
def test_sm7_a_size_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a size such as"):
        map_of(GOOD + f"    body: {{max: {text}}}\n")


@pytest.mark.parametrize("text", ["60", "60 s", "0s", "1w", "1.5h"])
def test_sm7_a_duration_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a duration such as"):
        map_of(GOOD + f"    deadlines: {{total: {text}}}\n")


def test_sm7_units_are_binary_and_seconds() -> None:
    loaded = map_of(GOOD + "    body: {max: 2MiB}\n    deadlines: {total: 10m, connect: 1d}\n")
    settings = loaded.operations[0].settings
    assert settings.body.max == 2 * 1024 * 1024
    assert (settings.deadlines.total_s, settings.deadlines.connect_s) == (600, 86_400)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_sm8_a_surface_needs_an_effect_whatever_the_method(method: str) -> None:
    with pytest.raises(ConfigError, match="a surface but no effect"):
        map_of(GOOD.replace("    effect: commit\n", "").replace("POST", method))


KEEPING = GOOD.rstrip("\n") + "\n    idempotency: {from: header.idempotency-key, response: keep}\n"


def test_an_operation_may_keep_its_answers() -> None:
    for effect in ("commit", "prepare"):
        kept = map_of(KEEPING.replace("effect: commit", f"effect: {effect}")).operations[0]
        assert kept.settings.idempotency is not None and kept.settings.idempotency.keep
    assert (
        not map_of(KEEPING.replace("response: keep", "response: status_only"))
        .operations[0]
        .settings.idempotency.keep
    )
    assert map_of(KEEPING.replace("from: header.idempotency-key", "natural: [x]")).operations[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("effect: commit", "effect: read", "is for a prepare or a commit", id="a read"),
        pytest.param("effect: commit", "effect: channel", "is for a prepare or a commit", id="a stream"),
        pytest.param("data.write", "secrets.access", "can hold secrets", id="a secret"),
        pytest.param("data.write", "secrets.write", "can hold secrets", id="a secret that is made"),
        pytest.param("data.write", "identity.assume", "can hold secrets", id="a session of a role"),
        pytest.param("data.write", "identity.role_grant", "can hold secrets", id="a key for a user"),
        pytest.param("data.write", "model.invoke", "can hold secrets", id="a model"),
        pytest.param("from: header.idempotency-key, ", "on_missing: require, ", "needs a key", id="no key"),
        pytest.param("response: keep", "response: keep, provider: true", "repeats itself", id="the vendor's"),
        pytest.param("surface: data.write\n    effect: commit", "sensitive: true", "of its own", id="none"),
    ],
)
def test_sm37_an_answer_that_nobody_should_keep_is_refused_at_load(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        map_of(KEEPING.replace(old, new))
    assert caught.value.line


def test_sm37_no_answer_is_kept_by_default() -> None:
    defaults = "defaults:\n  idempotency: {from: header.idempotency-key, response: keep}\n"
    with pytest.raises(ConfigError, match="on each operation"):
        map_of(defaults + GOOD.lstrip("\n"))


def test_sm37_no_answer_of_a_batch_is_kept() -> None:
    batch = KEEPING.replace(
        "surface: data.write\n    effect: commit", "explode: {over: body.items, max: 9, as: B}"
    )
    with pytest.raises(ConfigError, match="a surface of its own"):
        map_of(batch)


def test_sm8_an_effect_needs_a_surface() -> None:
    with pytest.raises(ConfigError, match="an effect but no surface"):
        map_of(GOOD.replace("    surface: data.write\n", ""))


def test_a_dispatch_map_has_a_target_in_every_operation() -> None:
    with pytest.raises(ConfigError, match="match needs `target`"):
        map_of("dispatch: {header: X-Target}\n" + GOOD.lstrip("\n"))


def test_another_kind_is_none_when_it_is_not_required() -> None:
    text = "apiVersion: holdgate/v1\nkind: Bundle\nmetadata: {name: b}\nspec: {}\n"
    assert load_map(load(text), required=False) is None


RECONCILE = """\
    reconcile:
      read: B
      by: key
      with: {query.type: const.made, path.a: params.x}
      whole: {const.false: more}
      each: data
      at: created
      where: {key: request.key, params.x: [a, b.c]}
"""


def test_sm39_a_rule_that_says_how_to_ask_is_loaded() -> None:
    spec = map_of(GOOD + RECONCILE).operations[0].reconcile
    assert spec is not None
    assert (spec.read, spec.by, spec.each, spec.at) == ("B", "key", "data", "created")
    assert spec.request == (("query.type", "const.made"), ("path.a", "params.x"))
    assert spec.whole == (("const.false", "more"),)
    assert spec.where == (("key", ("request.key",)), ("params.x", ("a", "b.c")))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        pytest.param("      by: key\n", "", 14, "needs the key 'by'", id="not by what"),
        pytest.param("      at: created\n", "", 14, "needs the key 'at'", id="not since when"),
        pytest.param("by: key", "by: amount", 15, "params.NAME", id="by something else"),
        pytest.param("query.type", "body.type", 16, "is not path.NAME, query.NAME", id="a body"),
        pytest.param("const.made", "made", 16, "is not params.NAME, const.TEXT", id="a bare text"),
        pytest.param("const.made", "key", 16, "is not params.NAME, const.TEXT", id="the key"),
        pytest.param("query.type", "query", 16, "can only be params.NAME", id="a whole query of the map's"),
        pytest.param("{const.false: more}", "{}", 17, "must not be empty", id="whole by nothing"),
        pytest.param("{const.false: more}", "{key: more}", 17, "'key' is not params.NAME", id="whole by key"),
        pytest.param("data", "data[]", 18, "names joined by dots", id="a list in a path"),
        pytest.param("at: created", "at: ''", 19, "names joined by dots", id="an empty path"),
        pytest.param("key: request.key", "time.from: t", 20, "nor `key`", id="a comparison with a time"),
        pytest.param("[a, b.c]", "[]", 20, "empty list", id="compared with nothing"),
        pytest.param("where: {key: request.key, params.x: [a, b.c]}", "where: {}", 20, "empty", id="any"),
    ],
)
def test_sm39_an_answer_is_no_proof_by_its_looks(old: str, new: str, line: int, message: str) -> None:
    assert old in RECONCILE
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        map_of(GOOD + RECONCILE.replace(old, new))
    assert (caught.value.file, caught.value.line) == ("own.yaml", line)
