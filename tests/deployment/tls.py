"""TLS in front of servers whose wheels are built without it: a proxy that ends TLS as Redis or PostgreSQL would."""

import asyncio
import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""With which a client of PostgreSQL asks for TLS, in plain text; the server answers S."""


@contextmanager
def tls_front(certificate: trustme.LeafCert, socket: Path, *, speaks_postgres: bool = False) -> Iterator[int]:
    """Listen with TLS on a port of 127.0.0.1, and pass everything on to a unix socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    found: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.SimpleQueue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            if speaks_postgres:
                if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                    writer.close()  # as `hostssl` alone in pg_hba.conf: nothing without TLS
                    return
                writer.write(b"S")
                await writer.drain()
                await writer.start_tls(context)
            inner_reader, inner_writer = await asyncio.open_unix_connection(socket)
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    async def serve() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=None if speaks_postgres else context)
        found.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        await stop.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="tls-front", daemon=True)
    thread.start()
    loop, stop, port = found.get(timeout=10)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()
