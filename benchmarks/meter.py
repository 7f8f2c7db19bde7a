"""What is measured while messages flow: the time, the CPU of this process and that of the server."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.server import Server


class Meter:
    """Measures between entry and exit; entered several times, the sum."""

    def __init__(self) -> None:
        self.server = Server()
        self.seconds = self.client = self.served = 0.0
        self._began = self._client = self._served = 0.0

    def __enter__(self) -> Self:
        self._served, self._client = self.server.cpu(), cpu()
        self._began = time.perf_counter()

        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        self.seconds += time.perf_counter() - self._began
        self.client += cpu() - self._client
        self.served += self.server.cpu() - self._served

    def result(self, n: int, **more: Any) -> dict[str, Any]:
        """Messages per second; microseconds of CPU per message, of the client and of the server."""
        client, server = self.client / n * 1e6, self.served / n * 1e6

        return {
            "n": n,
            "per_second": n / self.seconds,
            "client_us": client,
            "server_us": server,
            "both_us": client + server,
            **more,
        }


def cpu() -> float:
    """Seconds of CPU that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)

    return usage.ru_utime + usage.ru_stime


def resident() -> float:
    """MiB of memory that this process has in use."""
    lines = Path("/proc/self/status").read_text().splitlines()

    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    ordered = sorted(nanoseconds)

    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * q))] * 1e-6 for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99))}


async def repeated(once: Callable[[], Awaitable[None]], n: int) -> dict[str, Any]:
    """The result of doing it so often, after a twentieth of that to warm up."""
    for _ in range(n // 20):
        await once()
    with Meter() as meter:
        for _ in range(n):
            await once()

    return meter.result(n, nanoseconds=meter.seconds / n * 1e9)


async def paced(send: Callable[[], Awaitable[Any]], *, rate: float, seconds: float) -> None:
    """Send at fixed times, whatever the receiver does."""
    start = time.monotonic()
    for i in range(int(rate * seconds)):
        early = start + i / rate - time.monotonic()
        if early > 0:
            await asyncio.sleep(early)
        await send()
