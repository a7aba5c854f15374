"""Make the daemon out of its settings: pools, node, indexer, invocator, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

import structlog

from datastore import pinning, schema, status
from datastore.claims import Pacing
from datastore.connection import Pool, Role, check_server, open_pool
from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable, FinalityViolated
from datastore.following import Rules
from datastore.identity import secret_check_value
from datastore.rows import Block
from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.follower import FinalityRule, Follower
from indexer.observation import Sources
from indexer.policy import Policy
from invocator.cre_gateway import CreGateway
from invocator.invocation import Invocator, Terms
from invocator.signing import Signer
from node.endpoint import RpcEndpoint
from node.errors import BlockUnknown, NodeUnavailable, RangeRefused
from node.heads import hear_heads
from node.identity import ChainIdentity
from node.node import Node
from node.pool import EndpointPool, Told
from node.watchdog import Limits
from service import http, logs
from service.embedded_postgres import EmbeddedPostgres
from service.metrics import RpcMetrics
from service.settings import Finality, Settings, SettingsError, wei
from service.supervision import Companion, Part, Stop, Supervisor

log = structlog.get_logger(__name__)

INDEXER: Final = "indexer"
INVOCATOR: Final = "invocator"
PARTS: Final = (INDEXER, INVOCATOR)

_RPC_TIMEOUT_SECONDS: Final = 30.0
_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_SECRET_BYTES: Final = 32
_CLOSE_SECONDS: Final = 5.0
_PROBE_PAUSE_SECONDS: Final = 5.0
_FINALITY_POLLS: Final = 3  # finality moves slowly: it is asked at every third look at most,
_FINALITY_SECONDS: Final = 12.0  # and a new block may be looked at long before the next poll

T = TypeVar("T")

Reached: TypeAlias = Callable[[str], None]
Troubles: TypeAlias = Callable[[], tuple[str, ...]]


async def run(
    settings: Settings,
    *,
    parts: tuple[str, ...],
    stop: Stop,
    log_level: str = "info",
    log_format: Literal["text", "json"] = "text",
    reached: Reached = lambda _: None,
) -> int:
    """Run the daemon until it is asked to stop; the exit code.

    Args:
        settings: Checked here for what these parts need.
        parts: Of ``PARTS``.
        stop: Who may end it.
        log_level: The least level that is logged.
        log_format: For people or for machines.
        reached: Told each boundary around a commit or a call; tests end the process there.

    Raises:
        SettingsError, DatastoreUnsuitable, ChainMismatch: Do not run; the message has the remedy.
        NodeUnavailable, DatastoreUnavailable: Not now; start again.
    """
    logs.configure(level=log_level, fmt=log_format, secrets=settings.secret_texts())
    settings.require_chain()
    settings.require_invocator()
    _require_supported(settings)
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
        await check_server(pool)
        sources = _sources(settings, secret)
        pinned = await _pin(pool, node, settings, sources)
        running: list[Part] = []
        companions: list[Companion] = []
        troubles: Troubles = tuple
        if INDEXER in parts:
            follower = _follower(settings, pool, node, sources, pinned, reached)
            indexer = _part(INDEXER, _halting(follower, pool, sources.chain_id), settings)
            running += [indexer, *_probing(settings, node)]
            companions += _listening(settings, indexer)
            troubles = _troubles(node, follower)
            await pinning.clear_halt(pool, sources.chain_id)
        if INVOCATOR in parts:
            invocator = _invocator(settings, await _opened(stack, dsn, Role.INVOCATOR), reached)
            running.append(_part(INVOCATOR, invocator.tick, settings))
        log.info("daemon.started", parts=[part.name for part in running], chain_id=settings.chain_id)
        reader = await _opened(stack, dsn, Role.READER)
        supervisor = Supervisor(running, companions, stop=stop)
        companions.append(
            _server(settings, reader, sources.chain_id, supervisor, node=node, troubles=troubles, rpc=rpc_metrics)
        )
        code = await supervisor.run()
        log.info("daemon.stopped", exit_code=code)
        return code


def _require_supported(settings: Settings) -> None:
    problems = []
    if settings.cre_mode != "gateway":
        problems.append(f"BSKT_CRE_MODE={settings.cre_mode} is not wired into `bskt run` yet; use gateway")
    if settings.daily_cap_tokens is not None:
        problems.append("BSKT_DAILY_CAP_TOKENS is not enforced yet; leave it unset, so that nobody relies on it")
    if settings.resend_after_seconds is not None:
        problems.append("BSKT_RESEND_AFTER_SECONDS is not carried out yet; leave it unset")
    if problems:
        raise SettingsError(problems)


@asynccontextmanager
async def _datastore(settings: Settings) -> AsyncIterator[tuple[str, bytes]]:
    """The database's DSN and the instance secret; without a configured database, an embedded one of our own."""
    if settings.database_url is not None:
        dsn = settings.database_url.get_secret_value()
        await schema.check(dsn)
        if settings.instance_secret is None:
            raise SettingsError(["BSKT_INSTANCE_SECRET is needed with BSKT_DATABASE_URL"])
        yield dsn, settings.instance_secret.get_secret_value()
        return
    async with EmbeddedPostgres(settings.data_dir / "postgres") as postgres:
        log.info("datastore.embedded", sentence=postgres.sentence)
        await schema.apply(postgres.dsn)
        configured = settings.instance_secret
        yield postgres.dsn, configured.get_secret_value() if configured else _kept_secret(settings.data_dir)


def _kept_secret(data_dir: Path) -> bytes:
    """The secret beside the embedded database, made at the first start.

    Written under another name and renamed: a crash leaves either no secret or a whole one.
    """
    path = data_dir / "instance-secret"
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


def _node(settings: Settings, metrics: RpcMetrics) -> Node:
    return Node(
        EndpointPool(
            [
                RpcEndpoint(
                    str(number),
                    url.get_secret_value(),
                    request_timeout_seconds=_RPC_TIMEOUT_SECONDS,
                    max_answer_bytes=_MAX_ANSWER_BYTES,
                    observe=metrics.observe,
                )
                for number, url in enumerate(settings.rpc_url)
            ],
            requests_per_second=settings.rpc_requests_per_second,
            limits=Limits(
                head_seconds=settings.head_timeout_seconds, finality_seconds=settings.finality_timeout_seconds
            ),
            told=Told(inconsistency=metrics.inconsistent, failover=metrics.failed_over),
        )
    )


def _sources(settings: Settings, secret: bytes) -> Sources:
    return Sources(
        chain_id=_present(settings.chain_id),
        factory=_present(settings.factory_address),
        forwarder=_present(settings.forwarder_address),
        catalog=EventCatalog(load_abis(settings.abi_dir or _packaged_abis())),
        secret=secret,
    )


def _packaged_abis() -> Path:
    here = Path(__file__).parents[1]
    installed = here / "indexer" / "abi"
    return installed if installed.is_dir() else here / "abi"


async def _pin(pool: Pool, node: Node, settings: Settings, sources: Sources) -> pinning.Pinned:
    """Check the chain against what the first start pinned; be that first start if there was none."""
    known = await pinning.stored(pool, sources.chain_id)
    if known is None or known.factory_address != sources.factory:  # another factory is refused below, with the reason
        node.expect(ChainIdentity(chain_id=sources.chain_id, genesis_hash=known.genesis_hash if known else None))
    else:
        node.expect(_identity(known))
    await node.prove_all()
    async with node.session() as session:
        pin, pinned = await _pinned(pool, session.node, settings, sources)
    # Endpoints that were away at this start have to show all of it when they come back.
    node.expect(_identity(pin))
    return pinned


def _identity(pin: pinning.Pin) -> ChainIdentity:
    return ChainIdentity(
        chain_id=pin.chain_id,
        genesis_hash=pin.genesis_hash,
        factory_address=pin.factory_address,
        factory_code_hash=pin.factory_code_hash,
    )


async def _pinned(pool: Pool, node: Node, settings: Settings, sources: Sources) -> tuple[pinning.Pin, pinning.Pinned]:
    genesis_hash = await node.genesis_hash()
    code_hash = await node.code_hash(sources.factory)
    if code_hash is None:
        raise DatastoreUnsuitable(
            f"there is no contract at BSKT_FACTORY_ADDRESS 0x{sources.factory.hex()} on chain {sources.chain_id}"
        )
    pin = pinning.Pin(
        chain_id=sources.chain_id,
        genesis_hash=genesis_hash,
        factory_address=sources.factory,
        factory_code_hash=code_hash,
        forwarder_address=sources.forwarder,
        secret_check=secret_check_value(sources.secret),
    )
    if (pinned := await pinning.pinned(pool, pin)) is not None:
        return pin, pinned
    start = await node.header_by_number(max(1, _present(settings.start_block)))
    # The highest head that any endpoint knows: history is not what happened after the start.
    head_number = max(report.head for report in node.reports() if report.head is not None)
    first_trigger = head_number + 1 if settings.trigger_from_block is None else settings.trigger_from_block
    await pinning.pin_first_start(
        pool,
        pin,
        start=Block(number=start.number, hash=start.hash, parent_hash=start.parent_hash, timestamp=start.timestamp),
        first_trigger_block_number=first_trigger,
    )
    # Another starter may have been first: what is stored counts.
    return pin, _present(await pinning.pinned(pool, pin))


def _follower(
    settings: Settings, pool: Pool, node: Node, sources: Sources, pinned: pinning.Pinned, reached: Reached
) -> Follower:
    cap = settings.max_mint_tokens
    return Follower(
        pool=pool,
        node=node,
        sources=sources,
        rules=Rules(
            policy=Policy(
                max_mint_wei=None if cap is None else wei(cap),
                forbidden_beneficiaries=frozenset({sources.factory, sources.forwarder}),
            ),
            contest=settings.contested_reference == "review",
            first_trigger_block_number=pinned.first_trigger_block_number,
        ),
        trigger_finality=_finality(settings.trigger_finality),
        complete_finality=_finality(settings.complete_finality),
        max_range_blocks=settings.max_log_range_blocks,
        reached=reached,
        finality_pause_seconds=min(_FINALITY_SECONDS, _FINALITY_POLLS * settings.poll_interval_seconds),
    )


def _finality(finality: Finality) -> FinalityRule:
    return FinalityRule(tag=finality.kind, depth=finality.depth_blocks or 0)


def _invocator(settings: Settings, pool: Pool, reached: Reached) -> Invocator:
    url = _present(settings.cre_gateway_url)
    return Invocator(
        pool=pool,
        chain_id=_present(settings.chain_id),
        gateway=CreGateway.at(url),
        signer=Signer.from_text(_present(settings.cre_signer_key).get_secret_value()),
        terms=Terms(
            gateway_url=url,
            workflow_ids=settings.cre_workflow,
            currency=settings.currency,
            pacing=Pacing(
                seconds_per_trigger=settings.cre_seconds_per_trigger,
                burst=settings.cre_burst,
                max_in_flight=settings.cre_max_in_flight,
            ),
            timeout_seconds=settings.cre_timeout_seconds,
            lease_seconds=settings.claim_lease_seconds,
            completion_deadline_seconds=settings.completion_deadline_seconds,
            give_up_seconds=settings.give_up_seconds,
        ),
        clock=time.time,  # noqa: TID251 - a token's iat is wall-clock time; nothing else uses it
        reached=reached,
    )


def _halting(follower: Follower, pool: Pool, chain_id: int) -> Callable[[], Awaitable[bool]]:
    """The follower's tick, which leaves word in the database when it must not go on: every replica shows it."""

    async def tick() -> bool:
        try:
            return await follower.tick()
        except FinalityViolated as error:
            await pinning.halt(pool, chain_id, str(error))
            raise

    return tick


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
        last_turn_at=supervisor.last_turn_at,
        halted=supervisor.halted,
        clock=time.monotonic,
        endpoints=node.reports,
        troubles=troubles,
        counted=(rpc.registry,),
    )
    listen = settings.listen
    return Companion(name="http", run=lambda: http.serve(app, host=listen.host, port=listen.port))


def _troubles(node: Node, follower: Follower) -> Troubles:
    return lambda: (*node.troubles(), *follower.troubles())


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
        forgives=(DatastoreUnavailable, NodeUnavailable, RangeRefused, BlockUnknown),
        halts_on=(FinalityViolated,),
    )


def _present(value: T | None) -> T:
    """A setting that ``require_chain`` or ``require_invocator`` found present."""
    if value is None:
        raise AssertionError("the settings were checked before")
    return value
