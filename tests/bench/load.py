"""load.c again, for machines without a C compiler or OpenSSL's headers: same arguments, same JSON line.

It costs many times more than the C one and shares a core with the upstream, so its figures are lower bounds.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from dataclasses import dataclass, field

ANSWER = b'{"id":"re_1","object":"refund","amount":100,"status":"succeeded"}'
GRACE_S = 5.0


@dataclass
class Run:
    proxy_port: int
    name: str
    port: int
    deadline: float
    max_requests: int
    fresh: bool
    next_id: int
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    last_status: int = 0
    last: float = 0.0


def compose(run: Run) -> bytes:
    body = b"amount=100&charge=ch_%d&metadata[note]=%s" % (run.next_id, b"x" * 879)
    host = run.name if run.port == 443 else f"{run.name}:{run.port}"
    head = (
        f"POST /v1/refunds HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
        f"Authorization: Bearer sk_test_bench\r\nIdempotency-Key: bench-{run.next_id}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    run.next_id += 1
    return head.encode() + body


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head, await reader.readexactly(length)


async def connect(run: Run, tls: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", run.proxy_port or run.port)
    if run.proxy_port:
        target = f"{run.name}:{run.port}"
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        run.last_status = int(head[9:12])
        if run.last_status != 200:
            raise ConnectionError(f"CONNECT: {run.last_status}")
    await writer.start_tls(tls, server_hostname=run.name)
    return reader, writer


async def client_worker(run: Run, tls: ssl.SSLContext) -> None:
    link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while time.monotonic() < run.deadline and len(run.latencies) + run.errors < run.max_requests:
        began = time.monotonic()
        try:
            link = link or await connect(run, tls)
            reader, writer = link
            writer.write(compose(run))
            head, body = await read_message(reader)
            run.last_status = int(head[9:12])
            if run.last_status != 200 or b"re_1" not in body:
                raise ConnectionError("not the upstream's answer")
            run.last = time.monotonic()
            run.latencies.append((run.last - began) * 1000)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            run.errors += 1
            if run.errors > 1000 and run.errors > len(run.latencies):
                raise
        else:
            if not run.fresh:
                continue
        if link is not None:
            link[1].transport.abort()
            link = None


async def client(arguments: list[str]) -> None:
    proxy_port, target, concurrency, milliseconds, maximum, mode, first = arguments
    name, _, port = target.rpartition(":")
    start = time.monotonic()
    run = Run(
        proxy_port=int(proxy_port),
        name=name,
        port=int(port),
        deadline=start + min(int(milliseconds), 60_000) / 1000,
        max_requests=int(maximum),
        fresh=mode == "fresh",
        next_id=int(first),
        last=start,
    )
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    workers = [asyncio.create_task(client_worker(run, tls)) for _ in range(int(concurrency))]
    _, pending = await asyncio.wait(workers, timeout=int(milliseconds) / 1000 + GRACE_S)
    for worker in pending:
        worker.cancel()
    run.errors += len(pending)
    ordered = sorted(run.latencies) or [0.0]

    def percentile(share: float) -> float:
        return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 3)

    result = {
        "requests": len(run.latencies),
        "errors": run.errors,
        "seconds": round(run.last - start, 4),
        "p50_ms": percentile(0.5),
        "p99_ms": percentile(0.99),
        "p999_ms": percentile(0.999),
        "max_ms": percentile(1),
        "last_status": run.last_status,
        "next_id": run.next_id,
    }
    print(json.dumps(result))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
    try:
        while True:
            await read_message(reader)
            writer.write(head + ANSWER)
    except (OSError, asyncio.IncompleteReadError):
        writer.close()


async def serve(certificate: str, key: str) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with asyncio.timeout(1800):  # stops by itself whatever becomes of its parent
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"] and len(sys.argv) == 9:
        asyncio.run(client(sys.argv[2:]))
    elif sys.argv[1:2] == ["serve"] and len(sys.argv) == 4:
        asyncio.run(serve(sys.argv[2], sys.argv[3]))
    else:
        sys.exit(__doc__)
