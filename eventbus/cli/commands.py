"""The command line as click sees it: names, options and their help. What the commands do is in their own modules."""

from __future__ import annotations

from importlib.metadata import version

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("eventbus"), prog_name="eventbus")
def eventbus() -> None:
    """Events between services, over Redis Streams."""


@eventbus.command()
@click.argument("targets", nargs=-1, required=True, metavar="MODULE:ATTRIBUTE...")
@click.option("--url", envvar="EVENTBUS_URL", show_envvar=True, help="Use the server at this URL instead of the subscribers' own.")
@click.option("--concurrency", type=click.IntRange(1), show_envvar=True, help="Handlers that run at once, for every subscriber.")
@click.option("--wait", type=click.FloatRange(0), default=0.0, show_default=True, help="Seconds to wait for a server that is not there yet.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    show_envvar=True,
)
@click.option("--traceback", is_flag=True, show_envvar=True, help="Show where in the program an unexpected error came from.")
def run(
    targets: tuple[str, ...], url: str | None, concurrency: int | None, wait: float, log_level: str, traceback: bool
) -> None:
    """Run subscribers until SIGINT or SIGTERM.

    MODULE:ATTRIBUTE is a Subscriber, several in a list, or a function that returns them; MODULE alone stands for every Subscriber in it.
    The first signal lets running handlers finish; a second one ends at once, and what was in hand is handled by others.
    """
    from eventbus.cli.run import run_targets

    raise SystemExit(run_targets(targets, url=url, concurrency=concurrency, wait=wait, log_level=log_level, traceback=traceback))


@eventbus.command()
@click.option("--url", envvar="EVENTBUS_URL", show_envvar=True, help="Run on this server, under names of its own, and clean up.")
@click.option("--books", type=click.IntRange(6, 10_000), default=20, show_default=True, help="How many books are registered.")
def demo(url: str | None, books: int) -> None:
    """A reading club, for real: two groups, a retry, a poison message and a killed worker, on an embedded server."""
    from eventbus.cli.demo.show import show

    raise SystemExit(show(url, books))
