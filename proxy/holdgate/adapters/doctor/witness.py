"""Listens where the internet is, and writes down every token that arrives. It judges nothing.

Sent to a `python3 -` beyond the boundary, as probe.py is, so: Python 3.9, standard library, one file. One
JSON object per line: first {"watching": [...], "failed": {...}}, then {"token": ...}, or {"bare": "tcp4.22"}
for a connection that sent none. As root it sees more than TCP and UDP. It ends after `seconds`.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
from typing import Any

TOKEN = re.compile(rb"hgp[0-9a-f]{32}[0-9]{3}")
READ_S = 3.0
_lock = threading.Lock()


def main(plan: dict[str, Any]) -> None:
    """Watch {"addresses": [v4, v6], "tcp": [port], "udp": [port], "raw": [protocol], "seconds"}."""
    watching: list[str] = []
    failed: dict[str, str] = {}
    for address in filter(None, plan["addresses"]):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        version = 6 if ":" in address else 4
        wanted: list[tuple[str, int, Any, Any]] = [("tcp", port, _listen, _serve) for port in plan["tcp"]]
        wanted += [("udp", port, _bind, _receive) for port in plan["udp"]]
        wanted += [("raw", proto, _sniff, _receive) for proto in plan["raw"]]
        for kind, number, make, watch in wanted:
            name = f"{kind}{version}.{number}"
            try:
                sock = make(family, address, number)
            except OSError as error:
                failed[name] = str(error)
                continue
            watching.append(name)
            threading.Thread(target=watch, args=(sock, name), daemon=True).start()
    _say({"watching": watching, "failed": failed})
    time.sleep(plan["seconds"])


def _say(event: dict[str, Any]) -> None:
    with _lock:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def _listen(family: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(64)
    return sock


def _bind(family: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def _sniff(family: int, address: str, proto: int) -> socket.socket:
    if (proto == 1 and family != socket.AF_INET) or (proto == 58 and family != socket.AF_INET6):
        raise OSError("not of this family")
    return socket.socket(family, socket.SOCK_RAW, proto)


def _serve(sock: socket.socket, name: str) -> None:
    while True:
        connection, _ = sock.accept()
        threading.Thread(target=_read, args=(connection, name), daemon=True).start()


def _read(connection: socket.socket, name: str) -> None:
    seen = b""
    found = False
    connection.settimeout(READ_S)
    with contextlib.suppress(OSError), connection:
        while len(seen) < 65_536:
            data = connection.recv(4096)
            if not data:
                break
            seen += data
            found = _tokens(seen) or found
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwitness")
    if not found:
        _say({"bare": name})


def _receive(sock: socket.socket, name: str) -> None:
    while True:
        data, peer = sock.recvfrom(65_536)
        if _tokens(data) and name.startswith("udp"):
            with contextlib.suppress(OSError):
                sock.sendto(b"witness", peer)


def _tokens(data: bytes) -> bool:
    found = TOKEN.findall(data)
    for token in set(found):
        _say({"token": token.decode()})
    return bool(found)
