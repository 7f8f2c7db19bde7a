"""The contract of `eventbus.transport`, over every transport that there is."""

from collections.abc import AsyncIterator
from typing import Any

import anyio.lowlevel
import pytest

from eventbus import MemoryTransport
from eventbus.testing import TransportContract


class TestMemory(TransportContract):
    """`MemoryTransport`, under asyncio and trio. Its time is moved, so nothing here waits."""

    @pytest.fixture
    async def transport(self) -> AsyncIterator[MemoryTransport]:
        async with MemoryTransport() as transport:
            yield transport

    async def pass_time(self, transport: MemoryTransport, seconds: float) -> None:
        transport.clock.advance(seconds)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()

    def time(self, transport: Any) -> float:
        return transport.clock.time()
