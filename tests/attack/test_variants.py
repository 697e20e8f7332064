"""Lists of variants, one list per disagreement between parsers: each is refused, or arrives exactly as read.

A list says what must be refused and what must not be; `strict.py` reads what was permitted, and the storm
compares that with what arrived. Lists of bodies go where an amount is at stake.

Over 400 lines: one variant per line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

from attack.arena import Arena
from attack.test_families import CLOSE, POST, fill, permitted, post, storm

pytestmark = pytest.mark.slow

JSON: Final = b"application/json"
FORM: Final = b"application/x-www-form-urlencoded"
MULTIPART: Final = b"multipart/form-data; boundary=edge"
GOOD: Final = b'{"q":"a"}'
HEAD: Final = b"GET {at}/v1/search?q=a HTTP/1.1\r\nHost: {host}\r\n" + CLOSE


@dataclass(frozen=True)
class Variants:
    """What is sent, by whether it must be refused (`no`) or permitted (`yes`)."""

    no: list[bytes]
    yes: list[bytes]


def chunked(body: bytes) -> bytes:
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + body


def counted(header: bytes) -> bytes:
    return POST + b"Content-Length: 9\r\n" + header + b"\r\n\r\n" + GOOD


def line(text: bytes) -> bytes:
    return text + b"\r\nHost: {host}\r\n" + CLOSE + b"\r\n"


def got(header: bytes) -> bytes:
    return HEAD + header + b"\r\n\r\n"


def searched(target: bytes) -> bytes:
    return line(b"GET {at}" + target + b" HTTP/1.1")


def keyed(key: bytes, number: int) -> bytes:
    return post(
        b"/v1/charges", FORM, b"amount=5&recipient=key%d" % number, b"Idempotency-Key: " + key + b"\r\n"
    )


def multipart(part: bytes, end: bytes = b"--edge--\r\n", media: bytes = MULTIPART) -> bytes:
    return post(b"/v1/files", media, b"--edge\r\n" + part + b"\r\n" + end)


PART: Final = b'Content-Disposition: form-data; name="amount"\r\n\r\n5'

# EXT.TERM, TERM.EXT, TERM.SPILL and one- and two-byte terminators are the names of Kuria's classes (2025).
CHUNKS: Final = Variants(
    no=[
        chunked(body)
        for body in (
            b"9;\r\nxx\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"9\r\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"9;a\rb\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"9\r\n" + GOOD + b"\r0\r\n\r\n",
            b"9\r\n" + GOOD + b"\r\n0;a\r\n\r\n",
            b"9\r\n" + GOOD + b"\r\n0\r\nContent-Length: 5\r\n\r\n",
            b"9\r\n" + GOOD + b"\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
            b"9\r\n" + GOOD + b"\r\n0\r\n\n",
            b"9\r\n" + GOOD + b"\r\n0\n\r\n",
            b"9\r\n" + GOOD + b"\r\n0\r\nabc",
            b"100000009\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"000000009\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"9\r\n\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"\r\n9\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"9h\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"0_9\r\n" + GOOD + b"\r\n0\r\n\r\n",
            b"9\0\r\n" + GOOD + b"\r\n0\r\n\r\n",
            "\uff19\r\n".encode() + GOOD + b"\r\n0\r\n\r\n",
        )
    ],
    yes=[chunked(b"00000009\r\n" + GOOD + b"\r\n00000000\r\n\r\n"), chunked(b'a\r\n{"q":"ab"}\r\n0\r\n\r\n')],
)
NAMES: Final = Variants(
    no=[
        counted(header)
        for header in (
            b"Transfer-Encoding\xc2\xad: chunked",
            b"Transfer.Encoding: chunked",
            b"Transfer!Encoding: chunked",
            "Tran\u017ffer-Encoding: chunked".encode(),
            b'"Transfer-Encoding": chunked',
            b"Content-Lengt\xcc\xb2h: 3",
            b"Content.Length: 3",
            b"\rContent-Length: 3",
            b"Content_Type: text/xml",
            b"Content.Type: text/xml",
            b"Content_Encoding: gzip",
            b"HTTP_HOST: evil.test",
            b"Host_: a\r\nHost: b",
        )
    ],
    yes=[counted(b"X-Length: 3"), counted(b"Content-Language: de")],
)
EXPECTATIONS: Final = Variants(
    no=[
        counted(b"Expect: " + value)
        for value in (
            b"100-continue, 100-continue",
            b"y 100-continue",
            b"100-continue;a=b",
            b"",
            b"0",
            b"100_continue",
            b"100-continue\r\nExpect: 100-continue",
        )
    ],
    yes=[counted(b"Expect: 100-Continue"), got(b"Expect: 100-continue")],
)
CONNECTIONS: Final = Variants(
    no=[
        counted(b"Connection: " + value)
        for value in (
            b"Host",
            b"Content-Length, close",
            b"Transfer-Encoding",
            b"Content-Type",
            b"Cookie",
            b'"close"',
            b"close;a",
            b"Connection",
            b"Expect",
            b"clo se",
            b"X-Forwarded-For",
            b"upgrade, X",
        )
    ],
    yes=[counted(b"Connection: TE, te"), counted(b"Connection: close,close")],
)
LINES: Final = Variants(
    no=[
        line(text)
        for text in (
            b"GET {at}/v1/search?q=a HTTP/01.1",
            b"GET {at}/v1/search?q=a HTTP/1.10",
            b"GET {at}/v1/search?q=a HTTP/3",
            b"GET {at}/v1/search?q=a HTTP/1,1",
            b"GET {at}/v1/search?q=a RTSP/1.0",
            b"GET {at}/v1/search?q=a ICE/1.1",
            b"GET {at}/v1/search?q=a HTTPS/1.1",
            b"GET {at}/v1/search?q=a HTTP/1.1 HTTP/1.1",
            b"GET {at}/v1/search?q=a HTTP/\xef\xbc\x91.1",
            b"GET ws://{host}/v1/search?q=a HTTP/1.1",
            b"GET //{host}/v1/search?q=a HTTP/1.1",
            b"GET /\\{host}/v1/search?q=a HTTP/1.1",
            b"GET http:/v1/search?q=a HTTP/1.1",
            b"GET http:///v1/search?q=a HTTP/1.1",
            b"GET {host} HTTP/1.1",
            b"GET {host}:443 HTTP/1.1",
            b"GET ?q=a HTTP/1.1",
            b"GET v1/search?q=a HTTP/1.1",
            b"OPTIONS {at} HTTP/1.1",
            b"QUERY {at}/v1/search?q=a HTTP/1.1",
            b"TRACK {at}/v1/search?q=a HTTP/1.1",
            b"%b {at}/ HTTP/1.1" % (b"A" * 33),
            b"M-SEARCH {at}/v1/search?q=a HTTP/1.1",
            b"Get {at}/v1/search?q=a HTTP/1.1",
        )
    ],
    yes=[line(b"GET {at}/v1/search?q=a%20HTTP/1.1 HTTP/1.1")],
)
TARGETS: Final = Variants(
    no=[
        searched(target)
        for target in (
            b"/v1/search/..;/payouts",
            b"/v1/search/%2e%2e%2fpayouts",
            b"/v1/search%3F",
            b"/v1/search%3f?q=a",
            b"/v1/search%e2%80%8b?q=a",
            b"/v1/%ef%bd%93earch?q=a",
            b"/v1/search/.%00./payouts",
            b"/v1/search%uff0e",
            b"/v1/items/..%2fpayouts",
            b"/v1/items/a%2f..%2fb",
            b"/v1/items/a%5cb",
            b"/v1/items/a%3bb",
            b"/v1/items/a%252fb",
            b"/v1/items/%ed%a0%80",
            b"/v1/items/%f4%90%80%80",
            b"/v1/items/a%c2%85",
            b"/v1/search|?q=a",
            b"/v1/search{a}?q=a",
            b"/v1/search[0]?q=a",
            b"/v1/search?q=a\\b",
            b"/v1/search?q=a%00",
            b"/v1/search?q=%ff",
            b"/v1/search?q[]=a",
            b"/v1/search?q=a&Q=b",
            b"/v1/search?q=a&+q=b",
            b"/v1/search?q=a&q%20=b",
            b"/v1/search?q=a&%EF%BD%91=b",
            b"/v1/search?=a&q=b",
            b"/v1/search?&q=a",
        )
    ],
    yes=[
        searched(target)
        for target in (
            b"/v1/items/a:b@c",
            b"/v1/items/a'(b)*!$&+,=",
            b"/v1/items/%E2%82%AC",
            b"/v1/items/a%25b",
            b"/v1/items/...",
            b"/v1/items/.a",
            b"/v1/items/a.",
            b"/v1/search?q=a/b?c",
            b"/v1/search?q=a%26b",
            b"/v1/search?q=a+b=c",
            b"/v1/search?q=a|b",
        )
    ],
)
KEYS: Final = Variants(
    no=[
        keyed(key, number)
        for number, key in enumerate(
            [
                b"a" * 256,
                b"caf\xc3\xa9",
                b"a\tb",
                b"\xe2\x80\x8b",
                b"\xef\xbc\xa1",
                b"a\r\nidempotency-key: b",
                b"a\r\nIdempotency.Key: b",
                b"a\r\nX-Idempotency-Key: b",
            ]
        )
    ],
    yes=[
        keyed(key, 50 + number) for number, key in enumerate([b"a" * 255, b" v,1 ", b'"v2"', b"%76", b"v 3"])
    ],
)
# What these name must come from the map: the operation, the host, the caller.
ROUTES: Final = Variants(
    no=[
        got(header)
        for header in (
            b"X-Amz-Target: Rpc.Pay",
            b"SOAPAction: pay",
            b"X-HTTP-Host-Override: evil.test",
            b"Http_Host: evil.test",
            b"X.HTTP.Method.Override: DELETE",
            b"_method: DELETE",
            b"X-HTTP-METHOD-OVERRIDE:",
            b"X-Override-URL: /",
        )
    ],
    yes=[
        got(header)
        for header in (
            b"X-Envoy-Original-Path: /v1/payouts",
            b"X-MS-CLIENT-PRINCIPAL-ID: a",
            b"X_Rewrite_URL: /v1/payouts",
            b"X-Original-Method: DELETE",
            b"X-Forwarded-Uri: /a",
            b"X-Consumer-Username: a",
        )
    ],
)
JSONS: Final = Variants(
    no=[
        post(b"/v1/transfers", JSON, text.encode(coding))
        for coding, texts in {
            "utf-8": (
                '{"amount":1,"recipient":"a\\u0000"}',
                '{"amount":1,"amount\\u0000":9}',
                '{"amount":1,"\\ufeffamount":9}',
                '{"amount":1,"amo\\u00adunt":9}',
                '{"amount":1,"\uff41mount":9}',
                '{"amount":1,"":9}',
                '{"amount":1}//',
                '\u00a0{"amount":1}',
                '{"amount":1}\u2028',
                "{amount:1}",
                '{"amount":1n}',
                '{"amount":\u0663}',
                '{"amount":1,,"recipient":"a"}',
                '{"amount":1,"recipient":"\\x41"}',
                '{"amount":18446744073709551617}',
            ),
            "utf-16-le": ('{"amount":1}',),
            "utf-16-be": ('{"amount":1}',),
            "utf-32": ('{"amount":1}',),
            "cp037": ('{"amount":1}',),
        }.items()
        for text in texts
    ]
    + [
        post(b"/v1/transfers", media, b'{"amount":2}')
        for media in (
            b"application/json; charset*=utf-8''utf-16",
            b"application/json;;charset=utf-8",
            b"application/json; charset=utf-8; charset=utf-16",
            b"application/*",
            b"application/json5",
            b"text/json",
            b"application/x-ndjson",
            b"application/json\xc2\xa0",
            b'application/json; "charset"=utf-16',
        )
    ],
    yes=[
        post(
            b"/v1/transfers",
            b'APPLICATION/JSON ; CHARSET="utf-8"',
            b'{"amount":3,"recipient":"\xf0\x9f\x98\x80"}',
        ),
        post(b"/v1/transfers", b"application/json; charset=utf8", b'{"amount":2}'),
    ],
)
FORMS: Final = Variants(
    no=[
        post(b"/v1/charges", FORM, body)
        for body in (
            b"amount[0]=9",
            b"amount[=9&amount=1",
            b"amount]=9&amount=1",
            b"[amount]=9&amount=1",
            b"amount=1&%5Bamount%5D=9",
            b"amount=1&amount%5B%30%5D=9",
            b"amount=%u0031",
            b"amount=%C0%B1",
            b"amount=%E0%80%B1",
            b"amount=%EF%BC%91",
            b"amount=1&recipient=%ff",
            b"amount=1&recipient=%ed%a0%80",
            b"amount=1\r\n",
            b"amount=1%c2%a0",
            b"?amount=1",
            b"amount=1&card[number]=1&card%5Bnumber%5D=2",
            b"amount=1&card=1&card[number]=1",
            b"amount=1&card[number]x=1",
            b"amount=1&card[[number]]=1",
            b"amount=1&card[][number]=1",
            b"amount=1&card.number=1",
            b"amount=1&_method=DELETE",
            b"amount=1&_charset_=utf-16",
            b"amount[$gt]=0",
            b"amount=1&card[__proto__][number]=1",
        )
    ]
    + [post(b"/v1/charges", FORM + b"; charset*=utf-8''utf-16", b"amount=1")],
    yes=[
        post(b"/v1/charges", FORM, body)
        for body in (
            b"amount=5&recipient=a:b/c@d",
            b"recipient=a%26amount%3D9&amount=5",
            b"amount=5&card%5bnumber%5d=4",
        )
    ],
)
MULTIPARTS: Final = Variants(
    no=[
        multipart(part)
        for part in (
            PART.replace(b"; name", b";\r\n name"),
            PART.replace(b"name=", b"NAME="),
            PART.replace(b'"', b"'"),
            PART.replace(b'amount"', b'amount%22"'),
            PART.replace(b'amount"', b"amount\"; filename*=utf-8''x"),
            PART.replace(b"\r\n\r\n", b'\r\nContent-Disposition: form-data; name="b"\r\n\r\n'),
            PART.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
            PART.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n"),
            PART + b"\r\n--edge \r\n" + PART,
            PART + b"\r\n--edgex\r\n" + PART,
            PART + b"\r\n--edge\r\n" + PART.replace(b"amount", b"Amount"),
            PART + b"\r\n--edge\r\n" + PART.replace(b"amount", b"amount[]"),
            PART.replace(b"amount", b"_charset_") + b"\r\n--edge\r\n" + PART,
            PART.replace(b"amount", b"=?utf-8?q?amount?="),
            PART.replace(b"Disposition:", b"Disposition :"),
            PART[2:],
        )
    ]
    + [
        multipart(PART, end)
        for end in (
            b"--edge-\r\n",
            b"--edge--\r\n--edge--\r\n",
            b"--edge--x",
            b"--edge--\r\n--edge\r\n" + PART,
        )
    ]
    + [
        multipart(PART, media=media)
        for media in (
            MULTIPART + b"; boundary*=utf-8''x",
            b"multipart/form-data; boundary*=utf-8''edge",
            b"multipart/mixed; boundary=edge",
            b"multipart/form-data; boundary*0=ed; boundary*1=ge",
            b'multipart/form-data; boundary="ed\\ge"',
            b"multipart/form-data; boundary=EDGE",
            b"multipart/form-data; boundary=x; boundary=edge",
        )
    ],
    yes=[multipart(PART), multipart(PART, media=b'multipart/form-data; boundary="edge"')],
)
_INVOICE: Final = "<invoice><amount>7</amount></invoice>"
XMLS: Final = Variants(
    no=[
        post(b"/v1/invoices", b"text/xml", text.encode("utf-16-le"))
        for text in (
            _INVOICE,
            f'<!DOCTYPE invoice SYSTEM "http://evil.test/a">{_INVOICE}',
            _INVOICE.replace("7", "1<!-- -->00"),
            f'<!DOCTYPE invoice [<!ENTITY a "7">]>{_INVOICE.replace("7", "&a;")}',
        )
    ]
    + [
        post(b"/v1/invoices", b"text/xml", text.encode())
        for text in (
            _INVOICE.replace("7", "7\0"),
            _INVOICE.replace("<amount>", '<amount a="9">'),
            f"<?x?>{_INVOICE}",
            _INVOICE.replace("</invoice>", "<Amount>9</Amount></invoice>"),
            f"\ufeff{_INVOICE}",
            f"{_INVOICE}{_INVOICE}",
            _INVOICE.replace(
                "<invoice>", '<invoice xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="a"/>'
            ),
            _INVOICE.replace("<amount>", f'<amount xmlns="{"u" * 30_000}">'),
            f"<?xml version='1.0' encoding='ucs-4'?>{_INVOICE}",
        )
    ],
    yes=[post(b"/v1/invoices", b"text/xml", f'<?xml version="1.0" encoding="UTF-8"?>{_INVOICE}'.encode())],
)

LISTS: Final = {
    "chunks": CHUNKS,
    "names": NAMES,
    "expectations": EXPECTATIONS,
    "connections": CONNECTIONS,
    "lines": LINES,
    "targets": TARGETS,
    "keys": KEYS,
    "routes": ROUTES,
    "json": JSONS,
    "forms": FORMS,
    "multipart": MULTIPARTS,
    "xml": XMLS,
}
# Equal commits in flight would share one dispatch.
COMMITS: Final = ("keys", "json", "forms", "multipart", "xml")


@pytest.mark.parametrize("path", ["plain", "tls"])
@pytest.mark.parametrize("kind", LISTS)
def test_variants(arena: Arena, kind: str, path: str) -> None:
    check_variants(arena, kind, path)


def check_variants(arena: Arena, kind: str, path: str) -> None:
    variants = LISTS[kind]
    sends = [fill(send, path) for send in (*variants.no, *variants.yes)]
    at_once = 1 if kind in COMMITS else 8
    passed = permitted(storm(arena, path, sends, at_once=at_once, single=False))
    got_through = [send for send, yes in zip(sends, passed, strict=True) if yes]
    assert got_through == sends[len(variants.no) :], kind
