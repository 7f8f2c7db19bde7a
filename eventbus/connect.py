"""`connect(url)`: the transport that a URL names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eventbus.errors import ConfigurationError
from eventbus.memory import Clock, MemoryTransport
from eventbus.transport import Transport

_SCHEMES = """\
  memory://                       in this process, nothing kept
  embedded://[/path]              a Valkey server of its own, kept in the path if one is given
  redis://[[user]:password@]host[:port][/db]
  rediss://…                      the same over TLS
  unix:///path/to/socket[?db=0]"""


def connect(url: str, **options: Any) -> Transport:
    """The transport that a URL names; the options are those of its class (`stream`, `codec`, `retention`, …).

    Nothing is connected yet: a transport opens when it is entered or first used. A URL that is none of these is a `ConfigurationError`
    that lists them. ``memory://`` keeps the time of the wall, where `MemoryTransport()` in a test may run ahead of it.
    """
    scheme = scheme_of(url)
    if scheme == "memory":
        return MemoryTransport(clock=Clock(), **options)
    if scheme in ("redis", "rediss", "unix"):
        from eventbus.redis import RedisTransport

        return RedisTransport(url, **options)
    if scheme == "embedded":
        from eventbus.embedded import EmbeddedServer
        from eventbus.redis import RedisTransport

        return RedisTransport(EmbeddedServer(_path(url)), **options)

    raise ConfigurationError(f"{hide_password(str(url))!r} is not a URL that connect() knows; it knows\n{_SCHEMES}")


def scheme_of(url: str) -> str:
    """What stands before the ``://``; nothing if it is no URL, whatever is wrong with it."""
    try:
        return urlsplit(url).scheme
    except (ValueError, AttributeError, TypeError):
        return ""


def hide_password(url: str) -> str:
    """The URL without its secrets, fit for a log line: ``redis://user:***@host``. Also one without a scheme, or with a password that was
    not quoted: all up to the last ``@`` is taken for it.
    """
    return hide_passwords(re.sub(r"^((?:[A-Za-z][\w+.-]*://)?[^/@:]*):.*@", r"\1:***@", url, flags=re.DOTALL))


def hide_passwords(text: str) -> str:
    """The text without the secrets of the URLs in it."""
    hidden = re.sub(r"//([^/@:]*):(.*)@", r"//\1:***@", text)

    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&]*", r"\1***", hidden)


def _path(url: str) -> Path | None:
    parts = urlsplit(url)
    path = parts.netloc + parts.path

    return Path(path) if path.strip("/") else None
