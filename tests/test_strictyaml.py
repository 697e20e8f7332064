"""strictyaml.py: YAML 1.1's surprises are errors with a line, or plain strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.errors import ConfigError
from holdgate.strictyaml import load

BAD = {
    "duplicate key": ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a'"),
    "duplicate key in a flow mapping": ("{a: 1, a: 2}", 1, "duplicate key 'a'"),
    "anchor": ("a: &x 1\n", 1, "anchors"),
    "alias": ("a: [1]\nb: *a\n", 1, "alias"),
    "alias bomb": ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", 1, "anchors"),
    "tag": ("a: !!python/object/apply:os.system [id]\n", 1, "tags"),
    "custom tag": ("a: !x 1\n", 1, "tags"),
    "merge key": ("a: {<<: {b: 1}}\n", 1, "merge keys"),
    "key that is a list": ("[a]: 1\n", 1, "plain strings"),
    "two documents": ("a: 1\n---\nb: 2\n", 1, "exactly one"),
    "empty file": ("", 1, "exactly one"),
    "byte order mark as indentation": ("a:\n\ufeffb: 1\n", 2, "byte order mark"),
    "not YAML": ("a: [1\n", 2, "not YAML"),
    "nested too deeply": ("[" * 3000 + "]" * 3000, 1, "deep"),
    "too many values": ("[" + "1," * 60_000 + "1]", 1, "too many"),
}


@pytest.mark.parametrize("name", BAD)
def test_y1_what_is_wrong_is_an_error_with_its_line(name: str) -> None:
    text, line, message = BAD[name]
    with pytest.raises(ConfigError) as caught:
        load(text, file="x.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.yaml:")
    if name not in ("alias",):
        assert caught.value.line == line


@given(st.text(max_size=200))
def test_y1_no_text_raises_anything_else(text: str) -> None:
    try:
        load(text)
    except ConfigError as error:
        assert error.line >= 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("NO", "NO", id="Norway"),
        pytest.param("yes", "yes", id="yes"),
        pytest.param("010", "010", id="octal"),
        pytest.param("12:30", "12:30", id="sexagesimal"),
        pytest.param("1_000", "1_000", id="underscore"),
        pytest.param("1.10", "1.10", id="a version"),
        pytest.param("0x1f", "0x1f", id="hex"),
        pytest.param("2026-11-21", "2026-11-21", id="a date"),
        pytest.param("True", "True", id="True is a string"),
        pytest.param("'5'", "5", id="quoted number"),
        pytest.param("true", True, id="true"),
        pytest.param("false", False, id="false"),
        pytest.param("-7", -7, id="integer"),
        pytest.param("-0", "-0", id="minus zero"),
        pytest.param("null", None, id="null"),
        pytest.param("9" * 30, "9" * 30, id="too long for an integer"),
    ],
)
def test_y2_no_scalar_changes_its_meaning(text: str, value: object) -> None:
    node = load(f"a: {text}").mapping(required=("a",))["a"]
    assert (node.value, type(node.value)) == (value, type(value))


def test_readers_name_what_they_expect() -> None:
    root = load("a: x\nb: 5\nc: [1]\n", file="f.yaml")
    with pytest.raises(ConfigError, match=r"f.yaml:1: unknown key 'a' in thing; allowed: b, c"):
        root.mapping(optional=("b", "c"), what="thing")
    with pytest.raises(ConfigError, match="needs the key 'd'"):
        root.mapping(required=("d",), optional=("a", "b", "c"))
    keys = root.open_mapping()
    with pytest.raises(ConfigError, match=r"f.yaml:2: size must be between 6 and 9"):
        keys["b"].integer("size", low=6, high=9)
    with pytest.raises(ConfigError, match="must be one of: y, z; got 'x'"):
        keys["a"].choice(("y", "z"))
    assert root.plain() == {"a": "x", "b": 5, "c": [1]}
