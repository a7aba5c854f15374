"""The stand-in's own time: a day of the nodes' cache passes in one call of `advance`."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime


def wall_seconds() -> float:
    """Read the machine's clock, as CRE reads its own: it never agrees exactly with the daemon's or the database's."""
    return datetime.now(UTC).timestamp()


class Clock:
    """Seconds since 1970, from a source that a test may freeze, plus what was advanced."""

    def __init__(self, source: Callable[[], float] = wall_seconds) -> None:
        self._source = source
        self._advanced_seconds = 0.0
        self._moved = asyncio.Event()

    def now(self) -> float:
        """Give the seconds since 1970 on this clock."""
        return self._source() + self._advanced_seconds

    def advance(self, seconds: float) -> None:
        """Let time pass at once (negative: a clock that is set back); whoever waits looks again."""
        self._advanced_seconds += seconds
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Return once so many seconds have passed on this clock, by themselves or by `advance`."""
        ends_at = self.now() + seconds
        while (remaining_seconds := ends_at - self.now()) > 0:
            moved = self._moved
            try:
                await asyncio.wait_for(moved.wait(), remaining_seconds)
            except TimeoutError:
                continue
