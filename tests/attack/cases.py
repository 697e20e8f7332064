"""cases.yaml as values: what to send on which path, and what must come of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from attack.arena import HERE, HOSTS, Reply

_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-f]{2})|([rnt\\]))")
_SIMPLE: Final = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}
_TYPES: Final = {
    "form": "application/x-www-form-urlencoded",
    "json": "application/json",
    "xml": "text/xml",
}
_TARGETS: Final = {"form": "/v1/charges", "json": "/v1/transfers", "xml": "/v1/invoices"}
# CONNECT and the listener's own address are not there when traffic is redirected.
TWINS: Final = {"tls": "redirected", "plain": "redirected plain"}
_KEYS: Final = {
    "id", "via", "send", "raw", "target", "method", "url", "as", "form", "json", "xml", "parts", "coding",
    "type", "sni", "connect", "source", "then", "head", "expect", "responses", "upstream", "agent",
    "redirected",
}  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """One answer: `*` in reasons or statuses takes any; the status `closed` is no HTTP answer."""

    outcome: str
    reasons: frozenset[str]
    statuses: frozenset[str]


@dataclass(frozen=True)
class Case:
    id: str
    path: str
    send: str
    connect: str
    sni: str | None
    source: str
    ends: bool
    head: bool
    agent: str
    expected: tuple[Expected, ...]
    upstream: str | None

    def bytes_of(self, text: str, places: dict[str, str]) -> bytes:
        return unescape(fill(text, self.path, places))


def unescape(text: str) -> bytes:
    """Escapes to bytes; everything else is ASCII."""
    plain = _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _SIMPLE[m[2]], text)
    return plain.encode("latin-1")


def fill(text: str, path: str, places: dict[str, str]) -> str:
    host = HOSTS.get(path, HOSTS["tls"])
    at = "" if path in ("tls", "redirected", "redirected plain") else f"http://{host}"
    values = {"host": host, "at": at, **places}
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return re.sub(r"\{(.)\*([0-9]+)\}", lambda m: m[1] * int(m[2]), text)


def wire(text: str) -> str:
    """Lines become a head; what follows the first empty line is the body."""
    head, gap, body = text.removesuffix("\n").partition("\n\n")
    return head.removesuffix("\n").replace("\n", "\\r\\n") + "\\r\\n\\r\\n" + (body if gap else "")


def _document() -> dict[str, Any]:
    with (HERE / "cases.yaml").open(encoding="utf-8") as file:
        document: dict[str, Any] = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return document


@dataclass(frozen=True)
class Forged:
    """One answer of an upstream, and what the agent may see of it."""

    id: str
    method: str
    reply: Reply
    statuses: frozenset[str]
    outcome: str
    body: str | None
    without: tuple[str, ...]
    cut: bool


def load_answers() -> list[Forged]:
    places = {f"CONTINUE{count}": "HTTP/1.1 100 Continue\\r\\n\\r\\n" * count for count in (8, 9, 999)}
    answers = []
    for row in _document()["answers"]:
        statuses, outcome = row["expect"].split()
        answers.append(
            Forged(
                id=row["id"],
                method=row.get("method", "GET"),
                reply=Reply(unescape(fill(row["reply"], "tls", places)), row.get("then", "stay")),
                statuses=frozenset(statuses.split("|")),
                outcome=outcome,
                body=row.get("body"),
                without=tuple(row.get("without", ())),
                cut=row.get("cut", False),
            )
        )
    return answers


def load() -> list[Case]:
    """Every case on each of its paths to the explicit listener."""
    cases = [case for row in _document()["cases"] for case in _cases(row)]
    return _checked([case for case in cases if case.path not in TWINS.values()])


def load_redirected() -> list[Case]:
    """The same cases as traffic that an agent sends straight to the internet, and a packet filter redirects.

    Where a row says nothing of it, the answer is the same. `redirected:` says what else is answered, or why
    there is no such case.
    """
    cases = []
    for row in _document()["cases"]:
        said = row.get("redirected", "")
        other = said if said.startswith(("SILENCE ", "DENY ", "PERMIT ")) else None
        if said and other is None:
            continue
        for case in _cases(row | ({"expect": other} if other else {})):
            path = TWINS.get(case.path, case.path)
            if path in TWINS.values():
                cases.append(replace(case, path=path))
    return _checked(cases)


def _checked(cases: list[Case]) -> list[Case]:
    names = [(case.id, case.path) for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two cases have one id: {twice}")
    return cases


def _cases(row: dict[str, Any]) -> list[Case]:
    if unknown := row.keys() - _KEYS:
        raise ValueError(f"{row['id']}: {unknown}")
    send, upstream, default_on = _request(row)
    lines = row.get("responses") or [row["expect"]]
    expected = tuple(
        Expected(o, frozenset(r.split("|")), frozenset(s.split("|"))) for o, r, s in map(_three, lines)
    )
    permitted = any(one.outcome == "PERMIT" for one in expected)
    if "upstream" in row:
        upstream = wire(row["upstream"])
    return [
        Case(
            id=row["id"],
            path=path,
            send=send,
            connect=row.get("connect", "api.ok.test:443"),
            sni=row.get("sni", row.get("connect", "api.ok.test").partition(":")[0]) or None,
            source=row.get("source", "127.0.0.1"),
            ends=row.get("then") == "end",
            head=row.get("head", False),
            agent=row.get("agent", ""),
            expected=expected,
            upstream=upstream if permitted else None,
        )
        for path in row.get("via", default_on)
    ]


def _three(line: str) -> tuple[str, str, str]:
    words = line.split()
    if len(words) == 2:
        words.insert(1, "*")
    outcome, reasons, statuses = words
    return outcome, reasons, statuses


def _request(row: dict[str, Any]) -> tuple[str, str | None, list[str]]:
    """What is sent, what arrives if it is permitted (None: the case says it), and on which paths."""
    if "raw" in row:
        return row["raw"], None, ["tls", "plain"]
    if "send" in row:
        return wire(row["send"]), None, ["tls", "plain"]
    if "url" in row:
        return _url(row)
    text = _short(row)
    return text, text.replace("{at}", ""), ["tls", "plain"]


def _url(row: dict[str, Any]) -> tuple[str, str, list[str]]:
    after = row["url"].partition("//")[2]
    authority = row.get("as") or re.split(r"[/?#\\]", after, maxsplit=1)[0]
    path = after[len(authority) :]
    name = authority.lower().removesuffix(":80")
    sent = f"GET {row['url']} HTTP/1.1\\r\\nHost: {authority}\\r\\n\\r\\n"
    return sent, f"GET {path} HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n", ["listener"]


def _short(row: dict[str, Any]) -> str:
    kind = next((kind for kind in ("form", "json", "xml") if kind in row), None)
    method = row.get("method", "POST")
    extra = ""
    if kind is not None:
        target, body, media = row.get("target", _TARGETS[kind]), row[kind], row.get("type", _TYPES[kind])
    elif "parts" in row:
        target, media = "/v1/files", "multipart/form-data; boundary=edge"
        parts = [
            f"--edge\\r\\nContent-Disposition: form-data; {part}\\r\\n" for part in row["parts"].split("|")
        ]
        body = "".join(parts) + "--edge--\\r\\n"
    else:
        target, media, body = row.get("target", "/v1/search"), "application/json", '{"q":"a"}'
        extra = f"Content-Encoding: {row['coding']}\\r\\n" if "coding" in row else ""
    if method != "POST":
        return f"{method} {{at}}{target} HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n"
    size = len(unescape(fill(body, "tls", {})))
    return (
        f"POST {{at}}{target} HTTP/1.1\\r\\nHost: {{host}}\\r\\nContent-Type: {media}\\r\\n{extra}"
        f"Content-Length: {size}\\r\\n\\r\\n{body}"
    )
