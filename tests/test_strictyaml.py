"""strictyaml.py: YAML 1.1's surprises are errors with a line, or plain strings."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.errors import ConfigError
from holdgate.strictyaml import load, load_file
from holdgate.yamltext import check_text

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
    "two documents": ("a: 1\n---\nb: 2\n", 2, "exactly one"),
    "empty file": ("", 1, "exactly one"),
    "byte order mark as indentation": ("a:\n\ufeffb: 1\n", 2, "byte order mark"),
    "not YAML": ("a: [1\n", 1, "not YAML"),
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
    with pytest.raises(ConfigError, match=r"f.yaml:1:1: unknown key 'a' in thing; allowed: b, c"):
        root.mapping(optional=("b", "c"), what="thing")
    with pytest.raises(ConfigError, match="needs the key 'd'"):
        root.mapping(required=("d",), optional=("a", "b", "c"))
    keys = root.open_mapping()
    with pytest.raises(ConfigError, match=r"f.yaml:2:4: size must be between 6 and 9"):
        keys["b"].integer("size", low=6, high=9)
    with pytest.raises(ConfigError, match="must be one of: y, z; got 'x'"):
        keys["a"].choice(("y", "z"))
    assert root.plain() == {"a": "x", "b": 5, "c": [1]}


# Texts as they stand in a file, and the value that YAML reads from each.
SCALARS = {
    "plain": "params.a > 1 && params.bb < 2",
    "plain over two lines": "params.a > 1\n    && params.bb < 2",
    "single quotes": "'params.a == ''x'' && params.bb < 2'",
    "double quotes": '"params.a == \\"x\\" && params.bb < 2"',
    "double quotes over two lines": '"params.a == \\"x\\"\n    && params.bb\\n < 2"',
    "double quotes with numbers": '"params\\x2ea == \\"\\u00e9\\" \\u0020 && params.bb < 2"',
    "folded": ">-\n    params.a > 1\n    && params.bb < 2\n",
    "folded with a deeper line": ">\n    params.a > 1\n      && params.bb < 2\n\n",
    "literal": "|\n    params.a > 1\n    && params.bb < 2\n",
    "literal with a remark": "|- # why\n    params.a > 1\n    && params.bb < 2\n",
    "letters beyond ASCII": ">-\n    params.a == 'é😀e\u0301'\n    && params.bb < 2\n",
}


@pytest.mark.parametrize("name", SCALARS)
def test_y3_every_place_in_a_value_is_found_in_the_file(name: str) -> None:
    text = f"rules:\n- id: é\n  when: {SCALARS[name]}\n"
    node = load(text).value["rules"].value[0].value["when"]
    for word in ("params", "&&", "bb", "<"):
        error = node.fail_at(node.value.index(word), "here")
        line = text.split("\n")[error.line - 1]
        assert line[error.column - 1 :].startswith(word), (name, word, str(error))
    end = node.fail_at(len(node.value), "the end")
    assert text.split("\n")[end.line - 1][: end.column - 1].endswith("2")


@given(st.text(alphabet="ab'\"\\ \n:#-é😀", max_size=20), st.integers(0, 20))
def test_y3_any_place_in_any_quoted_text_is_inside_it(value: str, offset: int) -> None:
    quoted = "'" + value.replace("\n", " ").replace("'", "''") + "'"
    node = load(f"a: {quoted}").value["a"]
    error = node.fail_at(min(offset, len(node.value)), "here")
    assert error.line == 1 and 4 <= error.column <= len(quoted) + 4


@given(st.characters())
def test_y4_a_text_that_passes_shows_every_character(char: str) -> None:
    try:
        check_text(load("a: b").source.__class__("f", f"x{char}y"))
    except ConfigError as error:
        assert (error.line, error.column) == (1, 2)
        return
    # Format characters, controls, separators and surrogates are refused; private use is visible as a box.
    assert (
        unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        or char in "\t\n"
        or ord(char) < 128
        or (char in ALLOWED_FORMAT)
    ), hex(ord(char))


# Format characters that show: signs of Arabic, Syriac and Kaithi numbers, Egyptian and musical joiners.
ALLOWED_FORMAT = {
    chr(code)
    for low, high in (
        (0x600, 0x605),
        (0x6DD, 0x6DD),
        (0x70F, 0x70F),
        (0x890, 0x891),
        (0x8E2, 0x8E2),
        (0x110BD, 0x110BD),
        (0x110CD, 0x110CD),
        (0x13430, 0x1343F),
        (0x1BCA0, 0x1BCA3),
        (0x1D173, 0x1D17A),
    )
    for code in range(low, high + 1)
}


def test_files_that_are_not_utf8_are_errors_with_a_line(tmp_path: Path) -> None:
    for data, line, words in (
        (b"a: 1\nb: \xff\n", 2, "the byte 0xff"),
        ("a: 1\n".encode("utf-16"), 1, "UTF-16"),
        (b"\xef\xbb\xbfa: 1\n", 1, "without BOM"),
        (b"a: 1\r\n", 1, "plain LF"),
        (b"a: 1\rb: 2\n", 1, "U+000D"),
    ):
        (tmp_path / "f.yaml").write_bytes(data)
        with pytest.raises(ConfigError, match=re.escape(words)) as caught:
            load_file(tmp_path / "f.yaml")
        assert caught.value.line == line


def test_a_file_that_may_hold_credentials_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        load("store: s3cr3t\n", file="f.yaml", excerpts=False).mapping(required=("store",))["store"].integer(
            "x"
        )
    assert str(caught.value) == "f.yaml:1:8: x must be an integer, not a string"
