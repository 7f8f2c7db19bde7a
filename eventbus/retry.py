"""When a failed delivery is tried again: policies, which are pure functions.

A policy is given the number of the attempt that failed (1 for the first; those that a `Retry` put off by a delay of its own are not
counted) and its error, and answers with the seconds to wait, or None to give up and bury. Any function of that shape will do; `exponential`
makes the usual one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from eventbus.errors import ConfigurationError

Policy = Callable[[int, Exception], float | None]
"""``(attempt that failed, its error) -> seconds until the next (a hundred years at most), or None to bury``."""


def exponential(
    *, attempts: int = 6, base: float = 1.0, factor: float = 4.0, maximum: float = 300.0, jitter: float = 0.25
) -> Policy:
    """Wait longer after each failure: ``base * factor ** (attempt - 1)`` seconds, never more than `maximum`.

    `attempts` counts every attempt, the first included: after that many failures the delivery is buried. `jitter` adds a random part
    of up to that share of the delay (0.25: up to a quarter), so that what failed together does not come back together; the sum stays
    within `maximum`. The defaults wait about 1, 4, 16, 64 and 256 seconds.
    """
    if attempts < 1:
        raise ConfigurationError(f"exponential(attempts={attempts}): at least the first attempt is made, so 1 or more")
    finite = all(map(math.isfinite, (base, factor, maximum)))
    if not (finite and base >= 0 and factor >= 1 and maximum >= 0 and 0 <= jitter <= 1):
        raise ConfigurationError(
            f"exponential(base={base}, factor={factor}, maximum={maximum}, jitter={jitter}): "
            "base and maximum are seconds from 0, factor is 1 or more, jitter is a share from 0 to 1"
        )

    def policy(attempt: int, error: Exception) -> float | None:
        if attempt >= attempts:
            return None
        try:
            delay = min(maximum, base * float(factor) ** (attempt - 1))
        except OverflowError:
            delay = maximum if base else 0.0

        return min(maximum, delay + delay * jitter * random.random())

    return policy
