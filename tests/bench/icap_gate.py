"""The gate that Squid asks: an ICAP server (RFC 3507, REQMOD) with one rule. Prints its port.

Only what Squid needs: OPTIONS, and REQMOD without a preview; 204 leaves the request as it is.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

OPTIONS = b"ICAP/1.0 200 OK\r\nMethods: REQMOD\r\nISTag: bench\r\nAllow: 204\r\nMax-Connections: 512\r\n\r\n"
PERMIT = b"ICAP/1.0 204 No Content\r\nISTag: bench\r\n\r\n"
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
DENY = (
    b"ICAP/1.0 200 OK\r\nISTag: bench\r\nEncapsulated: res-hdr=0, null-body=%d\r\n\r\n" % len(REFUSED)
) + REFUSED


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"OPTIONS"):
                writer.write(OPTIONS)
                continue
            request = await reader.readuntil(b"\r\n\r\n")
            body = await chunks(reader) if b"req-body" in head else b""
            writer.write(PERMIT if decide(request, body) else DENY)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)


def decide(request: bytes, body: bytes) -> bool:
    target = request.split(b" ", 2)[1]
    amount = int(parse_qs(body)[b"amount"][0])
    return target.endswith(b"/v1/refunds") and amount <= 10_000


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
