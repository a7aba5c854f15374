"""Whether work that should go on stands still, and for how long: nobody sees that from one tick to the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

STANDSTILL_SECONDS: Final = 600.0
"""Shorter ones heal: an endpoint that comes back, a chain that went on while it was read."""


class Standstill:
    """Told after each tick how the work went; says so once in the log and, for as long as it lasts, in ``troubles``."""

    def __init__(self, part: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin; nothing waits yet.

        Args:
            part: Who this is about, for a person.
            clock: Seconds that never go back.
        """
        self._part = part
        self._clock = clock
        self._since: float | None = None
        self._at = 0
        self._because = ""
        self._is_told = False

    def moved(self) -> None:
        """Something was done, or nothing is left to do."""
        if self._is_told:
            log.info("part.moves_again", part=self._part)
        self._since, self._is_told = None, False

    def waits(self, at: int, because: str) -> None:
        """Nothing was done.

        Args:
            at: How far the work is that this waits for; another number than before is progress.
            because: Why.
        """
        now = self._clock()
        if self._since is None or self._at != at:
            self.moved()
            self._since, self._at = now, at
        self._because = because
        if self._is_long() and not self._is_told:
            self._is_told = True
            log.error("part.stands_still", part=self._part, at=at, because=because)

    def troubles(self) -> tuple[str, ...]:
        """A sentence, or none."""
        if self._since is None or not self._is_long():
            return ()
        minutes = int((self._clock() - self._since) // 60)
        return (f"{self._part}: has stood still for {minutes} minutes: {self._because}",)

    def _is_long(self) -> bool:
        return self._since is not None and self._clock() - self._since >= STANDSTILL_SECONDS
