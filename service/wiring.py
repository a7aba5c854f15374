"""Make the daemon out of its settings: pools, node, indexer, invocator, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, TypeVar

import click
import structlog

from datastore import claims, factories, listening, pinning, quarantine, schema, status, tally
from datastore.claims import Pacing
from datastore.connection import Pool, Role, check_server, open_pool
from datastore.errors import BlockMisplaced, DatastoreUnavailable, DatastoreUnsuitable, FinalityViolated
from datastore.factories import Factory
from datastore.following import CONFIRMED_CHANNEL, Rules
from datastore.identity import derive_nonce, secret_check_value
from datastore.rows import Block
from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.follower import FinalityRule, Follower
from indexer.late_factories import LateFactories
from indexer.observation import Sources
from indexer.policy import Policy
from indexer.sweep import Examiner, Sweep
from invocator.cre_gateway import CreGateway
from invocator.cre_simulate import DEFAULT_TIMEOUT_SECONDS as SIMULATION_SECONDS
from invocator.cre_simulate import CreCommand, CreSimulation
from invocator.dry_run import DryRun
from invocator.invocation import SIMULATED_WORKFLOW, Invocator, Terms
from invocator.signing import Signer
from node.errors import BlockUnknown, NodeUnavailable, RangeRefused
from node.heads import hear_heads
from node.identity import ChainIdentity
from node.node import Node
from node.pool import EndpointPool, Told
from node.watchdog import Limits
from service import collector, http, logs
from service.embedded_postgres import EmbeddedPostgres
from service.endpoints import rpc_endpoint
from service.metrics import RpcMetrics
from service.preflight import is_witnessed, read_contracts
from service.settings import Finality, Settings, SettingsError, cre_environment, is_open_to_others, wei
from service.supervision import GRACE_SECONDS, Companion, Part, Stop, Supervisor, wait

log = structlog.get_logger(__name__)

INDEXER: Final = "indexer"
INVOCATOR: Final = "invocator"
SWEEP: Final = "sweep"
LATE_FACTORIES: Final = "late_factories"
TALLY: Final = "tally"
PARTS: Final = (INDEXER, INVOCATOR)
_SPOKEN: Final = {INDEXER: "the follower", SWEEP: "the sweep", LATE_FACTORIES: "the late factories"}

_RPC_TIMEOUT_SECONDS: Final = 30.0
_INDEXING_TURN_SECONDS: Final = 20 * _RPC_TIMEOUT_SECONDS  # a range that is halved until the node can serve it
_SECRET_BYTES: Final = 32
_MOST_BLOCKS_APART: Final = 64  # of honest endpoints that are asked at the same time, on a chain with fast blocks
_CLOSE_SECONDS: Final = 5.0
_PROBE_PAUSE_SECONDS: Final = 5.0
_FINALITY_POLLS: Final = 3  # finality moves slowly: it is asked at every third look at most,
_FINALITY_SECONDS: Final = 12.0  # and a new block may be looked at long before the next poll

T = TypeVar("T")

Reached: TypeAlias = Callable[[str], None]
Troubles: TypeAlias = Callable[[], tuple[str, ...]]
StartsWithout: TypeAlias = Callable[[Sequence[str]], bool]
"""Whether a first start may go on although these caps are not set."""


def _always(_: Sequence[str]) -> bool:
    return True


async def run(
    settings: Settings,
    *,
    parts: tuple[str, ...],
    stop: Stop,
    log_level: str = "info",
    log_format: Literal["text", "json"] = "text",
    reached: Reached = lambda _: None,
    show: Callable[[str], None] = click.echo,
    starts_without: StartsWithout = _always,
    secret_files: Mapping[str, Path] = MappingProxyType({}),
) -> int:
    """Run the daemon until it is asked to stop; the exit code.

    Args:
        settings: Checked here for what these parts need.
        parts: Of ``PARTS``.
        stop: Who may end it.
        log_level: The least level that is logged.
        log_format: For people or for machines.
        reached: Told each boundary around a commit or a call; tests end the process there.
        show: Gets what mode ``dry-run`` would send, a line a request.
        starts_without: Asked at a first start only.
        secret_files: Where settings come from files, by name; who else can read them is told.

    Raises:
        SettingsError, DatastoreUnsuitable, ChainMismatch: Do not run; the message has the remedy.
        NodeUnavailable, DatastoreUnavailable: Not now; start again.
    """
    # A core dump would hold every key.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logs.configure(level=log_level, fmt=log_format, secrets=settings.secret_texts())
    collector.look_seldom()
    for name, path in secret_files.items():
        if is_open_to_others(path):
            log.warning("secret.file_open_to_others", setting=name, path=str(path), remedy=f"chmod 600 {path}")
    settings.require_chain()
    settings.require_invocator()
    if settings.caps_not_chosen:
        log.warning("caps.not_chosen", settings=settings.caps_not_chosen, remedy="set a number of tokens, or none")
    async with AsyncExitStack() as stack:
        # From here on: a signal during the start is as graceful as one later.
        stack.enter_context(stop.on_signals())
        dsn, secret = await stack.enter_async_context(_datastore(settings))
        # Of the embedded database, both were made here: the log must not show them either.
        logs.configure(level=log_level, fmt=log_format, secrets=(*settings.secret_texts(), dsn, secret.hex()))
        rpc_metrics = RpcMetrics(_present(settings.chain_id))
        node = _node(settings, rpc_metrics)
        stack.push_async_callback(node.close)
        pool = await _opened(stack, dsn, Role.INDEXER)
        for each in await check_server(pool):
            log.warning("datastore.weak", sentence=each.sentence, remedy=each.remedy)
        sources = _sources(settings, secret)
        pinned = await _pin(pool, node, settings, sources, starts_without)
        in_force = await quarantine.notice(
            pool, sources.chain_id, deadline_seconds=settings.completion_deadline_seconds
        )
        if in_force is not None:
            log.error("quarantine.entered" if in_force.entered else "quarantine.in_force", sentence=str(in_force))
        last_turn_at: dict[str, float] = {}
        running = [_part(TALLY, lambda: tally.fold(pool, sources.chain_id), settings)]
        companions: list[Companion] = []
        troubles: Troubles = tuple
        if INDEXER in parts:
            follower, sweep, late = await _indexers(settings, pool, node, sources, pinned, last_turn_at, reached)
            indexer = _part(INDEXER, _halting(INDEXER, follower.tick, pool, sources.chain_id), settings)
            running += [
                indexer,
                _part(SWEEP, _halting(SWEEP, sweep.tick, pool, sources.chain_id), settings),
                *_probing(settings, node),
            ]
            companions += _listening(settings, indexer)
            troubles = _troubles(node, follower, sweep, late)
            await _declare(pool, node, settings, sources)
            if settings.more_factories:
                running.append(
                    _part(LATE_FACTORIES, _halting(LATE_FACTORIES, late.tick, pool, sources.chain_id), settings)
                )
        if INVOCATOR in parts:
            role = Role.READER if settings.cre_mode == "dry-run" else Role.INVOCATOR
            worker = _invocation(settings, await _opened(stack, dsn, role), node, reached, show)
            finish = worker.record if isinstance(worker, Invocator) else None
            running.append(replace(_part(INVOCATOR, worker.tick, settings), finish=finish))
        log.info("daemon.started", parts=[part.name for part in running], chain_id=settings.chain_id)
        reader = await _opened(stack, dsn, Role.READER)
        companions += [_ear(dsn, sources.chain_id, part) for part in running if part.name == INVOCATOR]
        supervisor = Supervisor(
            running,
            companions,
            stop=stop,
            grace_seconds=grace_seconds(settings),
            last_turn_at=last_turn_at,
            lost=rpc_metrics.lost_wake_up,
        )
        companions.append(
            _server(settings, reader, sources.chain_id, supervisor, node=node, troubles=troubles, rpc=rpc_metrics)
        )
        code = await supervisor.run()
        log.info("daemon.stopped", exit_code=code)
        return code


@asynccontextmanager
async def _datastore(settings: Settings) -> AsyncIterator[tuple[str, bytes]]:
    """The database's DSN and the instance secret; without a configured database, an embedded one of our own."""
    if settings.database_url is not None:
        dsn = settings.database_url.get_secret_value()
        await schema.check(dsn)
        yield dsn, instance_secret(settings)
        return
    async with EmbeddedPostgres(settings.data_dir / "postgres") as postgres:
        log.info("datastore.embedded", sentence=postgres.sentence)
        await schema.apply(postgres.dsn)
        yield postgres.dsn, instance_secret(settings)


def instance_secret(settings: Settings, *, make: bool = True) -> bytes:
    """The configured instance secret; or, with the embedded database only, the one that is kept beside it.

    Raises:
        SettingsError: There is none, and none may be made.
    """
    if settings.instance_secret is not None:
        return settings.instance_secret.get_secret_value()
    if settings.database_url is not None:
        raise SettingsError(["BSKT_INSTANCE_SECRET is needed with BSKT_DATABASE_URL"])
    kept = kept_secret_path(settings.data_dir)
    if not make and not kept.exists():
        raise SettingsError([f"{kept} is missing: put the daemon's secret back from a backup"])
    return _kept_secret(settings.data_dir)


def kept_secret_path(data_dir: Path) -> Path:
    """Where the secret of an embedded database is kept."""
    return data_dir / "instance-secret"


def _kept_secret(data_dir: Path) -> bytes:
    """The secret beside the embedded database, made at the first start.

    Written under another name and renamed: a crash leaves either no secret or a whole one.
    """
    path = kept_secret_path(data_dir)
    if not path.exists():
        # A draft that a crash left is overwritten; the embedded server lets only one daemon come here.
        draft = path.with_suffix(".draft")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(_SECRET_BYTES).hex().encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.rename(path)
        # The database pins this secret next: a power cut must not keep the one and lose the other.
        folder = os.open(data_dir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return bytes.fromhex(path.read_text(encoding="ascii"))


async def _opened(stack: AsyncExitStack, dsn: str, role: Role) -> Pool:
    pool = await open_pool(dsn, role)
    stack.push_async_callback(_close, pool)
    return pool


async def _close(pool: Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), _CLOSE_SECONDS)
    except TimeoutError:
        # A tick that outlived the grace still holds a connection; its transaction ends with it.
        pool.terminate()


def _node(settings: Settings, metrics: RpcMetrics | None = None) -> Node:
    metrics = metrics or RpcMetrics(_present(settings.chain_id))
    return Node(
        EndpointPool(
            [
                rpc_endpoint(settings, number, timeout_seconds=_RPC_TIMEOUT_SECONDS, observe=metrics.observe)
                for number in range(len(settings.rpc_url))
            ],
            requests_per_second=settings.rpc_requests_per_second,
            limits=Limits(
                head_seconds=settings.head_timeout_seconds,
                finality_seconds=settings.finality_timeout_seconds,
                needs_finalized="finalized" in {settings.trigger_finality.kind, settings.complete_finality.kind},
            ),
            told=Told(inconsistency=metrics.inconsistent, failover=metrics.failed_over),
        ),
        max_logs=settings.rpc_max_logs,
    )


def _sources(settings: Settings, secret: bytes) -> Sources:
    return Sources(
        chain_id=_present(settings.chain_id),
        factory=_present(settings.factory_address),
        forwarder=_present(settings.forwarder_address),
        catalog=EventCatalog(load_abis(settings.abi_dir or packaged_abis())),
        secret=secret,
        more_factories=frozenset(factory.address for factory in settings.more_factories),
    )


def packaged_abis() -> Path:
    """The directory of the ABI files that come with the program."""
    here = Path(__file__).parents[1]
    installed = here / "indexer" / "abi"
    return installed if installed.is_dir() else here / "abi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexing:
    """What a command needs that indexes by itself, beside the daemon or without it."""

    pool: Pool
    node: Node
    sources: Sources
    rules: Rules
    trigger_finality: FinalityRule
    complete_finality: FinalityRule


@asynccontextmanager
async def indexing(settings: Settings, dsn: str) -> AsyncIterator[Indexing]:
    """Open the database at ``dsn`` and the node of a chain that the daemon has pinned.

    Raises:
        SettingsError, DatastoreUnsuitable, ChainMismatch: The message has the remedy.
        NodeUnavailable, DatastoreUnavailable: Not now.
    """
    collector.look_seldom()
    settings.require_chain()
    async with AsyncExitStack() as stack:
        await schema.check(dsn)
        node = _node(settings, RpcMetrics(_present(settings.chain_id)))
        stack.push_async_callback(node.close)
        pool = await _opened(stack, dsn, Role.INDEXER)
        await check_server(pool)
        sources = _sources(settings, instance_secret(settings))
        pinned = await pinning.pinned(pool, await _shown(pool, node, sources))
        if pinned is None:
            raise DatastoreUnsuitable(
                f"the database does not hold chain {sources.chain_id} yet: start `bskt run` first, it pins the chain"
            )
        yield Indexing(
            pool=pool,
            node=node,
            sources=sources,
            rules=_rules(settings, sources, pinned),
            trigger_finality=_finality(settings.trigger_finality),
            complete_finality=_finality(settings.complete_finality),
        )


def _identity(pin: pinning.Pin) -> ChainIdentity:
    return ChainIdentity(
        chain_id=pin.chain_id,
        genesis_hash=pin.genesis_hash,
        factory_address=pin.factory_address,
        factory_code_hash=pin.factory_code_hash,
    )


async def _shown(pool: Pool, node: Node, sources: Sources) -> pinning.Pin:
    """Let every endpoint show the chain that the database pinned; from here on only such ones are believed."""
    known = await pinning.stored(pool, sources.chain_id)
    if known is None or known.factory_address != sources.factory:  # another factory is refused later, with the reason
        node.expect(ChainIdentity(chain_id=sources.chain_id, genesis_hash=known.genesis_hash if known else None))
    else:
        node.expect(_identity(known))
    await node.prove_all()
    async with node.session() as session:
        pin = await _found(session.node, sources)
    # Endpoints that were away at this start have to show all of it when they come back.
    node.expect(_identity(pin))
    return pin


async def _found(node: Node, sources: Sources) -> pinning.Pin:
    """What the node says of that which must never change."""
    genesis_hash = await node.genesis_hash()
    code_hash = await node.code_hash(sources.factory)
    if code_hash is None:
        raise DatastoreUnsuitable(
            f"there is no contract at BSKT_FACTORY_ADDRESS 0x{sources.factory.hex()} on chain {sources.chain_id}"
        )
    return pinning.Pin(
        chain_id=sources.chain_id,
        genesis_hash=genesis_hash,
        factory_address=sources.factory,
        factory_code_hash=code_hash,
        forwarder_address=sources.forwarder,
        secret_check=secret_check_value(sources.secret),
    )


async def _pin(
    pool: Pool, node: Node, settings: Settings, sources: Sources, starts_without: StartsWithout = _always
) -> pinning.Pinned:
    """Check the chain against what the first start pinned; be that first start if there was none."""
    pin = await _shown(pool, node, sources)
    if (pinned := await pinning.pinned(pool, pin)) is not None:
        return pinned
    # In a thread: a person may think for long, and a signal must still end the start.
    if (caps := settings.caps_not_chosen) and not await asyncio.to_thread(starts_without, caps):
        raise SettingsError([f"{name}: not set; set it to a number of tokens, or to none" for name in caps])
    start = await node.header_by_number(max(1, _present(settings.start_block)))
    first_trigger = settings.trigger_from_block
    if first_trigger is None:
        first_trigger = first_block_to_trigger({report.name: report.head for report in node.reports()})
    await pinning.pin_first_start(
        pool,
        pin,
        start=Block(number=start.number, hash=start.hash, parent_hash=start.parent_hash, timestamp=start.timestamp),
        first_trigger_block_number=first_trigger,
    )
    # Another starter may have been first: what is stored counts.
    return _present(await pinning.pinned(pool, pin))


def first_block_to_trigger(head_by_endpoint: Mapping[str, int | None]) -> int:
    """The block after the highest head that any endpoint knows: history is not what happened after the start.

    Raises:
        SettingsError: The heads are too far apart.  It is pinned for good: one word alone must not hold what follows.
    """
    heads = {name: head for name, head in head_by_endpoint.items() if head is not None}
    if max(heads.values()) - min(heads.values()) > _MOST_BLOCKS_APART:
        told = ", ".join(f"endpoint {name} is at block {head}" for name, head in heads.items())
        remedy = "take out the one that is wrong or far behind, or set BSKT_TRIGGER_FROM_BLOCK"
        raise SettingsError(
            [f"BSKT_RPC_URL: {told}, so this first start cannot tell from where on requests are new: {remedy}"]
        )
    return max(heads.values()) + 1


async def _indexers(
    settings: Settings,
    pool: Pool,
    node: Node,
    sources: Sources,
    pinned: pinning.Pinned,
    last_turn_at: dict[str, float],
    reached: Reached,
) -> tuple[Follower, Sweep, LateFactories]:
    def turning(name: str) -> Reached:
        """A commit is progress as well: one tick may be many of them."""

        def at_boundary(boundary: str) -> None:
            last_turn_at[name] = time.monotonic()
            reached(boundary)

        return at_boundary

    return (
        _follower(settings, pool, node, sources, pinned, turning(INDEXER)),
        await _sweep(settings, pool, node, sources, pinned, turning(SWEEP)),
        _late_factories(settings, pool, node, sources, pinned, turning(LATE_FACTORIES)),
    )


def _follower(
    settings: Settings, pool: Pool, node: Node, sources: Sources, pinned: pinning.Pinned, reached: Reached
) -> Follower:
    return Follower(
        pool=pool,
        node=node,
        sources=sources,
        rules=_rules(settings, sources, pinned),
        trigger_finality=_finality(settings.trigger_finality),
        complete_finality=_finality(settings.complete_finality),
        max_range_blocks=settings.max_log_range_blocks,
        reached=reached,
        finality_pause_seconds=min(_FINALITY_SECONDS, _FINALITY_POLLS * settings.poll_interval_seconds),
        most_unfinalized_seconds=settings.max_unfinalized_seconds,
    )


def examiner(settings: Settings, indexing: Indexing) -> Examiner:
    """Compares final rows with the chain, for a command."""
    return _examiner(settings, indexing.pool, indexing.node, indexing.sources)


def _examiner(settings: Settings, pool: Pool, node: Node, sources: Sources) -> Examiner:
    return Examiner(
        pool=pool,
        node=node,
        sources=sources,
        trigger_finality=_finality(settings.trigger_finality),
        complete_finality=_finality(settings.complete_finality),
        max_range_blocks=settings.max_log_range_blocks,
    )


async def _sweep(
    settings: Settings, pool: Pool, node: Node, sources: Sources, pinned: pinning.Pinned, reached: Reached
) -> Sweep:
    """Its own part, so that it never holds the follower up."""
    return Sweep(
        pool=pool,
        chain_id=sources.chain_id,
        examiner=_examiner(settings, pool, node, sources),
        rules=_rules(settings, sources, pinned),
        halted_at=await pinning.halted_at(pool, sources.chain_id),
        reached=reached,
    )


async def _declare(pool: Pool, node: Node, settings: Settings, sources: Sources) -> None:
    """Compare the factories beside the first one with the rows."""
    declared = []
    async with node.session() as session:
        for factory in settings.more_factories:
            code_hash = await session.node.code_hash(factory.address)
            if code_hash is None:
                raise DatastoreUnsuitable(
                    f"BSKT_MORE_FACTORIES: no contract is at 0x{factory.address.hex()} on chain {sources.chain_id}"
                )
            declared.append(
                Factory(address=factory.address, code_hash=code_hash, start_block_number=factory.start_block)
            )
    await factories.declare(pool, sources.chain_id, declared)


def _late_factories(
    settings: Settings, pool: Pool, node: Node, sources: Sources, pinned: pinning.Pinned, reached: Reached
) -> LateFactories:
    """Its own part as well: the others are followed while the history of a new one is read."""
    return LateFactories(
        pool=pool,
        node=node,
        sources=sources,
        rules=_rules(settings, sources, pinned),
        trigger_finality=_finality(settings.trigger_finality),
        complete_finality=_finality(settings.complete_finality),
        max_range_blocks=settings.max_log_range_blocks,
        reached=reached,
    )


def _rules(settings: Settings, sources: Sources, pinned: pinning.Pinned) -> Rules:
    minimum = settings.min_mint_tokens
    return Rules(
        policy=Policy(
            max_mint_wei=settings.max_mint_wei,
            min_mint_wei=None if minimum is None else wei(minimum),
            max_drift_wei=wei(settings.max_drift_tokens),
            forbidden_beneficiaries=sources.factories | {sources.forwarder},
        ),
        contest=settings.contested_reference == "review",
        first_trigger_block_number=pinned.first_trigger_block_number,
        completion_deadline_seconds=settings.completion_deadline_seconds,
        nonce_of=lambda identity, generation: derive_nonce(sources.secret, identity, generation),
    )


def _finality(finality: Finality) -> FinalityRule:
    return FinalityRule(tag=finality.kind, depth=finality.depth_blocks or 0)


def _invocation(
    settings: Settings, pool: Pool, node: Node, reached: Reached, show: Callable[[str], None]
) -> Invocator | DryRun:
    """What invokes in the configured mode."""
    chain_id = _present(settings.chain_id)
    if settings.cre_mode == "dry-run":
        return DryRun(
            pool=pool,
            chain_id=chain_id,
            workflow_ids=settings.cre_workflow,
            currency=settings.currency,
            show=show,
            only_allowed=settings.only_allowed,
        )
    simulated = settings.cre_mode == "simulate"
    gateway = _simulation(settings) if simulated else CreGateway.at(_present(settings.cre_gateway_url))
    terms = Terms(
        mode=claims.SIMULATE if simulated else claims.GATEWAY,
        gateway_url="cre workflow simulate" if simulated else _present(settings.cre_gateway_url),
        workflow_ids=(SIMULATED_WORKFLOW,) if simulated else settings.cre_workflow,
        currency=settings.currency,
        pacing=Pacing(
            seconds_per_trigger=settings.cre_seconds_per_trigger,
            burst=settings.cre_burst,
            max_in_flight=settings.cre_max_in_flight,
            requester_max_in_flight=settings.requester_share,
            basket_max_in_flight=settings.basket_share,
            unserved_max_in_flight=settings.unserved_share,
            only_allowed=settings.only_allowed,
            daily_cap_wei=settings.daily_cap_wei,
        ),
        timeout_seconds=SIMULATION_SECONDS if simulated else settings.cre_timeout_seconds,
        lease_seconds=settings.claim_lease_seconds,
        completion_deadline_seconds=settings.completion_deadline_seconds,
        give_up_seconds=settings.give_up_seconds,
        resend_after_seconds=settings.resend_after_seconds,
        max_mint_wei=settings.max_mint_wei,
    )
    return Invocator(
        pool=pool,
        chain_id=chain_id,
        gateway=gateway,
        signer=None if simulated else Signer.from_text(_present(settings.cre_signer_key).get_secret_value()),
        terms=terms,
        clock=time.time,  # noqa: TID251 - a token's iat is wall-clock time; nothing else uses it
        look_at=lambda token, consumer: read_contracts(node, token=token, consumer=consumer),
        is_witnessed=lambda row: is_witnessed(node, row),
        reached=reached,
    )


def _simulation(settings: Settings) -> CreSimulation:
    return CreSimulation(
        command=CreCommand(
            executable=settings.cre_command,
            project_root=_present(settings.cre_project_dir),
            workflow_folder=_present(settings.cre_workflow_folder),
            target=_present(settings.cre_target),
            environment=cre_environment(settings),
        )
    )


def _ear(dsn: str, chain_id: int, part: Part) -> Companion:
    """Wake the invocator when the indexer confirmed a request: it only shortens the pause."""

    def heard(told: str) -> None:
        if told == str(chain_id):
            part.wake.set()

    return Companion(
        name="listener",
        run=lambda: listening.listen(dsn, CONFIRMED_CHANNEL, heard=heard, wait=wait),
        forgives=(DatastoreUnavailable,),
    )


def _halting(
    name: str, work: Callable[[], Awaitable[bool]], pool: Pool, chain_id: int
) -> Callable[[], Awaitable[bool]]:
    """A tick that leaves word in the database when it must not go on: every replica shows which part it was."""

    async def tick() -> bool:
        try:
            return await work()
        except FinalityViolated as error:
            await pinning.halt(pool, chain_id, f"{_SPOKEN[name]}: {error}")
            raise

    return tick


def _attempt_seconds(settings: Settings) -> float:
    """The longest that an attempt waits for CRE."""
    return {"gateway": settings.cre_timeout_seconds, "simulate": SIMULATION_SECONDS, "dry-run": 0.0}[settings.cre_mode]


def grace_seconds(settings: Settings) -> float:
    """After SIGTERM: the look at the contracts, the attempt, and its rows."""
    return max(GRACE_SECONDS, _RPC_TIMEOUT_SECONDS + _attempt_seconds(settings) + _CLOSE_SECONDS)


def longest_turn_seconds(settings: Settings) -> dict[str, float]:
    """By part: without a turn or a commit for so long, it is stuck."""
    return {
        INVOCATOR: max(http.LONGEST_TURN_SECONDS, grace_seconds(settings) + _RPC_TIMEOUT_SECONDS),
        **dict.fromkeys((INDEXER, SWEEP, LATE_FACTORIES), _INDEXING_TURN_SECONDS),
    }


def _server(
    settings: Settings,
    reader: Pool,
    chain_id: int,
    supervisor: Supervisor,
    *,
    node: Node,
    troubles: Troubles,
    rpc: RpcMetrics,
) -> Companion:
    app = http.application(
        chain_id=chain_id,
        read=lambda: status.snapshot(reader, chain_id),
        count=lambda: tally.read(reader, chain_id),
        last_turn_at=supervisor.last_turn_at,
        halted=supervisor.halted,
        clock=time.monotonic,
        look=lambda: status.attention(reader, chain_id),
        failing=supervisor.failing,
        endpoints=node.reports,
        troubles=troubles,
        measured=(rpc.registry,),
        longest_turn_seconds=longest_turn_seconds(settings),
    )
    listen = settings.listen
    return Companion(name="http", run=lambda: http.serve(app, host=listen.host, port=listen.port))


def _troubles(node: Node, follower: Follower, sweep: Sweep, late: LateFactories) -> Troubles:
    return lambda: (*node.troubles(), *follower.troubles(), *sweep.troubles(), *late.troubles())


def _probing(settings: Settings, node: Node) -> list[Part]:
    """Looks at the endpoints that nobody asks; a single one is asked all the time."""
    if len(settings.rpc_url) < 2:  # noqa: PLR2004 - one endpoint
        return []
    return [Part(name="endpoints", tick=node.probe, pause_seconds=_PROBE_PAUSE_SECONDS, wake=asyncio.Event())]


def _listening(settings: Settings, indexer: Part) -> list[Companion]:
    """Wakes the indexer at a new head; it never needs that (hard case 29)."""
    if settings.ws_url is None:
        return []
    url = settings.ws_url.get_secret_value()
    return [
        Companion(
            name="heads",
            run=lambda: hear_heads(url, wake=indexer.wake.set, clock=time.monotonic),
            forgives=(NodeUnavailable,),
        )
    ]


def _part(name: str, tick: Callable[[], Awaitable[bool]], settings: Settings) -> Part:
    return Part(
        name=name,
        tick=tick,
        pause_seconds=settings.poll_interval_seconds,
        wake=asyncio.Event(),
        forgives=(DatastoreUnavailable, NodeUnavailable, RangeRefused, BlockUnknown, BlockMisplaced),
        # Which endpoint may be asked again, and when, is the node's own to know.
        hurries_after=(DatastoreUnavailable, NodeUnavailable),
        halts_on=(FinalityViolated,),
    )


def _present(value: T | None) -> T:
    """A setting that ``require_chain`` or ``require_invocator`` found present."""
    if value is None:
        raise AssertionError("the settings were checked before")
    return value
