"""A TLS server in a process of its own, to use another core: ``python -m tests.http.tls_server FD CERTIFICATE NUMBER``.

It listens on the inherited socket FD, and answers no request before NUMBER requests have arrived.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys

from tests.http.server import OK


async def main(listener: socket.socket, context: ssl.SSLContext, number: int) -> None:
    """Serve until killed."""
    all_arrived, arrived = asyncio.Event(), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        while True:
            await reader.readuntil(b"\r\n\r\n\x00\xff")  # a header, and the body of the test's invocation
            arrived += 1
            if arrived == number:
                all_arrived.set()
            await all_arrived.wait()
            writer.write(OK)

    server = await asyncio.start_server(serve, sock=listener, ssl=context, backlog=number)
    await server.serve_forever()


if __name__ == "__main__":
    fd, certificate, number = sys.argv[1:]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    asyncio.run(main(socket.socket(fileno=int(fd)), context, int(number)))
