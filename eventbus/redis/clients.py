"""Clients as redis-py makes them, for whoever looks at a server from outside: a test, or the report of one that failed."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from eventbus.connect import hide_password, hide_passwords
from eventbus.errors import Unavailable
from eventbus.redis.link import Endpoint

AsyncClient = redis.asyncio.Redis


def client_at(url: str) -> Any:
    """A client without asyncio."""
    return redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5)  # pyright: ignore[reportUnknownMemberType]


def client_beside(endpoint: Endpoint) -> Any:
    """A client without asyncio of the server where an endpoint's connections go. It asks once, and waits for two seconds."""
    settings: Any = endpoint._settings  # pyright: ignore[reportPrivateUsage]
    known = {name: settings[name] for name in ("host", "port", "db", "username", "password") if name in settings}
    if "path" in settings:
        known["unix_socket_path"] = settings["path"]

    return redis.Redis(**known, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


def client_over(connection_class: Any, **settings: Any) -> AsyncClient:
    """A client whose connections are of that class."""
    pool = redis.asyncio.ConnectionPool(connection_class=connection_class, legacy_responses=False, **settings)

    return redis.asyncio.Redis(connection_pool=pool)


def version_at(url: str) -> str:
    """Which server answers there, for people: `Valkey 9.1.2`. `Unavailable` if none does, or the URL is none."""
    try:
        with client_at(url) as client:
            info = client.info("server")
    except (redis.RedisError, OSError, ValueError) as exc:
        raise Unavailable(f"{hide_password(url)}: {hide_passwords(str(exc))}") from exc

    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
