"""The state of the whole world at one moment: database, workers, network, CRE and chain.

Everything is a tuple of tuples, so that a state can be hashed, compared and shared.  What cannot make a difference any
more is left out or brought to one form (``canonical``): workers have no names, a claim number counts only against the
row's own, and an attempt that was refused is as good as one that was never made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from datastore.claims import REFUSED_BEFORE_FORWARDING
from datastore.lifecycle import State

OPEN = "open"
"""The outcome of an attempt that nobody answered yet; NULL in the schema."""


class Execution(NamedTuple):
    """One execution id: CRE derives it from the id of the call (our nonce) and the workflow id, from nothing else."""

    request: int
    nonce: int
    workflow: int


class Item(NamedTuple):
    """What a block holds.  ``execution`` is ``None`` for a ``MintRequested``; ``minted`` is the report's result."""

    request: int
    execution: Execution | None = None
    minted: bool = False


class Row(NamedTuple):
    """A ``mint_request`` with what hangs on it.

    ``frozen`` and ``found``: (nonce, workflow) of its ``frozen_request`` rows, and of sends that a restore lost and a
    report showed; together its ``execution_id`` rows.  ``attempts``: the outcomes of its ``attempt`` rows, in order.
    """

    state: State = State.SEEN
    reason: str = ""
    holds: bool = False
    gone: bool = False  # orphaned for good
    nonce: int = 0
    claim: int = 0
    frozen: tuple[tuple[int, int], ...] = ()
    found: tuple[tuple[int, int], ...] = ()
    attempts: tuple[str, ...] = ()
    evidence: bool = False  # a person gave an id that was sent up, for the consumer refuses used references


class Database(NamedTuple):
    """Committed rows.  ``view`` is the branch as indexed, ``proven`` its mints that are proven for a request.

    ``held`` is no row: how many items of the view are still in the chain's own blocks.  The same transaction may be
    mined again after a reorg, and is in another block then.
    """

    rows: tuple[Row | None, ...]
    view: tuple[Item, ...] = ()
    held: int = 0
    final: int = 0  # how many items of the view are final
    proven: tuple[Execution, ...] = ()
    reported: tuple[Execution, ...] = ()  # on any branch
    listed: tuple[int, ...] = ()  # workflows ever configured
    quarantined: bool = False
    refused: str = ""  # the constraint that refuses this commit; whoever repeats it is stuck for good


class Stage(IntEnum):
    """Where a worker stands between two atomic steps; a kill may come at each."""

    IDLE = 0
    CLAIMED = 1  # nothing frozen yet
    FROZEN = 2
    SIGNED = 3  # has a token
    BEGUN = 4  # the attempt is committed, the socket closed
    SENT = 5
    ANSWERED = 6


class Worker(NamedTuple):
    """One worker and the order in its memory, which may be older than the rows."""

    stage: Stage = Stage.IDLE
    request: int = 0
    nonce: int = 0
    workflow: int = 0
    claim: int = 0
    first: bool = False  # from a claim, not a resend of one in doubt
    fresh: bool = False  # the token's 300 s are not over
    attempt: int = 0
    own: bool = False  # the attempt of this number is the one that this worker began
    answer: str = ""

    def execution(self) -> Execution:
        return Execution(self.request, self.nonce, self.workflow)


IDLE = Worker()


class Cre(NamedTuple):
    """``cache`` is the nodes' cache of calls by id; ``signed`` are reports that anyone may deliver at any time."""

    cache: tuple[Execution, ...] = ()
    queued: tuple[Execution, ...] = ()
    signed: tuple[Execution, ...] = ()


class World(NamedTuple):
    """Everything, between two atomic steps."""

    database: Database
    replica: Database | None  # what a failover will bring back
    workers: tuple[Worker, ...]
    loose: tuple[Execution, ...]  # calls on their way that nobody waits for, their tokens fresh
    cre: Cre
    chain: tuple[Item, ...]
    final: int
    deployed: int  # the workflow that the settings name now
    reorgs: int  # how many more may happen
    failovers: int


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is decided; each field's default is ours, another value is a variant that must be seen to fail."""

    id_for_life: bool = True
    workflow_pinned: bool = True
    nonce_derived: bool = True
    attempt_before_send: bool = True
    sent: str = "unless refused"  # or "accepted only"
    token_signed_before_commit: bool = True
    quarantine: str = "until settled"  # or "none", "while reports are withheld"
    configured_searched: bool = True  # the search for lost sends knows the settings' workflows, listed or not
    bytes_checked: bool = True  # an attempt begins only for the bytes that are frozen
    answer_by_token: bool = True  # an answer is recorded only at the attempt that was begun with its token
    evidence: str = "if true"  # or "on trust": a person says of a plain consumer that it refuses used references


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One bounded world to explore.

    ``requests`` with one bank reference if ``shared``, for different beneficiaries if ``contested``.  The reference
    survives as ``text``, or the chain shows the nonce instead.  ``claims`` and ``attempts`` bound a request's numbers
    while rows may be lost; elsewhere their number is not bounded.  Where there is a failover, one worker works before
    it, and the others begin with it.
    """

    name: str
    requests: int = 1
    shared: bool = False
    contested: bool = False
    text: bool = True
    workers: int = 1
    reorgs: int = 0
    failovers: int = 0
    claims: int = 1
    attempts: int = 1
    kills: bool = False
    forgets: bool = False
    false_reports: bool = False
    workflows: int = 1
    people: bool = False
    generations: int = 0  # how often a person may give a request a new id
    once: bool = False  # the consumer refuses a bank reference that it has seen
    design: Design = field(default_factory=Design)

    def reference(self, request: int) -> int:
        """The bank reference of a request."""
        return 0 if self.shared else request

    def expected_reference(self, request: int) -> tuple[int, int]:
        """The deposit as ``MintExecuted`` shows it: by the bank's text, else by the first nonce of the request."""
        return (self.reference(request), -1 if self.text else request)

    def first_world(self) -> World:
        return World(
            database=Database(rows=(None,) * self.requests),
            replica=None,
            workers=(IDLE,) * (1 if self.failovers else self.workers),
            loose=(),
            cre=Cre(),
            chain=(),
            final=0,
            deployed=0,
            reorgs=self.reorgs,
            failovers=self.failovers,
        )


def with_item(items: tuple[Execution, ...], item: Execution) -> tuple[Execution, ...]:
    """A set as a sorted tuple, with one item more."""
    return items if item in items else tuple(sorted((*items, item)))


def without_item(items: tuple[Execution, ...], item: Execution) -> tuple[Execution, ...]:
    """The set with one item less."""
    return tuple(each for each in items if each != item)


def canonical(world: World) -> World:
    """The one form of all states that differ in nothing that can still matter."""
    if world.replica is None:
        rows, workers = _renumbered(world.database.rows, world.workers)
        if rows is not world.database.rows:
            world = world._replace(database=world.database._replace(rows=rows))
    else:  # the numbers of lost rows come back, so all stay as they are
        workers = tuple(sorted(world.workers))
    return world if workers == world.workers else world._replace(workers=workers)


@lru_cache(1 << 16)
def _renumbered(
    rows: tuple[Row | None, ...], workers: tuple[Worker, ...]
) -> tuple[tuple[Row | None, ...], tuple[Worker, ...]]:
    """Claims counted from the row's own, attempts without those that say nothing, idle who can only become idle."""
    crew = list(workers)
    table = tuple(None if row is None else _renumber(row, request, crew) for request, row in enumerate(rows))
    return (rows if table == rows else table), tuple(sorted(crew))


def _renumber(row: Row, request: int, crew: list[Worker]) -> Row:
    at_work = [n for n, worker in enumerate(crew) if worker.stage is not Stage.IDLE and worker.request == request]
    for n in at_work:
        if Stage.CLAIMED <= crew[n].stage <= Stage.SIGNED:
            ahead = crew[n].claim - row.claim
            stale = ahead < 0 or (ahead == 0 and crew[n].first and row.state is not State.CLAIMED)
            crew[n] = IDLE if stale else crew[n]._replace(claim=ahead)
    row = row._replace(claim=0)
    if any(crew[n].attempt and not crew[n].own for n in at_work):
        return row  # an attempt that was lost may meet another one of the same number
    answered_by = {crew[n].attempt: n for n in at_work if crew[n].attempt}
    said: set[str] = set()
    unanswered: list[int] = []
    for number, outcome in enumerate(row.attempts, start=1):
        if outcome == OPEN and number in answered_by:
            unanswered.append(answered_by[number])
        elif outcome == "accepted":
            said.add(outcome)
        elif outcome not in REFUSED_BEFORE_FORWARDING:
            said.add("unknown")
    for position, n in enumerate(unanswered, start=len(said) + 1):
        crew[n] = crew[n]._replace(attempt=position)
    return row._replace(attempts=(*sorted(said), *(OPEN,) * len(unanswered)))
