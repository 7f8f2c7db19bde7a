"""Redis Streams: the only package that imports redis.

`transport` is the way in; `subscription` reads and settles; `publisher` adds; `session` is a transaction whose state is in Redis too;
`scripts` holds what must be one step on the server, each in a file of its own; `link` is the border to redis-py: connections go out through
it, and errors come in translated.
"""

from eventbus.redis.session import RedisSession
from eventbus.redis.transport import RedisTransport

__all__ = ["RedisTransport", "RedisSession"]
