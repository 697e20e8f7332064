"""cli/receipt_lines.py: the invariants in its docstring, one test each."""

from __future__ import annotations

import io

import pytest

from holdgate.cli.receipt_lines import receipts_in

LINE = b"eyJhbGciOiJFZERTQSJ9.e30." + b"A" * 1000 + b"\n"


class Counted(io.BytesIO):
    """How many bytes were read."""

    given = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.given += len(line)
        return line


def test_rl1_no_more_than_a_mib_and_a_line_is_read_ahead() -> None:
    file = Counted(LINE * 3000)
    seen = 0
    for number, jws in receipts_in(file):
        seen += 1
        assert (number, jws) == (seen, LINE.strip())
        assert file.given <= max(1_048_576, seen * len(LINE)) + 2 * len(LINE)
    assert seen == 3000


def test_rl1_a_line_without_an_end_is_not_kept() -> None:
    file = Counted(b"x" * 3_000_000 + b"\n" + LINE)
    (first, cut), (second, jws) = receipts_in(file)
    assert (first, len(cut), second, jws) == (1, 262_144, 2, LINE.strip())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(b"\n\na.b.c\n  \nnot one\n", [(3, b"a.b.c"), (5, b"not one")], id="every line"),
        pytest.param(
            b'{"jws": "a.b.c"}\r\n{"jws": 1}\n', [(1, b"a.b.c"), (2, b'{"jws": 1}')], id="an export"
        ),
        pytest.param(b"a.b.c", [(1, b"a.b.c")], id="no end of a line"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nHoldgate-Receipt: a.b.c\r\n\r\nHTTP/1.1 200\r\nholdgate-receipt: d.e.f\r\n",
            [(2, b"a.b.c"), (5, b"d.e.f")],
            id="heads of answers",
        ),
        pytest.param(b"< Holdgate-Receipt: a.b.c\n", [(1, b"a.b.c")], id="as curl -v shows it"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_rl2_what_is_given_out(text: bytes, found: list[tuple[int, bytes]]) -> None:
    assert list(receipts_in(io.BytesIO(text))) == found


def test_rl2_a_header_line_after_a_mib_of_receipts_is_a_line() -> None:
    *_, (number, last) = receipts_in(io.BytesIO(LINE * 2000 + b"Holdgate-Receipt: a.b.c\n"))
    assert (number, last) == (2001, b"Holdgate-Receipt: a.b.c")
