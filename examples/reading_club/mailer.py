"""A service that writes to the members about each new book: `eventbus run examples.reading_club.mailer`."""

from eventbus import MessageBus, Retry, Subscriber, connect
from examples.reading_club.adapters.smtp import ConsoleSmtp, Smtp, SmtpBusy
from examples.reading_club.domain.messages import BookRegistered
from examples.reading_club.settings import STREAM, URL

bus = MessageBus(smtp=ConsoleSmtp)


@bus.listen
async def announce(event: BookRegistered, smtp: Smtp) -> None:
    try:
        await smtp.send(f"new on the shelf: {event.title} by {event.author}")
    except SmtpBusy as exc:
        raise Retry(after=exc.seconds) from exc


mailer = Subscriber(bus=bus, transport=connect(URL, stream=STREAM), streams=[STREAM], group="mailer")
