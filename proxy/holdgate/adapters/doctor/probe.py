"""Tries what it is told to try, where an agent stands, and says what happened. It judges nothing.

`holdgate doctor` sends this file as it is to the standard input of a `python3 -` over there (a namespace, a
container, another host), followed by one call of main(): so it needs nothing but Python 3.9 and its standard
library, no root and no file. Every probe has a deadline; whatever it raises is its own result.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import ssl
import struct
import sys
import threading
from pathlib import Path
from typing import Any

ANSWER_BYTES = 2048
# From linux/capability.h: NET_ADMIN, NET_RAW, SYS_MODULE, SYS_PTRACE, SYS_ADMIN, BPF.
CAPABILITIES = {
    12: "NET_ADMIN",
    13: "NET_RAW",
    16: "SYS_MODULE",
    19: "SYS_PTRACE",
    21: "SYS_ADMIN",
    39: "BPF",
}
RUNTIME_SOCKETS = (
    *("/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"),
    *("/run/crio/crio.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"),
)


def main(plan: dict[str, Any]) -> None:
    """Run all probes of {"timeout_s", "probes"} at once, and print one JSON object."""
    results: dict[str, Any] = {}
    threads = [
        threading.Thread(target=_run, args=(probe, plan["timeout_s"], results), daemon=True)
        for probe in plan["probes"]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(plan["timeout_s"] * 4 + 5)
    said = {"netns": Path("/proc/self/ns/net").stat().st_ino, "uid": _host_uid(), "results": dict(results)}
    sys.stdout.write(json.dumps(said) + "\n")


def _host_uid() -> int:
    """Our uid as the host sees it: in a container, root may be somebody else."""
    uid = os.getuid()
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def _run(probe: dict[str, Any], timeout_s: float, results: dict[str, Any]) -> None:
    found = {"ran": True, "error": "", "connected": False, "done": False, "answer": "", "detail": ""}
    try:
        PROBES[probe["kind"]](probe, timeout_s, found)
    except (socket.timeout, TimeoutError):  # noqa: UP041  (two classes before Python 3.10)
        found["error"] = "timeout"
    except OSError as error:
        found["error"] = errno.errorcode.get(error.errno or 0, "") or type(error).__name__
    except Exception as error:  # noqa: BLE001  (a probe that breaks has not run)
        found["ran"], found["detail"] = False, f"{type(error).__name__}: {error}"
    results[probe["id"]] = found


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _tcp(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    with socket.socket(_family(probe["host"]), socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((probe["host"], probe["port"]))
        found["connected"] = True
        for text in probe["send"]:
            sock.sendall(text.encode("latin-1"))
            with contextlib.suppress(OSError):
                found["answer"] = sock.recv(ANSWER_BYTES).decode("latin-1")


def _tls(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((probe["host"], probe["port"]), timeout_s) as sock:
        found["connected"] = True
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(sock, server_hostname=probe["args"][0]) as inner,
        ):
            inner.sendall(f"GET / HTTP/1.1\r\nHost: {probe['args'][0]}\r\n\r\n".encode())
            found["answer"] = inner.recv(ANSWER_BYTES).decode("latin-1")


def _udp(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    with socket.socket(_family(probe["host"]), socket.SOCK_DGRAM) as sock:
        _send_datagram(sock, probe, probe["send"][0].encode("latin-1"), timeout_s, found)


def _send_datagram(
    sock: socket.socket, probe: dict[str, Any], data: bytes, timeout_s: float, found: dict[str, Any]
) -> None:
    sock.settimeout(timeout_s / 2)
    sock.connect((probe["host"], probe["port"]))
    for _ in range(2):  # one may be lost while an address is being resolved
        sock.send(data)
        with contextlib.suppress(socket.timeout):
            found["answer"] = sock.recv(ANSWER_BYTES).decode("latin-1")
            return
    found["error"] = "timeout"


def _icmp(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    head = struct.pack("!BBHHH", 8 if probe["proto"] == 1 else 128, 0, 0, 1, 1)
    data = head + probe["send"][0].encode()
    if probe["proto"] == 1:
        data = data[:2] + struct.pack("!H", _checksum(data)) + data[4:]
    kind = socket.SOCK_DGRAM
    try:
        sock = socket.socket(_family(probe["host"]), kind, probe["proto"])
    except PermissionError:  # no ping sockets for this group
        sock = socket.socket(_family(probe["host"]), socket.SOCK_RAW, probe["proto"])
    with sock:
        _send_datagram(sock, probe, data, timeout_s, found)


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _ip(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    """Another transport: by the kernel's own socket of it if there is one, else by a raw socket."""
    kind = {132: socket.SOCK_STREAM, 136: socket.SOCK_DGRAM}.get(probe["proto"], socket.SOCK_RAW)
    try:
        sock = socket.socket(_family(probe["host"]), kind, probe["proto"])
    except OSError:
        sock = socket.socket(_family(probe["host"]), socket.SOCK_RAW, probe["proto"])
    port = 0 if sock.type == socket.SOCK_RAW else 9
    with sock:
        _send_datagram(sock, dict(probe, port=port), probe["send"][0].encode(), timeout_s, found)


def _resolve(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    """Ask every configured resolver for a name that nobody has. One that only refuses asks nobody else."""
    servers = _resolvers()
    labels = b"".join(bytes([len(part)]) + part.encode() for part in probe["args"][0].split("."))
    query = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
    said = []
    for server in servers[:3]:
        code, own = _ask(server.partition("%")[0], query, timeout_s)
        said.append(f"{server}: {code}")
        found["done"] = found["done"] or (code not in ("no answer", "rcode 5") and not own)
    found["detail"] = ", ".join(said) or "no resolver is configured"


def _resolvers() -> list[str]:
    try:
        return re.findall(r"^\s*nameserver\s+(\S+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    except OSError:
        return []


def _ask(server: str, query: bytes, timeout_s: float) -> tuple[str, bool]:
    """What a resolver says, and whether it says so by its own authority."""
    try:
        with socket.socket(_family(server), socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect((server, 53))
            sock.send(query)
            reply = sock.recv(ANSWER_BYTES)
    except OSError:
        return "no answer", False
    return f"rcode {reply[3] & 15}", bool(reply[2] & 4)


def _files(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    readable = []
    for path in probe["args"]:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            readable.append(path)
    found["done"], found["detail"] = bool(readable), f"can read {readable}" if readable else "cannot be read"


def _raw(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    found["done"], found["detail"] = True, "a raw socket was opened"


def _packet(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    found["done"], found["detail"] = True, "a packet socket was opened"


def _caps(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    status = Path("/proc/self/status").read_text()
    held = 0
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        held |= int(re.findall(rf"^{name}:\s*(\w+)", status, re.MULTILINE)[0], 16)
    names = [name for bit, name in CAPABILITIES.items() if held >> bit & 1]
    found["done"], found["detail"] = bool(names), f"holds {', '.join(names)}" if names else "holds none"


def _netlink(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    """RTM_DELLINK of an interface that cannot be there: EPERM comes first for who may not."""
    body = struct.pack("BxHiII", 0, 0, 0x7FFFFFF0, 0, 0)
    message = struct.pack("IHHII", 16 + len(body), 17, 5, 1, 0) + body  # 17 RTM_DELLINK, 5 REQUEST|ACK
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(timeout_s)
        sock.send(message)
        code = -struct.unpack_from("i", sock.recv(1024), 16)[0]
    found["done"], found["detail"] = (
        code not in (errno.EPERM, errno.EACCES),
        errno.errorcode.get(code, "done"),
    )


def _ptrace(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    pid = int(probe["args"][0])
    if not pid:
        raise ValueError("`holdgate run` does not run")
    try:
        if b"holdgate" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise FileNotFoundError
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        found["done"], found["detail"] = True, f"opened /proc/{pid}/mem"
    except OSError as error:
        found["detail"] = f"refused ({type(error).__name__})"


def _unix(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    paths = [*RUNTIME_SOCKETS, *probe["args"], os.environ.get("SSH_AUTH_SOCK", "")]
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[7].startswith("@") and words[3] == "00010000":  # abstract, listening
            paths.append("\0" + words[7][1:])
    reached = [path.replace("\0", "@") for path in paths[:200] if path and _connects(path, timeout_s)]
    found["done"], found["detail"] = (
        bool(reached),
        f"connected to {reached[:5]}" if reached else "none answers",
    )


def _connects(path: str, timeout_s: float) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def _loopback(probe: dict[str, Any], timeout_s: float, found: dict[str, Any]) -> None:
    """Services of other users that listen in this namespace and can be connected to on loopback."""
    reached = []
    # The resolver is judged by what it answers: row dns.resolver.
    known = {53} if any(server.startswith(("127.", "::1")) for server in _resolvers()) else set()
    for name, host in (("tcp", "127.0.0.1"), ("tcp6", "::1")):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                words = line.split()
                port = int(words[1].rpartition(":")[2], 16)
                if words[3] != "0A" or int(words[7]) == os.getuid() or port in known:
                    continue
                if _serves(host, port, timeout_s):
                    reached.append(f"{host}:{port}")
    found["done"], found["detail"] = (
        bool(reached),
        f"connected to {reached[:8]}" if reached else "none accepts",
    )


def _serves(host: str, port: int, timeout_s: float) -> bool:
    """Whether somebody accepts there who is not the gate: redirected traffic ends at its listener."""
    try:
        with socket.create_connection((host, port), timeout_s) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: loopback.holdgate.invalid\r\n\r\n")
            with contextlib.suppress(OSError):
                return b"\nholdgate-decision: silence" not in sock.recv(ANSWER_BYTES).lower()
    except OSError:
        return False
    return True


PROBES = {
    "tcp": _tcp,
    "tls": _tls,
    "udp": _udp,
    "icmp": _icmp,
    "ip": _ip,
    "resolve": _resolve,
    "files": _files,
    "raw": _raw,
    "packet": _packet,
    "caps": _caps,
    "netlink": _netlink,
    "ptrace": _ptrace,
    "unix": _unix,
    "loopback": _loopback,
}
