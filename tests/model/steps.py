"""Every atomic step that may come next, by anyone: the daemon, time, CRE and the chain, faults, people.

A kill may come between any two steps, for it is a step itself.  A worker that is paused is one that takes none.  Steps
that commute are taken in one order only: a token that is not used yet expires as well just before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from datastore.lifecycle import Event, State
from tests.model import database as db
from tests.model.world import (
    IDLE,
    Database,
    Execution,
    Item,
    Row,
    Scenario,
    Stage,
    Worker,
    World,
    canonical,
    with_item,
    without_item,
)


class By(Enum):
    """Whose step it is.  Without the last two kinds, everything that is promised must still come true."""

    DAEMON = "daemon"
    TIME = "time"
    WORLD = "world"  # CRE and the chain, doing what they should
    FAULT = "fault"
    PERSON = "person"


class Step(NamedTuple):
    by: By
    label: str
    after: World


def steps(world: World, scenario: Scenario) -> Iterator[Step]:
    """Every step from ``world``, each to a canonical world; steps that change nothing are left out."""
    for by, label, after in _all(world, scenario):
        form = canonical(after)
        if form != world:
            yield Step(by, label, form)


def _all(world: World, scenario: Scenario) -> Iterator[Step]:
    yield from _index(world, scenario)
    seen: set[Worker] = set()
    for n, worker in enumerate(world.workers):
        if worker not in seen:  # two that are alike do alike
            seen.add(worker)
            yield from _work(world, n, scenario)
            yield from _interrupt(world, n, scenario)
    yield from _pass_time(world, scenario)
    yield from _run_cre(world, scenario)
    yield from _grow_chain(world, scenario)
    yield from _break(world, scenario)
    for label, database in db.commands(world.database, _unused_nonces(world, scenario), scenario):
        yield Step(By.PERSON, label, _with_database(world, database))


def _with_database(world: World, database: Database) -> World:
    return World(database, *world[1:])


def _with_worker(world: World, n: int, worker: Worker) -> World:
    workers = world.workers
    return World(world.database, world.replica, (*workers[:n], worker, *workers[n + 1 :]), *world[3:])


# -- the indexer -----------------------------------------------------------------------------------------------------


def _index(world: World, scenario: Scenario) -> Iterator[Step]:
    commits = db.commits(
        world.database,
        world.chain,
        world.final,
        world.deployed,
        _unused_nonces(world, scenario),
        scenario,
        quarantine_may_end=world.database.quarantined and _quarantine_may_end(world, scenario),
    )
    for label, database in commits:
        yield Step(By.DAEMON, label, _with_database(world, database))
    settled = db.settle_references(world.database, scenario)
    yield Step(By.DAEMON, "the indexer settles references", _with_database(world, settled))


def _quarantine_may_end(world: World, scenario: Scenario) -> bool:
    """The deadline is over: tokens are dead, and what CRE took has shown itself in a final block, or never will."""
    if world.loose or any(worker.fresh and worker.stage >= Stage.BEGUN for worker in world.workers):
        return False
    if scenario.design.quarantine == "while reports are withheld":
        return True
    shown = {item.execution for item in world.chain[: world.final]}
    return not world.cre.queued and all(each in shown for each in world.cre.signed)


def _unused_nonces(world: World, scenario: Scenario) -> tuple[int, ...]:
    """For the variant that stores random nonces, one of each request that was never used; else nothing."""
    if scenario.design.nonce_derived:
        return ()
    return tuple(_unused_nonce(world, request) for request in range(scenario.requests))


def _unused_nonce(world: World, request: int) -> int:
    row = world.database.rows[request]
    known = [each.nonce for each in (*world.cre.cache, *world.cre.queued, *world.cre.signed, *world.loose)]
    known += [worker.nonce for worker in world.workers]
    known += [nonce for nonce, _ in row.frozen] if row is not None else []
    return max(known, default=-1) + 1


# -- a worker of the invocator ---------------------------------------------------------------------------------------


def _work(world: World, n: int, scenario: Scenario) -> Iterator[Step]:
    worker = world.workers[n]
    match worker.stage:
        case Stage.IDLE:
            yield from _take(world, n, scenario)
        case Stage.CLAIMED:
            yield _freeze(world, n, scenario)
        case Stage.FROZEN:
            yield from _look_and_sign(world, n, scenario)
        case Stage.SIGNED:
            yield _begin(world, n, scenario)
        case Stage.BEGUN:
            fresh = worker.fresh or not scenario.design.token_signed_before_commit
            yield _by_worker(world, n, "sends", worker._replace(stage=Stage.SENT, fresh=fresh))
            yield _answered(world, n, By.FAULT, "refused_now", "cannot connect", world)
        case Stage.SENT:
            yield from _be_answered(world, n)
        case Stage.ANSWERED:
            yield _record(world, n, scenario)


def _by_worker(world: World, n: int, what: str, worker: Worker, database: Database | None = None) -> Step:
    at_work = worker if world.workers[n].stage is Stage.IDLE else world.workers[n]
    after = _with_worker(world, n, worker)
    label = f"a worker {what}: {name_of(at_work.execution())}"
    return Step(By.DAEMON, label, after if database is None else _with_database(after, database))


def name_of(call: Execution) -> str:
    """A call in the words of a trace."""
    return f"request {call.request} (nonce {call.nonce}, workflow {call.workflow})"


def _take(world: World, n: int, scenario: Scenario) -> Iterator[Step]:
    database = world.database
    if world.deployed not in database.listed:  # the first thing that a tick does
        database = database._replace(listed=tuple(sorted((*database.listed, world.deployed))))
        yield Step(By.DAEMON, "a worker lists its workflow", _with_database(world, database))
        return
    for request, row in enumerate(database.rows):
        if row is None or database.quarantined or not may_attempt(world, row, scenario):
            continue
        frozen = dict(row.frozen).get(row.nonce)
        found = dict(reversed(row.found)).get(row.nonce)
        workflow = next(each for each in (frozen, found, world.deployed) if each is not None)
        if row.state is State.CONFIRMED:
            after = db.claim(database, request, scenario)
            if after is not None:
                stage = Stage.CLAIMED if frozen is None else Stage.FROZEN
                order = Worker(stage, request, row.nonce, workflow, claim=row.claim + 1, first=True)
                yield _by_worker(world, n, "claims", order, after)
        if row.state is State.IN_DOUBT and db.place(database, request) is not None:
            order = Worker(Stage.CLAIMED, request, row.nonce, workflow, claim=row.claim)
            if frozen is not None:
                yield _by_worker(world, n, "takes a doubt that is due and signs", _signed(world, order, scenario))
            elif found == world.deployed:
                yield _by_worker(world, n, "takes a doubt that is due", order)


def may_attempt(world: World, row: Row, scenario: Scenario) -> bool:
    """Numbers are bounded while lost ones may come back, because only then they are kept."""
    kept = world.replica is not None or any(worker.attempt and not worker.own for worker in world.workers)
    return not kept or (row.claim < scenario.claims and len(row.attempts) < scenario.attempts)


def _freeze(world: World, n: int, scenario: Scenario) -> Step:
    worker = world.workers[n]
    after = db.freeze(world.database, worker)
    if after is None:
        return _by_worker(world, n, "may not freeze", IDLE)
    if worker.first:
        return _by_worker(world, n, "freezes", worker._replace(stage=Stage.FROZEN), after)
    return _by_worker(world, n, "freezes and signs", _signed(world, worker, scenario), after)  # no pre-flight


def _look_and_sign(world: World, n: int, scenario: Scenario) -> Iterator[Step]:
    """``_may_still_mint``, then the token.  Reading and signing are one step: the token may be as old as any pause."""
    worker, database = world.workers[n], world.database
    reported = any(
        Execution(worker.request, worker.nonce, workflow) in database.reported for workflow in database.listed
    )
    retired = worker.workflow != world.deployed and scenario.design.workflow_pinned
    if reported or retired:
        refused = db.end_claim(database, worker, Event.PREFLIGHT_NEVER, scenario)
        yield _by_worker(world, n, "finds a report" if reported else "finds its workflow retired", IDLE, refused)
    if not reported:  # a process that was started before the redeployment finds nothing wrong
        yield _by_worker(world, n, "signs", _signed(world, worker, scenario))


def _signed(world: World, worker: Worker, scenario: Scenario) -> Worker:
    """The worker with its token, for the bytes that were frozen (or, in the variants, for others)."""
    design = scenario.design
    return worker._replace(
        stage=Stage.SIGNED,
        fresh=design.token_signed_before_commit,
        workflow=worker.workflow if design.workflow_pinned else world.deployed,
        nonce=worker.nonce if design.id_for_life else _unused_nonce(world, worker.request),
    )


def _begin(world: World, n: int, scenario: Scenario) -> Step:
    worker, database = world.workers[n], world.database
    if not db.may_begin(database, worker, scenario):
        returned = database
        if worker.first:
            returned = db.end_claim(database, worker, Event.GIVEN_BACK, scenario)
        return _by_worker(world, n, "may not begin", IDLE, returned)
    if not scenario.design.attempt_before_send:
        return _by_worker(world, n, "looks once more", worker._replace(stage=Stage.BEGUN))
    after, attempt = db.begin_attempt(database, worker, scenario)
    begun = worker._replace(stage=Stage.BEGUN, claim=0, first=False, attempt=attempt, own=True)
    return _by_worker(world, n, "begins an attempt", begun, after)


def _answered(world: World, n: int, by: By, answer: str, what: str, after: World) -> Step:
    worker = world.workers[n]
    told = worker._replace(stage=Stage.ANSWERED, fresh=False, answer=answer)
    if worker.attempt:  # the answer belongs to an attempt, whatever its call was
        told = told._replace(nonce=0, workflow=0)
    return Step(by, f"a worker {what}: {name_of(worker.execution())}", _with_worker(after, n, told))


def _be_answered(world: World, n: int) -> Iterator[Step]:
    """The gateway reads the call.  Where it reads it but the answer is lost, the worker gives up first."""
    worker = world.workers[n]
    loose = world.loose
    if worker.fresh:
        after, answer = _forward(world, worker.execution())
        yield _answered(world, n, By.WORLD, answer, f"is answered {answer}", after)
        yield _answered(world, n, By.FAULT, "refused_now", "is answered refused_now", world)
        yield _answered(world, n, By.FAULT, "refused_for_good", "is answered refused_for_good", world)
        loose = with_item(loose, worker.execution())
    else:
        yield _answered(world, n, By.WORLD, "refused_now", "is refused for its expired token", world)
    yield _answered(world, n, By.TIME, "unknown", "hears nothing in time", world._replace(loose=loose))


def _record(world: World, n: int, scenario: Scenario) -> Step:
    worker, before = world.workers[n], world.database
    if not scenario.design.attempt_before_send and db.may_begin(before, worker, scenario):
        before, attempt = db.begin_attempt(before, worker, scenario)
        worker = worker._replace(attempt=attempt, own=True)
    return _by_worker(world, n, f"records {worker.answer}", IDLE, db.record_answer(before, worker, scenario))


def _interrupt(world: World, n: int, scenario: Scenario) -> Iterator[Step]:
    worker = world.workers[n]
    if worker.fresh and (worker.stage is Stage.SENT or (worker.stage is Stage.BEGUN and scenario.failovers)):
        label = f"the token expires: {name_of(worker.execution())}"
        yield Step(By.TIME, label, _with_worker(world, n, worker._replace(fresh=False)))
    if scenario.kills and worker.stage is not Stage.IDLE:
        after = _with_worker(world, n, IDLE)
        if worker.stage is Stage.SENT and worker.fresh:
            after = after._replace(loose=with_item(world.loose, worker.execution()))
        yield Step(By.FAULT, f"a worker is killed: {name_of(worker.execution())}", after)


# -- time ------------------------------------------------------------------------------------------------------------


def _pass_time(world: World, scenario: Scenario) -> Iterator[Step]:
    for label, database in db.sweeps(world.database, scenario):
        yield Step(By.TIME, label, _with_database(world, database))
    for call in world.loose:
        after = world._replace(loose=without_item(world.loose, call))
        yield Step(By.TIME, f"the token of a call on its way expires: {name_of(call)}", after)


# -- CRE and the chain -----------------------------------------------------------------------------------------------


def _forward(world: World, call: Execution) -> tuple[World, str]:
    """The nodes take a call: their cache is keyed by the id alone and compares the bytes (cre.md §2.4)."""
    cre = world.cre
    for known in cre.cache:
        if known[:2] == call[:2]:
            return world, "accepted" if known == call else "payload_conflict"
    cre = cre._replace(cache=with_item(cre.cache, call), queued=with_item(cre.queued, call))
    return world._replace(cre=cre), "accepted"


def _run_cre(world: World, scenario: Scenario) -> Iterator[Step]:
    cre = world.cre
    for call in world.loose:
        after, _ = _forward(world._replace(loose=without_item(world.loose, call)), call)
        yield Step(By.WORLD, f"CRE takes a call that nobody waits for: {name_of(call)}", after)
    for call in cre.queued:
        queued = without_item(cre.queued, call)
        ran = cre._replace(queued=queued, signed=with_item(cre.signed, call))
        yield Step(By.WORLD, f"CRE runs and signs a report: {name_of(call)}", world._replace(cre=ran))
        dropped = world._replace(cre=cre._replace(queued=queued))
        yield Step(By.FAULT, f"CRE drops it silently: {name_of(call)}", dropped)
    for call in cre.cache if scenario.forgets else ():
        forgot = world._replace(cre=cre._replace(cache=without_item(cre.cache, call)))
        yield Step(By.FAULT, f"CRE forgets the id: {name_of(call)}", forgot)


def _grow_chain(world: World, scenario: Scenario) -> Iterator[Step]:
    chain = world.chain
    mined = {item.request for item in chain if item.execution is None}
    used = {scenario.expected_reference(item.request) for item in chain if item.minted}
    for request in range(scenario.requests):
        if request not in mined:
            yield Step(By.WORLD, f"request {request} is mined", world._replace(chain=(*chain, Item(request))))
    for call in world.cre.signed:
        minted, refused = Item(call.request, call, minted=True), Item(call.request, call, minted=False)
        if minted in chain:  # the forwarder: AlreadyAttempted
            continue
        refuses = scenario.once and scenario.expected_reference(call.request) in used
        if not refuses:
            yield Step(By.WORLD, f"delivered and minted: {name_of(call)}", world._replace(chain=(*chain, minted)))
        if refused not in chain and (refuses or scenario.false_reports):
            after = world._replace(chain=(*chain, refused))
            yield Step(By.WORLD if refuses else By.FAULT, f"delivered, result false: {name_of(call)}", after)
    if world.final < len(chain):
        yield Step(By.WORLD, "one more block is final", world._replace(final=world.final + 1))


# -- faults ----------------------------------------------------------------------------------------------------------


def _break(world: World, scenario: Scenario) -> Iterator[Step]:
    if world.reorgs:
        for kept in range(world.final, len(world.chain)):
            after = world._replace(
                chain=world.chain[:kept],
                reorgs=world.reorgs - 1,
                database=_leaving(world.database, kept),
                replica=None if world.replica is None else _leaving(world.replica, kept),
            )
            yield Step(By.FAULT, f"a reorg leaves the first {kept} items", after)
    for workflow in range(scenario.workflows):
        if workflow != world.deployed:
            yield Step(By.FAULT, f"workflow {workflow} is deployed", world._replace(deployed=workflow))
    if world.failovers:
        after = world._replace(replica=world.database, failovers=world.failovers - 1)
        yield Step(By.FAULT, "the replica gets no more commits", after)
    if world.replica is not None and world.replica != world.database:
        yield Step(By.FAULT, "the database fails over", _fail_over(world, world.replica, scenario))


def _leaving(database: Database, kept: int) -> Database:
    return database._replace(held=kept) if database.held > kept else database


def _fail_over(world: World, replica: Database, scenario: Scenario) -> World:
    """The rows are the replica's; whoever was at work still has the order of the lost ones in memory."""
    workers = []
    for worker in world.workers:
        row = replica.rows[worker.request]
        kept = row is not None and worker.attempt <= len(row.attempts)
        workers.append(worker._replace(own=worker.own and kept))
    workers += [IDLE] * (scenario.workers - len(workers))
    database = replica._replace(quarantined=scenario.design.quarantine != "none")
    return world._replace(database=database, replica=None, workers=tuple(workers))
