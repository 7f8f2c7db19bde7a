"""Sending letters."""

from typing import Protocol


class Smtp(Protocol):
    """What the mailer needs of a mail server."""

    async def send(self, text: str) -> None:
        """Send it. `SmtpBusy` says when to come back."""
        ...


class SmtpBusy(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(f"busy for {seconds:g} s")
        self.seconds = seconds


class ConsoleSmtp:
    """Prints letters instead of sending them."""

    async def send(self, text: str) -> None:
        print(f"letter: {text}", flush=True)


class FakeSmtp:
    """Keeps what it sent; busy so many times first."""

    def __init__(self, *, busy: int = 0) -> None:
        self.sent: list[str] = []
        self._busy = busy

    async def send(self, text: str) -> None:
        if self._busy:
            self._busy -= 1
            raise SmtpBusy(60)
        self.sent.append(text)
