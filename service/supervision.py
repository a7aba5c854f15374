"""The only place that starts tasks, waits and forgives.

A part does its work once a tick and says whether there is more.  Here it is repeated, paused, woken early, forgiven
what it was said to be forgiven, and stopped.  A tick is never cancelled to stop it: what it sent would be in doubt.

* A forgiven error is weather: a warning, then a back-off that grows and that no wake shortens.  It grows less far where
  asking again is cheap: once what failed is well, the part goes on within seconds, however long it lasted.
* A companion that is forgiven is a wake-up: its loss is a warning and counted, and fails nothing, for polling goes on.
* A halting error is for a person: the part stops ticking, the others go on, ``/readyz`` says why.
* Any other error is a bug: the process ends with exit code 1 after the running ticks have finished.
* The first SIGTERM or SIGINT lets the running ticks finish, and the parts write down what they still owe; the second
  ends the process at once.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog

EXIT_STOPPED: Final = 0
EXIT_BROKEN: Final = 1
EXIT_INTERRUPTED: Final = 130

LEAST_BACK_OFF_SECONDS: Final = 1.0
MOST_BACK_OFF_SECONDS: Final = 60.0
MOST_HURRIED_BACK_OFF_SECONDS: Final = 2.0
GRACE_SECONDS: Final = 100.0  # for ticks that call nobody who may take longer

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Work that is done again and again.

    ``tick`` answers True when there is more to do at once.  ``wake`` belongs to this part alone, for it is cleared here
    before each tick; whoever sets it only shortens the pause.  ``hurries_after``: those of the forgiven errors whose
    back-off ends after ``MOST_HURRIED_BACK_OFF_SECONDS`` at most.  ``finish``: what is still to be done when no further
    tick is to begin; after a forgiven error it is called again, until the grace is over.
    """

    name: str
    tick: Callable[[], Awaitable[bool]]
    pause_seconds: float
    wake: asyncio.Event
    forgives: tuple[type[Exception], ...] = ()
    hurries_after: tuple[type[Exception], ...] = ()
    halts_on: tuple[type[Exception], ...] = ()
    finish: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """Something that runs beside the parts until they have ended, and is cancelled then: a server, a listener.

    When ``run`` raises a forgiven error, it is run again after a back-off, which is short again after a run that was
    longer than any back-off; when it returns early, or raises another, the process stops as for a part.
    """

    name: str
    run: Callable[[], Awaitable[None]]
    forgives: tuple[type[Exception], ...] = ()


# Returns when the event is set or the seconds are over, whichever is first.
Wait: TypeAlias = Callable[[asyncio.Event, float], Awaitable[None]]


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait in real time; see ``Wait``."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


class Stop:
    """The wish to end, by whoever has it."""

    def __init__(self, *, end_now: Callable[[int], object] = os._exit) -> None:
        self.asked = asyncio.Event()
        self._end_now = end_now

    def ask(self) -> None:
        """Let the running ticks finish, start no other."""
        self.asked.set()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT for this wish; inside a running event loop of the main thread."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self.asked.is_set():
            self._end_now(EXIT_INTERRUPTED)
        self.ask()


def back_off_seconds(failures: int, chance: float, *, most_seconds: float = MOST_BACK_OFF_SECONDS) -> float:
    """How long to wait after so many failures in a row; ``chance`` in [0, 1) keeps replicas from knocking together."""
    longest = min(most_seconds, LEAST_BACK_OFF_SECONDS * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + chance / 2)


class Supervisor:
    """Runs the parts of one process; read ``last_turn_at`` and ``halted`` while it does.

    ``last_turn_at``: the clock's seconds of each part's latest step, for ``/livez``; a tick may itself take long, so
    whoever gives the mapping may also write there what it sees of a tick's steps.
    ``halted``: the reason, by the name of each part that has stopped for a person.
    ``failing``: what went wrong last, by the name of each part that was forgiven and has not recovered.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        companions: Sequence[Companion] = (),
        *,
        stop: Stop,
        grace_seconds: float = GRACE_SECONDS,
        last_turn_at: dict[str, float] | None = None,
        wait: Wait = wait,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin; ``lost`` is called with the name of a companion at each of its forgiven errors."""
        self._parts = parts
        self._companions = companions
        self._stop = stop
        self._grace_seconds = grace_seconds
        self._wait = wait
        self._clock = clock
        self._chance = chance
        self._lost = lost
        self.last_turn_at = {} if last_turn_at is None else last_turn_at
        self.last_turn_at.update({part.name: clock() for part in parts})
        self.halted: dict[str, str] = {}
        self.failing: dict[str, str] = {}
        self._is_broken = False

    async def run(self) -> int:
        """Run until a stop is asked for or something breaks.

        Returns:
            The exit code.  When the grace is over, ticks may still run; ending the process is then like a kill, which
            every part survives by its rows.
        """
        parts = [self._start(part.name, self._repeat(part)) for part in self._parts]
        companions = [self._start(companion.name, self._accompany(companion)) for companion in self._companions]
        try:
            await self._stop.asked.wait()
            for part in self._parts:
                part.wake.set()
            late = (await asyncio.wait(parts, timeout=self._grace_seconds))[1] if parts else set()
            for task in late:
                log.error("part.abandoned", part=task.get_name(), grace_seconds=self._grace_seconds)
        finally:
            for companion in companions:
                companion.cancel()
            await asyncio.gather(*companions, return_exceptions=True)
        return EXIT_BROKEN if self._is_broken or late else EXIT_STOPPED

    def _start(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        return asyncio.create_task(self._watch(name, work), name=name)  # noqa: TID251 - this module is the place

    async def _watch(self, name: str, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception:  # not forgiven: it ends the process, with its traceback
            log.exception("part.broken", part=name)
            self._is_broken = True
        finally:
            if not self._stop.asked.is_set():
                self._is_broken = True
                log.error("process.stopping", because=f"{name} ended")
                self._stop.ask()

    async def _repeat(self, part: Part) -> None:
        failures = 0
        while not self._stop.asked.is_set():
            part.wake.clear()
            self.last_turn_at[part.name] = self._clock()
            try:
                is_more = await part.tick()
            except part.halts_on as error:
                self.halted[part.name] = str(error)
                self.failing.pop(part.name, None)
                log.exception("part.halted", part=part.name)
                await self._stop.asked.wait()
                return
            except part.forgives as error:
                failures += 1
                self.failing[part.name] = f"{type(error).__name__}: {error}"
                hurries = isinstance(error, part.hurries_after)
                await self._back_off("part.failed", part.name, failures, error, hurries=hurries)
                continue
            if failures:
                log.info("part.recovered", part=part.name, failures=failures)
                failures = 0
                self.failing.pop(part.name, None)
            self.last_turn_at[part.name] = self._clock()
            if is_more:
                await asyncio.sleep(0)  # noqa: TID251 - this module is the place; the other parts get their turn
            elif not self._stop.asked.is_set():
                await self._wait(part.wake, part.pause_seconds)
        await self._finish(part)

    async def _finish(self, part: Part) -> None:
        failures = 0
        while part.finish is not None:
            try:
                await part.finish()
            except part.forgives as error:
                failures += 1
                hurries = isinstance(error, part.hurries_after)
                await self._back_off("part.failed", part.name, failures, error, hurries=hurries, wake=asyncio.Event())
            else:
                return

    async def _accompany(self, companion: Companion) -> None:
        failures = 0
        while not self._stop.asked.is_set():
            began = self._clock()
            try:
                await companion.run()
            except companion.forgives as error:
                failures = 1 if self._clock() - began > MOST_BACK_OFF_SECONDS else failures + 1
                self._lost(companion.name)
                await self._back_off("companion.lost", companion.name, failures, error)
            else:
                return

    async def _back_off(
        self,
        event: str,
        name: str,
        failures: int,
        error: Exception,
        *,
        hurries: bool = False,
        wake: asyncio.Event | None = None,
    ) -> None:
        most_seconds = MOST_HURRIED_BACK_OFF_SECONDS if hurries else MOST_BACK_OFF_SECONDS
        seconds = back_off_seconds(failures, self._chance(), most_seconds=most_seconds)
        # The first, the second, the fourth, the eighth …: an outage of days is a few lines, not one every two seconds.
        say = log.debug if failures & (failures - 1) else log.warning
        # The error's text says enough; a traceback for weather would bury what matters.
        say(event, part=name, error=f"{type(error).__name__}: {error}", failures=failures, retry_seconds=seconds)
        await self._wait(self._stop.asked if wake is None else wake, seconds)
