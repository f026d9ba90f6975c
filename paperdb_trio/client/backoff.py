"""How long to wait before trying again.

Law: no I/O, no clock.
"""

from __future__ import annotations

import random

FIRST_DELAY = 0.25
MAX_DELAY = 15.0
FIRST_PAUSE = 0.5


class Backoff:
    """Twice as long each time, with full jitter, so that clients do not storm a restarted server."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._delay = FIRST_DELAY

    def next(self, at_least: float = 0.0) -> float:
        """The seconds to wait now."""
        wait = max(random.uniform(0, self._delay), at_least)
        self._delay = min(self._delay * 2, MAX_DELAY)
        return wait


def pause(failures: int) -> float:
    """The seconds until a request that has failed so often is sent again. After the first failure it is sent at
    once: most often the server had closed an idle connection."""
    return 0.0 if failures == 1 else FIRST_PAUSE * 2 ** (failures - 2) * random.uniform(0.5, 1)
