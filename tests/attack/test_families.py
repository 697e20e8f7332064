"""Generated attacks: nothing arrives unless permitted, and then exactly what our own strict reading says."""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import brotli
import pytest
import zstandard

from attack.arena import HOSTS, TLS_PATHS, Arena, Seen
from attack.strict import forwarded

# Sent with every generated request, so that a connection carries one message.
CLOSE: Final = b"Connection: close\r\n"
GET: Final = b"GET {at}/v1/search?q=azz HTTP/1.1\r\nHost: {host}\r\nUser-Agent: one\r\n" + CLOSE + b"\r\n"
POST: Final = b"POST {at}/v1/search HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n" + CLOSE
LENGTH: Final = POST + b'Content-Length: 9\r\n\r\n{"q":"a"}'
CHUNKED: Final = POST + b'Transfer-Encoding: chunked\r\n\r\n9\r\n{"q":"a"}\r\n0\r\n\r\n'
AT: Final = {"plain": b"http://web.ok.test", "tls": b"", "redirected": b"", "redirected plain": b""}

# Where a byte is inserted: what stands before that place.
PLACES: Final = {
    "before the method": (GET, b""),
    "in the method": (GET, b"GE"),
    "after the method": (GET, b"GET"),
    "before the target": (GET, b"GET "),
    "in the path": (GET, b"/v1/sea"),
    "in the query": (GET, b"?q=a"),
    "after the target": (GET, b"?q=azz"),
    "before the version": (GET, b"azz "),
    "in the version": (GET, b"HTTP/1"),
    "after the version": (GET, b"HTTP/1.1"),
    "inside the first line end": (GET, b"HTTP/1.1\r"),
    "before a name": (GET, b"HTTP/1.1\r\n"),
    "in a name": (GET, b"User"),
    "before a colon": (GET, b"User-Agent"),
    "after a colon": (GET, b"User-Agent:"),
    "in a value": (GET, b"User-Agent: o"),
    "after a value": (GET, b"User-Agent: one"),
    "inside a line end": (GET, b"User-Agent: one\r"),
    "before the host": (GET, b"Host: "),
    "in the target's host": (GET, b"{at}"),
    "after the host": (GET, b"Host: {host}"),
    "before the last line end": (GET, b"close\r\n"),
    "before the length": (LENGTH, b"Content-Length: "),
    "after the length": (LENGTH, b"Content-Length: 9"),
    "before the coding": (CHUNKED, b"Transfer-Encoding: "),
    "after the coding": (CHUNKED, b"chunked"),
    "before a chunk size": (CHUNKED, b"chunked\r\n\r\n"),
    "after a chunk size": (CHUNKED, b"chunked\r\n\r\n9"),
    "inside the end of a chunk size": (CHUNKED, b"chunked\r\n\r\n9\r"),
    "before chunk data": (CHUNKED, b"\r\n\r\n9\r\n"),
    "after chunk data": (CHUNKED, b'"a"}'),
    "after the last chunk size": (CHUNKED, b"\r\n0"),
    "before the end of the chunks": (CHUNKED, b"\r\n0\r\n"),
    "inside the end of the chunks": (CHUNKED, b"\r\n0\r\n\r"),
}
TELLING: Final = [
    0,
    1,
    8,
    *range(9, 15),
    0x1B,
    0x1F,
    *b' !"#%&+,-./0:;=?@AF[\\]_`af|~',
    0x7F,
    0x80,
    0x85,
    0xA0,
    0xC2,
    0xFF,
]


def fill(text: bytes, path: str) -> bytes:
    return text.replace(b"{at}", AT[path]).replace(b"{host}", HOSTS[path].encode())


def inserted(place: str, octet: int, path: str) -> bytes:
    base, before = (fill(text, path) for text in PLACES[place])
    where = base.index(before) + len(before)
    return base[:where] + bytes([octet]) + base[where:]


def storm(
    arena: Arena, path: str, sends: Sequence[bytes], *, at_once: int = 8, single: bool = True
) -> list[Seen]:
    """Send all, `at_once` at a time, and check the property over all of them together.

    Identical commits in flight share one dispatch, so those go one by one. `single`: a send is one message.
    """
    since, mark = arena.size(), arena.upstream.mark()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda data: arena.ask(path, data, patience_s=0.5), sends))
    host = HOSTS[path].encode()
    expected: Counter[bytes] = Counter()
    for data, seen in zip(sends, answers, strict=True):
        if not seen.responses:
            assert seen.closed
            continue
        told = seen.only.decision
        if told["outcome"] == "PERMIT":
            reading = forwarded(data, AT[path], host)
            assert seen.only.status == 200 and reading is not None, data
            expected[reading] += 1
    follow = arena.still_serves(path)
    expected[follow] += 1
    arrived = Counter(arena.upstream.since(mark))
    assert arrived == expected, (arrived - expected, expected - arrived)
    assert len(arena.upstream.queries) == mark.queries
    decided = Counter(receipt.id for receipt, _ in arena.decisions(since))
    assert len(decided) == len(sends) + 1 or (not single and len(decided) > len(sends)), (
        "not one decision each"
    )
    told_ids = [response.decision["id"] for seen in answers for response in seen.responses]
    assert set(told_ids) <= set(decided) and len(set(told_ids)) == len(told_ids)
    return answers


def permitted(answers: Sequence[Seen]) -> list[bool]:
    return [bool(seen.responses) and seen.responses[0].decision["outcome"] == "PERMIT" for seen in answers]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_any_byte_at_a_structural_place(arena: Arena, place: str) -> None:
    octets = range(256)
    answers = storm(arena, "plain", [inserted(place, octet, "plain") for octet in octets])
    passed = {octet for octet, yes in zip(octets, permitted(answers), strict=True) if yes}
    printable = set(range(0x20, 0x7F)) | {9}
    if place in ("in a value", "after a value", "after a colon"):
        assert passed == printable
    elif place == "in the query":
        assert passed >= set(b"abcXYZ019-._~!$'()*+,:@/?=")
    elif place not in (
        "in a name",
        "before a colon",
        "before a name",
        "after the target",
        "before the last line end",
    ):
        # OWS, a leading zero, the one empty line: nothing else may still be a request that is permitted.
        assert passed <= {0x09, 0x20, 0x30} | ({0x0A} if place == "inside the end of the chunks" else set())


def test_any_byte_inside_tls(arena: Arena) -> None:
    seeded = random.Random(1)
    storm(
        arena, "tls", [inserted(place, seeded.choice(TELLING), "tls") for place in PLACES for _ in range(5)]
    )


VARIANTS: Final = [
    b"Content-Length: 9", b"Content-Length: 0", b"Content-Length:9", b"Content-Length:\t9 ",
    b"content-length: 9", b"Content-Length: 9,9", b"Content-Length: 9;", b"Content-Length: 0x9",
    b"Content-Length: \x0c9", b"Content-Length:", b"Content-Length: 009", b"Content-Length : 9",
    b"Content-Length\x00: 9", b"Content-Length: 9\x00", b"Content_Length: 9", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked", b"Transfer-Encoding:chunked", b"Transfer-Encoding: chunked ",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: x", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chunked\x00", b"Transfer-Encoding : chunked", b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: 'chunked'", b"Transfer-Encoding:\r\n chunked", b"X: \nTransfer-Encoding: chunked",
    b"X: a\rTransfer-Encoding: chunked", b" Transfer-Encoding: chunked",
    b"Transfer-Encoding: chun\xc2\xadked", b"Transfer\xc2\xa0Encoding: chunked", b"TE: chunked",
    b"Connection: Transfer-Encoding", b"Connection: close, content-length",
]  # fmt: skip
BODIES: Final = [b'{"q":"a"}', b'9\r\n{"q":"a"}\r\n0\r\n\r\n', b"", b"0\r\n\r\n"]


@pytest.mark.parametrize("path", ["plain", "tls"])
def test_lengths_and_codings_in_any_company(arena: Arena, path: str) -> None:
    check_codings_and_lengths(arena, path)


def check_codings_and_lengths(arena: Arena, path: str) -> None:
    seeded = random.Random(2)
    sends = [POST + one + b"\r\n\r\n" + body for one in VARIANTS for body in BODIES[:2]]
    for _ in range(120):
        lines = b"\r\n".join(seeded.sample(VARIANTS, 2))
        sends.append(POST + lines + b"\r\n\r\n" + seeded.choice(BODIES))
    answers = storm(arena, path, [fill(send, path) for send in (sends[::3] if path in TLS_PATHS else sends)])
    assert any(permitted(answers))


PIECES: Final = [
    b"/", b"//", b"v1", b"search", b"payouts", b".", b"..", b"%2e", b"%2E%2e", b"%2f", b"%5c", b"\\",
    b"%252e", b"%00", b"%0a", b"%20", b";", b"%3b", b"a", b"?", b"?q=a", b"&", b"=", b"%", b"%zz",
    b"%c0%ae", b"\xc3\xa9", b"*", b"@", b":80",
]  # fmt: skip


def test_paths_of_any_pieces(arena: Arena) -> None:
    seeded = random.Random(3)
    sends = []
    for _ in range(200):
        pieces = [seeded.choice(PIECES) for _ in range(seeded.randint(0, 4))]
        pieces.insert(seeded.randint(0, len(pieces)), b"/v1/search")
        sends.append(b"GET {at}" + b"".join(pieces) + b" HTTP/1.1\r\nHost: {host}\r\n" + CLOSE + b"\r\n")
    answers = storm(arena, "plain", [fill(send, "plain") for send in sends])
    for send, yes in zip(sends, permitted(answers), strict=True):
        if yes:
            assert re.match(rb"GET \{at\}/v1/search\?q=[^&=;]*", send), send


HOST_FORMS: Final = [
    "web.ok.test", "WEB.ok.test", "web.ok.test:80", "web.ok.test:080", "web.ok.test:", "web.ok.test:443",
    "web.ok.test.", ".web.ok.test", "web..ok.test", "web.ok.test:80:80", "a@web.ok.test",
    "web.ok.test@evil.test", "web.ok.test,evil.test", "web.ok.test evil.test", "web.ok.test\tx",
    "web.ok.test/", "web.ok.test#", "web.ok.test?", "web.ok.test\\", "[web.ok.test]", "web%2eok.test",
    "web.ok.test%00", "web.ok.test;", "web_ok.test", "web.ok.t\xc3\xa9st", "\"web.ok.test\"", "evil.test",
    "127.0.0.1", "0", "[::1]", "[::ffff:7f00:1]", "0x7f.1", "localhost", "api.ok.test", "web.ok.test:0",
    "web.ok.test:99999", "web.ok.test:+80", "web.ok.test: 80", "web.ok.test:8O", "-web.ok.test",
    "web-.ok.test", "xn--web.ok.test",
]  # fmt: skip


def test_hosts_of_any_form(arena: Arena) -> None:
    sends = []
    for target in HOST_FORMS:
        for host in {target, "web.ok.test"}:
            line = f"GET http://{target}/v1/search?q=a HTTP/1.1\r\nHost: {host}\r\n"
            sends.append(line.encode("latin-1") + CLOSE + b"\r\n")
    answers = storm(arena, "plain", sends)
    passed = [send for send, yes in zip(sends, permitted(answers), strict=True) if yes]
    for send in passed:
        assert re.match(
            rb"GET http://web\.ok\.test(?::80)?/v1/search\?q=a ", send.lower().replace(b"get", b"GET")
        )
    assert len(passed) == 5


# --- bodies: here the oracle says both what must and what must not be permitted ---


def post(target: bytes, media: bytes, body: bytes, extra: bytes = b"") -> bytes:
    return b"POST {at}%b HTTP/1.1\r\nHost: {host}\r\nContent-Type: %b\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
        target,
        media,
        extra,
        CLOSE,
        len(body),
        body,
    )


def mostly[T](seeded: random.Random, options: list[T]) -> T:
    """One of the first two, which are good ones, or, less often, any: most flaws should come alone."""
    return seeded.choice(options[:2] if seeded.random() < 0.6 else options)


class Twice(ValueError):
    """A key occurs twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key.casefold() for key, _ in pairs}) != len(pairs):
        raise Twice
    return dict(pairs)


def json_is_permitted(text: str) -> bool:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except ValueError:
        return False
    if not isinstance(value, dict) or not value.keys() <= {"amount", "recipient"} or "-0" in text:
        return False
    amount, recipient = value.get("amount"), value.get("recipient", "")
    return type(amount) is int and 1 <= amount <= 1000 and isinstance(recipient, str)


KEYS: Final = [
    '"amount"',
    '"amount"',
    '"Amount"',
    r'"\u0061mount"',
    '"recipient"',
    '"recipient"',
    '"recip\u0131ent"',
    '"amount "',
]
VALUES: Final = [
    "5",
    "5",
    "5",
    '"b"',
    "1000",
    "1001",
    "1.0",
    "1e2",
    "-1",
    "-0",
    '"5"',
    "null",
    "true",
    "[1]",
    "{}",
    '"a"',
    "05",
    "9" * 20,
]


def test_json_of_any_keys_and_values(arena: Arena) -> None:
    seeded = random.Random(4)
    texts = []
    for _ in range(200):
        count = seeded.choice((1, 1, 2, 2, 3))
        rows = [
            f"{mostly(seeded, KEYS)}{seeded.choice((':', ' : '))}{mostly(seeded, VALUES)}"
            for _ in range(count)
        ]
        texts.append(
            seeded.choice(("", " ", "\n"))
            + "{"
            + ",".join(rows)
            + "}"
            + seeded.choice(("", "", "", " ", "x"))
        )
    sends = [fill(post(b"/v1/transfers", b"application/json", text.encode()), "plain") for text in texts]
    answers = storm(arena, "plain", sends, at_once=1)
    verdicts = [(text, json_is_permitted(text)) for text in texts]
    assert list(zip(texts, permitted(answers), strict=True)) == verdicts
    assert 0 < sum(yes for _, yes in verdicts) < 150


def form_is_permitted(data: bytes) -> bool:
    pairs = [piece.partition(b"=")[::2] for piece in data.split(b"&")]
    names = [unquote_to_bytes(name.replace(b"+", b" ")) for name, _ in pairs]
    if len(set(names)) != len(names) or not set(names) <= {b"amount", b"recipient"} or b"amount" not in names:
        return False
    amount = unquote_to_bytes(pairs[names.index(b"amount")][1].replace(b"+", b" "))
    return re.fullmatch(rb"[1-9][0-9]{0,3}", amount) is not None and int(amount) <= 1000


FORM_KEYS: Final = [
    b"amount",
    b"amount",
    b"%61mount",
    b"amoun%74",
    b"Amount",
    b"recipient",
    b"recipien%74",
    b"amount+",
    b"+amount",
]
FORM_VALUES: Final = [
    b"5",
    b"5",
    b"%35",
    b"1000",
    b"1001",
    b"",
    b"+5",
    b"5+",
    b"0",
    b"05",
    b"-1",
    b"5.0",
    b"%D9%A1",
    b"1e1",
    b"a=b",
]


def test_forms_of_any_keys_and_values(arena: Arena) -> None:
    seeded = random.Random(5)
    forms = []
    for _ in range(200):
        count = seeded.choice((1, 1, 2, 2, 3))
        forms.append(
            b"&".join(mostly(seeded, FORM_KEYS) + b"=" + mostly(seeded, FORM_VALUES) for _ in range(count))
        )
    media = b"application/x-www-form-urlencoded"
    sends = [fill(post(b"/v1/charges", media, form), "plain") for form in forms]
    answers = storm(arena, "plain", sends, at_once=1)
    verdicts = [(form, form_is_permitted(form)) for form in forms]
    assert list(zip(forms, permitted(answers), strict=True)) == verdicts
    assert 0 < sum(yes for _, yes in verdicts) < 150


def codings() -> list[tuple[str, bytes, bytes, bool]]:
    plain = b'{"q":"a"}'
    packed = {"gzip": gzip.compress(plain), "br": brotli.compress(plain), "zstd": zstandard.compress(plain)}
    huge = b" " * 3_000_000 + plain
    bombs = {"gzip": gzip.compress(huge), "br": brotli.compress(huge), "zstd": zstandard.compress(huge)}
    rows = []
    for name, data in packed.items():
        coding = name.encode()
        rows += [
            (f"{name}", coding, data, True),
            (f"{name}, cut", coding, data[:-1], False),
            (f"{name}, one byte more", coding, data + b"\0", False),
            (f"{name}, twice", coding, data + data, False),
            (f"{name}, empty", coding, b"", False),
            (f"{name}, a bomb", coding, bombs[name], False),
            (f"{name} said to be another", b"br" if name != "br" else b"gzip", data, False),
            (f"{name}, one bit", coding, bytes([*data[:-3], data[-3] ^ 1, *data[-2:]]), False),
        ]
    rows.append(("zlib said to be gzip", b"gzip", zlib.compress(plain), False))
    rows.append(
        ("zstd behind a skippable frame", b"zstd", b"\x50\x2a\x4d\x18\1\0\0\0x" + packed["zstd"], False)
    )
    rows.append(("identity over gzip", b"identity", packed["gzip"], False))
    return rows


def test_content_codings_and_bombs(arena: Arena) -> None:
    rows = codings()
    sends = [
        fill(post(b"/v1/search", b"application/json", body, b"Content-Encoding: %b\r\n" % coding), "plain")
        for _, coding, body, _ in rows
    ]
    answers = storm(arena, "plain", sends)
    verdicts = [(name, yes) for name, _, _, yes in rows]
    got = [(name, yes) for (name, _, _, _), yes in zip(rows, permitted(answers), strict=True)]
    # These have no checksum: one flipped bit may be another text, which is then read and decided as it is.
    flexible = {"br, one bit", "zstd, one bit"}
    assert [row for row in got if row[0] not in flexible] == [
        row for row in verdicts if row[0] not in flexible
    ]


PART_HEADS: Final = [
    b'Content-Disposition: form-data; name="amount"',
    b'Content-Disposition: form-data; name="amount"; filename="a"',
    b"Content-Disposition: form-data; name=amount", b'content-disposition:form-data;name="amount"',
    b'Content-Disposition: form-data; name="amount"; name="x"',
    b'Content-Disposition: form-data; name="a\\"mount"', b'Content-Disposition: attachment; name="amount"',
    b'Content-Disposition: form-data; name*=utf-8\'\'amount',
    b'Content-Disposition: form-data; name="amount"\r\nContent-Type: text/plain; charset=utf-16',
    b'Content-Disposition: form-data; name="amount"\r\nContent-Transfer-Encoding: base64', b"X: y", b"",
    b'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: text/plain',
]  # fmt: skip
PART_ENDS: Final = [b"\r\n", b"\n", b"\r\n\r\n", b"", b"--edge--\r\n"]


def test_multipart_of_any_parts(arena: Arena) -> None:
    seeded = random.Random(6)
    bodies = []
    for _ in range(150):
        body = seeded.choice((b"", b"", b"", b"preamble\r\n"))
        for _ in range(seeded.randint(1, 2)):
            end = seeded.choice((b"\r\n", b"\r\n", b"\r\n", *PART_ENDS))
            body += (
                b"--edge\r\n"
                + seeded.choice(PART_HEADS[:1] * 6 + PART_HEADS)
                + b"\r\n\r\n"
                + seeded.choice((b"5", b"9"))
                + end
            )
        bodies.append(body + seeded.choice((b"--edge--\r\n", b"--edge--", b"--edge", b"--edge--x", b"")))
    media = b"multipart/form-data; boundary=edge"
    sends = [fill(post(b"/v1/files", media, body), "plain") for body in bodies]
    answers = storm(arena, "plain", sends, at_once=1)
    for body, yes in zip(bodies, permitted(answers), strict=True):
        if yes:  # one amount, in the one plain spelling, and it is 5
            assert len(re.findall(rb'name="amount"', body)) == 1, body
            assert re.search(rb'; ?name="amount"\r\n\r\n5\r\n--edge', body), body
    assert any(permitted(answers))


def mutated(seeded: random.Random, base: bytes) -> bytes:
    data = bytearray(base)
    for _ in range(seeded.randint(1, 3)):
        at = seeded.randrange(len(data))
        match seeded.randrange(6):
            case 0:
                data[at] = seeded.randrange(256)
            case 1:
                data.insert(at, seeded.choice(TELLING))
            case 2:
                del data[at]
            case 3:
                data[at:at] = data[at : at + seeded.randint(1, 30)]
            case 4:
                lines = bytes(data).split(b"\r\n")
                seeded.shuffle(lines)
                data = bytearray(b"\r\n".join(lines))
            case _:
                data[at] ^= 0x20
        data = data or bytearray(base)
    return bytes(data)


@pytest.mark.parametrize("path", ["plain", "tls"])
def test_random_damage(arena: Arena, path: str) -> None:
    check_random_damage(arena, path)


def check_random_damage(arena: Arena, path: str) -> None:
    seeded = random.Random(7)
    count = 100 if path in TLS_PATHS else 300
    sends = [mutated(seeded, fill(seeded.choice((GET, LENGTH, CHUNKED)), path)) for _ in range(count)]
    storm(arena, path, sends, single=False)
