import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from service.supervision import Companion, Part, Stop, Supervisor, back_off_seconds, wait


class Weather(Exception):
    pass


class Halt(Exception):
    pass


class Waits:
    """Records every wait and returns at once, as if the time were over."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, _event: asyncio.Event, seconds: float, /) -> None:
        self.seconds.append(seconds)


def script(steps: Iterable[bool | Exception], stop: Stop) -> Callable[[], Awaitable[bool]]:
    """A tick that answers or raises one step after the other, and asks for the stop with the last."""
    left = list(steps)

    async def tick() -> bool:
        step = left.pop(0)
        if not left:
            stop.ask()
        if isinstance(step, Exception):
            raise step
        return step

    return tick


def part(tick: Callable[[], Awaitable[bool]], name: str = "part") -> Part:
    return Part(name=name, tick=tick, pause_seconds=2, wake=asyncio.Event(), forgives=(Weather,), halts_on=(Halt,))


def supervisor(*parts: Part, stop: Stop, waits: Waits, companions: tuple[Companion, ...] = ()) -> Supervisor:
    return Supervisor(parts, companions, stop=stop, wait=waits, clock=lambda: 7.0, chance=lambda: 1.0)


async def test_a_tick_with_more_to_do_is_called_again_without_a_pause() -> None:
    stop, waits = Stop(), Waits()
    assert await supervisor(part(script([True, True, False, False], stop)), stop=stop, waits=waits).run() == 0
    assert waits.seconds == [2]


async def test_a_forgiven_error_is_waited_for_longer_each_time_and_forgotten_after_a_success() -> None:
    stop, waits = Stop(), Waits()
    steps: list[bool | Exception] = [Weather(), Weather(), Weather(), True, Weather(), False]
    with capture_logs() as lines:
        assert await supervisor(part(script(steps, stop)), stop=stop, waits=waits).run() == 0
    assert waits.seconds == [1, 2, 4, 1]
    events = [line["event"] for line in lines]
    assert events == ["part.failed"] * 3 + ["part.recovered", "part.failed", "part.recovered"]


async def test_a_part_that_stops_finishes_what_it_owes_and_waits_for_it_however_often_that_fails() -> None:
    stop, waits, calls = Stop(), Waits(), []

    async def finish() -> None:
        calls.append(len(waits.seconds))
        if len(calls) < 3:
            raise Weather

    owing = replace(part(script([False], stop)), finish=finish)
    assert await supervisor(owing, stop=stop, waits=waits).run() == 0
    # No further tick began, and the back-off is a real one although the stop was asked for.
    assert (calls, waits.seconds) == ([0, 1, 2], [1, 2])


async def test_the_grace_bounds_what_a_part_may_owe() -> None:
    stop, waits = Stop(), Waits()

    async def finish() -> None:
        await asyncio.Event().wait()

    owing = replace(part(script([False], stop)), finish=finish)
    watched = Supervisor([owing], stop=stop, wait=waits, grace_seconds=0.01, clock=lambda: 7.0, chance=lambda: 1.0)
    assert await watched.run() == 1


async def test_a_part_is_failing_from_its_forgiven_error_until_it_recovers_or_halts() -> None:
    stop, waits, seen = Stop(), Waits(), []
    steps = script([Weather("rain"), True, Weather("hail"), Halt("enough")], stop)

    async def tick() -> bool:
        seen.append(dict(watched.failing))
        return await steps()

    watched = supervisor(part(tick), stop=stop, waits=waits)
    await watched.run()
    assert seen == [{}, {"part": "Weather: rain"}, {}, {"part": "Weather: hail"}]
    assert (watched.failing, watched.halted) == ({}, {"part": "enough"})


def test_the_back_off_is_capped_and_never_shorter_than_half() -> None:
    assert back_off_seconds(10_000, 1.0) == 60
    assert back_off_seconds(10_000, 0.0) == 30
    assert back_off_seconds(1, 0.0) == 0.5


async def test_a_part_comes_back_soon_after_an_error_that_it_hurries_after() -> None:
    stop, waits = Stop(), Waits()
    hurried = replace(part(script([Weather()] * 4 + [True], stop)), hurries_after=(Weather,))
    assert await supervisor(hurried, stop=stop, waits=waits).run() == 0
    assert waits.seconds == [1, 2, 2, 2]


async def test_any_other_error_stops_the_process_with_exit_code_1_and_its_traceback() -> None:
    stop, waits = Stop(), Waits()
    with capture_logs() as lines:
        assert (
            await supervisor(part(script([ZeroDivisionError("a bug"), True], stop)), stop=stop, waits=waits).run() == 1
        )
    assert stop.asked.is_set()
    assert [line["exc_info"] for line in lines if line["event"] == "part.broken"] == [True]


async def test_a_running_tick_of_another_part_is_finished_when_the_process_breaks() -> None:
    stop, is_finished = Stop(), False

    async def long_tick() -> bool:
        nonlocal is_finished
        await stop.asked.wait()
        is_finished = True
        return True

    async def broken_tick() -> bool:
        raise ZeroDivisionError

    parts = part(long_tick, "long"), part(broken_tick, "broken")
    assert await supervisor(*parts, stop=stop, waits=Waits()).run() == 1
    assert is_finished


async def test_a_tick_longer_than_the_grace_is_given_up_but_not_cancelled() -> None:
    stop, release = Stop(), asyncio.Event()
    finished: list[bool] = []

    async def stuck_tick() -> bool:
        stop.ask()
        await release.wait()
        finished.append(True)
        return True

    supervised = Supervisor([part(stuck_tick)], stop=stop, grace_seconds=0)
    with capture_logs() as lines:
        assert await supervised.run() == 1
    assert [line["event"] for line in lines] == ["part.abandoned"]
    release.set()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others)
    assert finished == [True]


async def test_a_halted_part_never_ticks_again_and_the_others_go_on() -> None:
    stop, waits = Stop(), Waits()
    halting = part(script([Halt("below the finalized block"), True], Stop()), "indexer")
    other = part(script([False] * 5, stop), "invocator")
    supervised = supervisor(halting, other, stop=stop, waits=waits)
    assert await supervised.run() == 0
    assert supervised.halted == {"indexer": "below the finalized block"}
    assert waits.seconds == [2] * 4


async def test_a_wake_ends_the_pause_and_one_during_the_tick_is_not_lost() -> None:
    stop, wake = Stop(), asyncio.Event()
    ticks = 0

    async def tick() -> bool:
        nonlocal ticks
        ticks += 1
        wake.set()
        if ticks == 3:
            stop.ask()
        return False

    slow = Part(name="slow", tick=tick, pause_seconds=3600, wake=wake)
    assert await Supervisor([slow], stop=stop).run() == 0
    assert ticks == 3


async def test_a_stop_ends_pauses_and_back_offs_at_once() -> None:
    stop = Stop()
    both_ticked = asyncio.Barrier(2)

    async def idle_tick() -> bool:
        await both_ticked.wait()
        asyncio.get_running_loop().call_soon(stop.ask)
        return False

    async def failing_tick() -> bool:
        await both_ticked.wait()
        raise Weather

    idle = Part(name="idle", tick=idle_tick, pause_seconds=3600, wake=asyncio.Event())
    supervised = Supervisor([idle, part(failing_tick, "failing")], stop=stop)
    async with asyncio.timeout(0.4):  # shorter than the least back-off
        assert await supervised.run() == 0


async def test_every_turn_is_stamped_with_the_clock() -> None:
    stop, times = Stop(), iter(range(100))
    supervised = Supervisor([part(script([False], stop))], stop=stop, wait=Waits(), clock=lambda: next(times))
    assert supervised.last_turn_at == {"part": 0}
    await supervised.run()
    assert supervised.last_turn_at == {"part": 2}


async def test_a_companion_outlives_the_last_tick_and_is_cancelled_then() -> None:
    stop, story = Stop(), []

    async def serve() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            story.append("companion ended")

    async def tick() -> bool:
        asyncio.get_running_loop().call_soon(stop.ask)
        await stop.asked.wait()
        story.append("tick ended")
        return True

    companions = (Companion(name="http", run=serve),)
    assert await supervisor(part(tick), stop=stop, waits=Waits(), companions=companions).run() == 0
    assert story == ["tick ended", "companion ended"]


async def test_a_companion_that_returns_early_stops_the_process() -> None:
    async def serve() -> None:
        return

    companions = (Companion(name="http", run=serve),)
    assert await supervisor(stop=Stop(), waits=Waits(), companions=companions).run() == 1


async def test_a_companion_is_run_again_after_a_forgiven_error() -> None:
    stop, waits, runs = Stop(), Waits(), 0

    async def listen() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            stop.ask()
        raise Weather

    companions = (Companion(name="new heads", run=listen, forgives=(Weather,)),)
    assert await supervisor(stop=stop, waits=waits, companions=companions).run() == 0
    assert waits.seconds == [1, 2, 4]


async def test_a_companion_that_was_lost_is_counted_and_fails_nothing() -> None:
    """Polling goes on without it, and it is at work again while it runs."""
    stop, lost, seen = Stop(), list[str](), list[dict[str, str]]()
    connected_again = asyncio.Event()

    async def listen() -> None:
        if lost:
            connected_again.set()
            await asyncio.Event().wait()
        raise Weather

    async def tick() -> bool:
        await connected_again.wait()
        seen.append(dict(supervised.failing))
        stop.ask()
        return False

    companions = (Companion(name="heads", run=listen, forgives=(Weather,)),)
    supervised = Supervisor([part(tick)], companions, stop=stop, wait=Waits(), lost=lost.append)
    with capture_logs() as lines:
        assert await supervised.run() == 0
    assert (lost, seen) == (["heads"], [{}])
    assert [(line["event"], line["log_level"]) for line in lines] == [("companion.lost", "warning")]


async def test_a_companion_that_was_well_for_long_comes_back_as_soon_as_at_its_first_loss() -> None:
    stop, waits, now, runs = Stop(), Waits(), [0.0], 0

    async def listen() -> None:
        nonlocal runs
        runs += 1
        now[0] += 61 if runs == 3 else 1
        if runs == 4:
            stop.ask()
        raise Weather

    companions = (Companion(name="heads", run=listen, forgives=(Weather,)),)
    supervised = Supervisor([], companions, stop=stop, wait=waits, clock=lambda: now[0], chance=lambda: 1.0)
    assert await supervised.run() == 0
    assert waits.seconds == [1, 2, 1, 2]


async def test_an_outage_of_days_is_a_few_lines_in_the_log() -> None:
    stop, waits = Stop(), Waits()
    steps = [Weather()] * 1_000 + [False]
    with capture_logs() as lines:
        await supervisor(part(script(steps, stop)), stop=stop, waits=waits).run()
    assert [line["failures"] for line in lines if line["log_level"] == "warning"] == [2**n for n in range(10)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_asks_for_a_stop_and_the_second_ends_the_process(number: signal.Signals) -> None:
    ended: list[int] = []
    both = asyncio.Event()

    def end_now(code: int) -> None:
        ended.append(code)
        both.set()

    stop = Stop(end_now=end_now)
    with stop.on_signals():
        os.kill(os.getpid(), number)
        await stop.asked.wait()
        assert ended == []
        os.kill(os.getpid(), number)
        await both.wait()
    assert ended == [130]


async def test_a_wait_ends_with_its_event() -> None:
    event = asyncio.Event()
    event.set()
    await wait(event, 3600)
    event.clear()
    await wait(event, 0)
    assert not event.is_set()
