"""Breadth-first search over every reachable world, with the shortest trace to whatever breaks a promise."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from datastore.lifecycle import State
from tests.model.database import place
from tests.model.steps import By, may_attempt, steps
from tests.model.world import Scenario, Stage, World

DOUBLE_MINT = "double mint"
DOUBLE_REFERENCE = "double mint of one bank reference"
LOST = "lost request"
WRONGLY_COMPLETED = "completed without exactly one mint"
ENDED_BUT_LIVE = "cancelled or dropped, and CRE may still mint"
REFUSED_COMMIT = "the schema refuses a commit"

_ENDED = frozenset({State.COMPLETED, State.REJECTED, State.FAILED, State.REVIEW, State.CANCELLED})
_NOT_PROMISED = frozenset({By.FAULT, By.PERSON})


@dataclass(kw_only=True)
class Report:
    """What a search saw.  ``broken`` counts worlds by the promise that they break; ``traces`` are the shortest."""

    scenario: Scenario
    states: int = 0
    transitions: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    traces: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        found = ", ".join(f"{count} of: {promise}" for promise, count in sorted(self.broken.items()))
        lines = [f"{self.scenario.name}: {self.states:,} states, {self.transitions:,} transitions; {found or 'clean'}"]
        for promise, trace in self.traces.items():
            lines += [f"  {promise}:", *(f"    {n:2d}. {step}" for n, step in enumerate(trace, start=1))]
        return "\n".join(lines)


def broken_promises(world: World, scenario: Scenario) -> Iterator[str]:
    """The promises that ``world`` itself breaks; whether a request is lost, only the whole search can say."""
    mints = [item.request for item in world.chain if item.minted]
    deposits = [scenario.reference(request) for request in mints]
    if len(mints) != len(set(mints)):
        yield DOUBLE_MINT
    elif len(deposits) != len(set(deposits)):
        yield DOUBLE_REFERENCE
    if world.database.refused:
        yield f"{REFUSED_COMMIT}: {world.database.refused}"
    for request, row in enumerate(world.database.rows):
        if row is None:
            continue
        if row.state is State.COMPLETED and mints.count(request) != 1:
            yield WRONGLY_COMPLETED
        ended = row.state in {State.CANCELLED, State.DROPPED} and not world.database.quarantined
        if ended and _may_still_mint(world, request):
            yield ENDED_BUT_LIVE


def _may_still_mint(world: World, request: int) -> bool:
    """Whether CRE may mint a request, or has, without another call."""
    calls = [*world.loose, *world.cre.queued, *world.cre.signed]
    calls += [worker.execution() for worker in world.workers if worker.stage is Stage.SENT and worker.fresh]
    return any(each.request == request for each in calls)


def has_ended_well(world: World) -> bool:
    """Whether a person can read of each canonical request how it ended, and the rows are what the chain says."""
    database = world.database
    if database.view != world.chain or database.held != len(world.chain):
        return False
    for request, row in enumerate(database.rows):
        if place(database, request) is None:
            continue
        if row is None or row.state not in _ENDED:
            return False
        minted = any(item.minted and item.request == request for item in world.chain)
        if minted and row.state not in {State.COMPLETED, State.REVIEW}:
            return False
    return True


def is_at_a_bound(world: World, scenario: Scenario) -> bool:
    """Whether a request waits for a claim or an attempt that only our bounds forbid."""
    return any(
        row is not None and row.state in {State.CONFIRMED, State.CLAIMED} and not may_attempt(world, row, scenario)
        for row in world.database.rows
    )


class TooMany(Exception):
    """There are more states than the limit."""


def explore(
    scenario: Scenario, *, stop_at: Callable[[str], bool] = lambda _: False, limit: int | None = None
) -> Report:
    """Visit every world within the bounds.

    Args:
        scenario: The bounds.
        stop_at: End at the first world that breaks a promise of this name.
        limit: Most states.

    Raises:
        TooMany: There are more.
    """
    report = Report(scenario=scenario)
    first = scenario.first_world()
    number = {first: 0}
    worlds = [first]
    parents = array("l", [-1])
    labels = [""]
    sources, targets = array("l"), array("l")  # the steps that need neither a fault nor a person
    ended = array("b")
    at = 0
    while at < len(worlds):
        world = worlds[at]
        broken = list(broken_promises(world, scenario))
        for promise in broken:
            report.broken[promise] += 1
            if promise not in report.traces:
                report.traces[promise] = _trace(at, parents, labels)
            if stop_at(promise):
                report.states = len(worlds)
                return report
        ended.append(bool(broken) or has_ended_well(world) or is_at_a_bound(world, scenario))
        for by, label, after in steps(world, scenario) if not broken else ():  # what follows says nothing new
            report.transitions += 1
            n = number.get(after)
            if n is None:
                n = number[after] = len(worlds)
                worlds.append(after)
                parents.append(at)
                labels.append(label)
                if limit is not None and n >= limit:
                    raise TooMany(f"{scenario.name}: more than {limit:,} states")
            if by not in _NOT_PROMISED:
                sources.append(at)
                targets.append(n)
        at += 1
    report.states = len(worlds)
    lost = _lost(ended, sources, targets)
    if lost:
        report.broken[LOST] += len(lost)
        report.traces[LOST] = _trace(lost[0], parents, labels)
    return report


def _trace(at: int, parents: array[int], labels: list[str]) -> list[str]:
    trace = []
    while at > 0:
        trace.append(labels[at])
        at = parents[at]
    return trace[::-1]


def _lost(ended: array[int], sources: array[int], targets: array[int]) -> list[int]:
    """The worlds from which no way leads to a good end without a fault or a person: searched backwards."""
    before: dict[int, list[int]] = {}
    for source, target in zip(sources, targets, strict=True):
        if not ended[source]:
            before.setdefault(target, []).append(source)
    safe = array("b", ended)
    reached = [n for n, good in enumerate(ended) if good]
    while reached:
        for source in before.pop(reached.pop(), ()):
            if not safe[source]:
                safe[source] = 1
                reached.append(source)
    return [n for n, good in enumerate(safe) if not good]
