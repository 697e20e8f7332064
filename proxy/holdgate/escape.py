"""The escape matrix: every way round the proxy that is tried, as data.

    targets -> plan: probes, each with a token of its own

A *probe* is tried where the agent stands, by adapters/doctor/probe.py, which knows how and nothing else.
The *witness* stands where the internet is and writes down every token that reaches it. coverage.py judges.
Long because most of it is the table, one entry a row.

Invariants (tests/test_escape.py has one test named after each):
  EM1  The matrix has one row per id, and no two rows of one run share a token.
  EM2  Whatever could reach the witness, or is looked for in the log, carries its row's token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

__all__ = [
    "CELLS",
    "EXPECTED",
    "MATRIX",
    "NETWORK",
    "REQUIRED",
    "Cell",
    "Judge",
    "Probe",
    "Targets",
    "plan",
    "row_of",
    "token_of",
]


class Judge(StrEnum):
    """How a probe's result becomes a state."""

    WITNESS = "witness"  # closed when a working witness did not see it
    ANSWER = "answer"  # open when somebody else than the gate answers
    ATTEMPT = "attempt"  # open when it worked
    CONTROL = "control"  # closed when the gate's log has it
    HOST = "host"  # decided by the command on the gate's host
    FAILURE = "failure"  # like WITNESS, while the gate is down or starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row of the matrix, before anything was tried."""

    tried: str
    judge: Judge
    kind: str = ""  # of probe, see adapters/doctor/probe.py; "" when no probe is needed
    family: int = 0  # 4 or 6: needs a witness address of it
    port: int = 0
    proto: int = 0
    send: str = ""  # a name in _BYTES
    to: str = "witness"  # or proxy, admin, an address
    required: bool = True


_TCP_PORTS: Final = {
    22: "SSH",
    25: "SMTP",
    53: "DNS over TCP",
    80: "HTTP",
    443: "bytes that are not TLS on the HTTPS port",
    853: "DNS over TLS",
    8080: "another proxy",
    8443: "another HTTPS port",
    40001: "a high port",
}
_UDP_PORTS: Final = {53: "DNS to a resolver of its own", 443: "QUIC", 123: "NTP", 40001: "a high port"}
_PROTOCOLS: Final = {"sctp": 132, "udplite": 136, "gre": 47}

# What is sent on a connection. `{token}` names the row, `{host}` is the witness.
_BYTES: Final[Mapping[str, tuple[str, ...]]] = {
    "raw": ("SSH-2.0-{token}\r\n",),
    "http": ("GET /{token} HTTP/1.1\r\nHost: {host}\r\n\r\n",),
    "named": ("GET / HTTP/1.1\r\nHost: {token}.holdgate.invalid\r\n\r\n",),
    "absolute": ("GET http://{host}/{token} HTTP/1.1\r\nHost: {host}\r\n\r\n",),
    "control": ("GET http://{token}.holdgate.invalid/ HTTP/1.1\r\nHost: {token}.holdgate.invalid\r\n\r\n",),
    "connect": ("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n", "{token}\n"),
    "nested": (
        "CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n",
        "CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\nX-Token: {token}\r\n\r\n",
        "{token}\n",
    ),
    "prior": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0{token}",),
    "upgrade": (
        "GET {base}/{token} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        "{token}",
    ),
    "websocket": (
        "GET {base}/{token} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        "{token}",
    ),
    "doh": (
        "POST {base}/dns-query HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/dns-message\r\n"
        "Content-Length: 38\r\n\r\n{token}",
    ),
    "metadata": (
        "GET http://169.254.169.254/latest/meta-data/{token} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
    ),
    "metadata_direct": ("GET /latest/meta-data/{token} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",),
    "admin": ("GET http://{admin}/healthz HTTP/1.1\r\nHost: {admin}\r\n\r\n",),
    "admin_direct": ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",),
    "self": ("GET http://{proxy}/{token} HTTP/1.1\r\nHost: {proxy}\r\n\r\n",),
}


def _network() -> Iterator[tuple[str, Cell]]:
    """What goes straight to the witness. Long because it is a table."""
    for v in (4, 6):
        for port, what in _TCP_PORTS.items():
            tried = f"TCP {port} over IPv{v}, by address: {what}"
            yield (
                f"tcp{v}.{port}",
                Cell(tried=tried, judge=Judge.WITNESS, kind="tcp", family=v, port=port, send="raw"),
            )
        for port, what in _UDP_PORTS.items():
            send = "quic" if port == 443 else "dns" if port == 53 else "raw"
            tried = f"UDP {port} over IPv{v}: {what}"
            yield (
                f"udp{v}.{port}",
                Cell(tried=tried, judge=Judge.WITNESS, kind="udp", family=v, port=port, send=send),
            )
        yield (
            f"icmp{v}",
            Cell(
                tried=f"ICMP echo over IPv{v}",
                judge=Judge.WITNESS,
                kind="icmp",
                family=v,
                proto=1 if v == 4 else 58,
            ),
        )
        for name, proto in _PROTOCOLS.items():
            yield (
                f"{name}{v}",
                Cell(
                    tried=f"{name.upper()} over IPv{v}", judge=Judge.WITNESS, kind="ip", family=v, proto=proto
                ),
            )
    direct = {
        "direct.http": ("HTTP to an address, no proxy set", "http", 80),
        "direct.connect": ("CONNECT on a redirected connection", "connect", 80),
        "direct.h2c_prior": ("HTTP/2 without TLS, prior knowledge", "prior", 80),
        "direct.h2c_upgrade": ("upgrade to h2c", "upgrade", 80),
        "direct.websocket": ("WebSocket upgrade", "websocket", 80),
    }
    for name, (tried, send, port) in direct.items():
        yield name, Cell(tried=tried, judge=Judge.WITNESS, kind="tcp", family=4, port=port, send=send)
    yield (
        "direct.tls",
        Cell(
            tried="TLS handshake whose server name carries data",
            judge=Judge.WITNESS,
            kind="tls",
            family=4,
            port=443,
        ),
    )


def _proxied() -> Iterator[tuple[str, Cell]]:
    rows = {
        "proxy.literal": ("an address as the host of a proxied request", "absolute", Judge.WITNESS),
        "proxy.connect": ("bytes that are not HTTP inside CONNECT", "connect", Judge.WITNESS),
        "proxy.nested_connect": ("CONNECT inside CONNECT", "nested", Judge.WITNESS),
        "proxy.h2c_prior": ("HTTP/2 without TLS, to the proxy", "prior", Judge.WITNESS),
        "proxy.h2c_upgrade": ("upgrade to h2c through the proxy", "upgrade", Judge.WITNESS),
        "proxy.websocket": ("WebSocket upgrade through the proxy", "websocket", Judge.WITNESS),
        "proxy.doh": ("DNS over HTTPS to a host that is not mapped", "doh", Judge.WITNESS),
        "proxy.metadata": ("cloud metadata through the proxy", "metadata", Judge.ANSWER),
        "proxy.admin": ("the admin API through the proxy", "admin", Judge.ANSWER),
        "proxy.self": ("the proxy's own listener through the proxy", "self", Judge.ANSWER),
    }
    for name, (tried, send, how) in rows.items():
        yield name, Cell(tried=tried, judge=how, kind="tcp", family=4, send=send, to="proxy")


_LOCAL: Final = {
    "local.raw_socket": ("open a raw IP socket", "raw"),
    "local.packet_socket": ("open a packet socket", "packet"),
    "local.capabilities": ("hold a capability that changes networks, traces or loads", "caps"),
    "local.change_network": ("delete a network interface (one that does not exist)", "netlink"),
    "local.secrets": ("read the keys of the CA and of the state directory", "files"),
    "local.ptrace": ("open the memory of the proxy", "ptrace"),
    "local.unix_sockets": ("connect to sockets of a container runtime, D-Bus, SSH agent or the gate", "unix"),
    "local.loopback": ("connect to another user's service on loopback", "loopback"),
}
_HOST: Final = {
    "gate.secrets": ("modes and owners of the state directory and its keys", True),
    "gate.admin_address": ("the admin listener's address", True),
    "gate.clock": ("the clock, against the newest receipt", True),
    "gate.disk": ("free space for the ledger", True),
    "gate.barriers": ("second lines of defence that fired (`holdgate_barrier_trips_total`)", True),
    "gate.rules": ("nftables rules of the table `inet holdgate`", False),
    "gate.forwarding": ("forwarding of packets past the proxy", False),
}


def _matrix() -> Iterator[tuple[str, Cell]]:
    """Every row, in the order of the report. Long because it is a table."""
    yield (
        "control.explicit",
        Cell(
            tried="a request to an unmapped name through the proxy",
            judge=Judge.CONTROL,
            kind="tcp",
            send="control",
            to="proxy",
            required=False,
        ),
    )
    yield (
        "control.redirect",
        Cell(
            tried="a request to an unmapped name, without a proxy",
            judge=Judge.CONTROL,
            kind="tcp",
            family=4,
            port=80,
            send="named",
            required=False,
        ),
    )
    yield from _network()
    yield (
        "metadata.v4",
        Cell(
            tried="cloud metadata at 169.254.169.254",
            judge=Judge.ANSWER,
            kind="tcp",
            port=80,
            send="metadata_direct",
            to="169.254.169.254",
        ),
    )
    yield (
        "metadata.v6",
        Cell(
            tried="cloud metadata at fd00:ec2::254",
            judge=Judge.ANSWER,
            kind="tcp",
            port=80,
            send="metadata_direct",
            to="fd00:ec2::254",
        ),
    )
    yield (
        "dns.resolver",
        Cell(
            tried="a name that no map has, asked of the configured resolver",
            judge=Judge.ANSWER,
            kind="resolve",
        ),
    )
    yield (
        "admin.direct",
        Cell(
            tried="the admin API, dialled directly",
            judge=Judge.ANSWER,
            kind="tcp",
            send="admin_direct",
            to="admin",
        ),
    )
    yield from _proxied()
    for name, (tried, kind) in _LOCAL.items():
        yield name, Cell(tried=tried, judge=Judge.ATTEMPT, kind=kind)
    for name, (tried, required) in _HOST.items():
        yield name, Cell(tried=tried, judge=Judge.HOST, required=required)
    yield (
        "failure.killed",
        Cell(tried="any of it while the proxy is dead", judge=Judge.FAILURE, required=False),
    )
    yield (
        "failure.restart",
        Cell(tried="any of it while the proxy starts", judge=Judge.FAILURE, required=False),
    )


EXPECTED: Final = {
    Judge.WITNESS: "nothing reaches the witness",
    Judge.ANSWER: "no answer but the gate's refusal",
    Judge.ATTEMPT: "refused",
    Judge.CONTROL: "a SILENCE receipt in the log",
    Judge.HOST: "safe",
    Judge.FAILURE: "nothing reaches the witness",
}
CELLS: Final[Mapping[str, Cell]] = dict(_matrix())
MATRIX: Final = tuple(CELLS)
REQUIRED: Final = frozenset(name for name, cell in CELLS.items() if cell.required)
# What goes to the witness itself.
NETWORK: Final = tuple(
    name for name, cell in CELLS.items() if cell.judge is Judge.WITNESS and cell.to == "witness"
)
_MARK: Final = "hgp"
_NUMBER: Final = {name: number for number, name in enumerate(MATRIX)}


# --- what is to be tried ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Where probes go; "" is not given."""

    witness4: str
    witness6: str
    proxy: str  # host:port of the explicit listener
    admin: str  # host:port
    transparent: bool
    files: tuple[str, ...]  # that no agent may read
    sockets: tuple[str, ...]  # paths that no agent may connect to
    pid: int  # of `holdgate run`, 0 when it does not run


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What adapters/doctor/probe.py is told to try."""

    id: str
    kind: str
    host: str
    port: int
    proto: int
    send: tuple[str, ...]  # one after the other, each after an answer to the one before; latin-1
    args: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "host": self.host,
            "port": self.port,
            "proto": self.proto,
            "send": list(self.send),
            "args": list(self.args),
        }


def row_of(token: str) -> str:
    """The row that a token names; "" when it names none."""
    number = int(token[len(_MARK) + 32 :])
    return MATRIX[number] if number < len(MATRIX) else ""


def token_of(run: str, row: str) -> str:
    """The 38 letters that name one row of one run: they fit into a DNS label and any payload.

    They begin with letters that are no hexadecimal digits, so that nothing before them can shift them.
    """
    return f"{_MARK}{run}{_NUMBER[row]:03d}"


def plan(run: str, targets: Targets, rows: Collection[str] = MATRIX) -> tuple[Probe, ...]:
    """The probes of one run; a row whose target is not given has none."""
    found = []
    for name, cell in CELLS.items():
        place = _place(cell, targets)
        if name not in rows or not cell.kind or place is None:
            continue
        found.append(
            Probe(
                id=name,
                kind=cell.kind,
                host=place[0],
                port=place[1],
                proto=cell.proto,
                send=_payload(cell, token_of(run, name), targets),
                args=_arguments(cell, token_of(run, name), targets),
            )
        )
    return tuple(found)


def _place(cell: Cell, targets: Targets) -> tuple[str, int] | None:
    witness = {0: "", 4: targets.witness4, 6: targets.witness6}[cell.family]
    if cell.family and not witness:
        return None
    if cell.to in ("proxy", "admin"):
        address = targets.proxy if cell.to == "proxy" else targets.admin
        host, _, port = address.rpartition(":")
        return (host.strip("[]"), int(port)) if address else None
    return (witness if cell.to == "witness" else cell.to), cell.port


def _payload(cell: Cell, token: str, targets: Targets) -> tuple[str, ...]:
    if cell.kind == "udp" and cell.send != "raw":
        return ((_dns if cell.send == "dns" else _quic)(token),)
    host = f"[{targets.witness6}]" if cell.family == 6 else targets.witness4
    known = {"host": host, "base": f"http://{host}" if cell.to == "proxy" else ""}
    known |= {"token": token, "admin": targets.admin, "proxy": targets.proxy}
    return tuple(text.format(**known) for text in _BYTES.get(cell.send, ("{token}",)))


def _arguments(cell: Cell, token: str, targets: Targets) -> tuple[str, ...]:
    match cell.kind:
        case "files":
            return targets.files
        case "unix":
            return targets.sockets
        case "ptrace":
            return (str(targets.pid),)
        case "tls" | "resolve":
            return (f"{token}.holdgate.invalid",)
    return ()


def _dns(token: str) -> str:
    question = "".join(chr(len(part)) + part for part in (token, "holdgate", "invalid")) + "\0"
    return "\x12\x34\1\0\0\1\0\0\0\0\0\0" + question + "\0\1\0\1"


def _quic(token: str) -> str:
    # The shape of an Initial (RFC 9000, 17.2.2): long header, version 1, two connection ids, 1200 bytes.
    return ("\xc3\0\0\0\1\x08" + token[:8] + "\0\0\x44\x9e" + token).ljust(1200, "\0")
