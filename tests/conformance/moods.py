"""A server that says no: a door in front of a real one, which answers every command with an error for as long as it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import unquote, urlsplit

_GREETINGS = (b"hello", b"client", b"select", b"auth")
"""What a server answers whatever it is busy with."""


class Mood:
    """What the server behind the door says instead of answering; None for nothing."""

    def __init__(self) -> None:
        self.says: str | None = None
        self.said = 0
        """How often it was said."""


@asynccontextmanager
async def moody(url: str) -> AsyncIterator[tuple[str, Mood]]:
    """A URL that leads to the server at this unix socket, and the mood that it is in."""
    mood = Mood()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_unix_connection(unquote(urlsplit(url).path))
        back = asyncio.ensure_future(_copy(behind, writer))
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while head := await reader.readline():
                    command, words = [head], []
                    for _ in range(int(head[1:])):
                        command.append(await reader.readline())
                        words.append(await reader.readexactly(int(command[-1][1:]) + 2))
                        command.append(words[-1])
                    if mood.says is not None and words[0].strip().lower() not in _GREETINGS:
                        mood.said += 1
                        writer.write(f"-{mood.says}\r\n".encode())
                        await writer.drain()
                    else:
                        ahead.write(b"".join(command))
                        await ahead.drain()
        finally:
            back.cancel()
            ahead.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"redis://{host}:{port}/0", mood
    finally:
        server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
