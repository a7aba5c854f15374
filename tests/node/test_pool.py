"""Several endpoints: who is asked, when another one takes over, and when the first one gets its work back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from eth_hash.auto import keccak

from node.endpoint import RpcEndpoint
from node.errors import (
    BlockUnknown,
    BudgetSpent,
    ChainMismatch,
    EndpointChanged,
    EndpointLags,
    HistoryPruned,
    NodeUnavailable,
)
from node.health import CIRCUIT_OPENS_AT, PROBES_TO_RETURN, EndpointState
from node.identity import ChainIdentity
from node.inconsistency import Inconsistency
from node.node import Node, Session
from node.pool import EndpointPool, Told
from node.watchdog import Limits
from tests.node.rpc_stand_in import (
    CHAIN_ID,
    CODE,
    FACTORY,
    Chain,
    RpcError,
    RpcStandIn,
    genesis,
    huge,
    hung,
    mined,
    refused,
    said,
)

CHAIN = mined(genesis(), *[[]] * 10)
LONGER = mined(CHAIN, [], [])
IDENTITY = ChainIdentity(
    chain_id=CHAIN_ID, genesis_hash=CHAIN[0].hash, factory_address=FACTORY, factory_code_hash=keccak(CODE)
)
ALIVE, LAGGING, LIMITED, UNREACHABLE, WRONG = (
    EndpointState.ALIVE,
    EndpointState.LAGGING,
    EndpointState.RATE_LIMITED,
    EndpointState.UNREACHABLE,
    EndpointState.WRONG_CHAIN,
)


@dataclass(kw_only=True)
class World:
    """Servers, the node that asks them, and a clock that moves only by hand."""

    servers: tuple[RpcStandIn, ...]
    node: Node
    pool: EndpointPool
    now: list[float]
    inconsistencies: Counter[Inconsistency]
    failovers: list[None] = field(default_factory=list)

    @property
    def states(self) -> list[EndpointState]:
        return [report.state for report in self.node.reports()]

    @property
    def exchanges(self) -> list[int]:
        return [server.exchanges for server in self.servers]

    def forget(self) -> None:
        for server in self.servers:
            server.forget()

    async def tick(self, reaching: int = 0) -> str:
        """What a follower does, and the endpoint that it asked."""
        async with self.node.session(reaching=reaching) as session:
            return session.node.endpoint_name

    async def ask_in_session(self, question: Callable[[Session], Awaitable[object]]) -> object:
        async with self.node.session() as session:
            return await question(session)

    async def probe(self, times: int = PROBES_TO_RETURN) -> None:
        """Let enough time pass for each endpoint in trouble to be looked at so many times."""
        for _ in range(times):
            self.now[0] += 400
            while await self.node.probe():
                pass


@asynccontextmanager
async def world(
    *servers: RpcStandIn,
    identity: ChainIdentity | None = IDENTITY,
    requests_per_second: float | None = None,
    limits: Limits | None = None,
    timeout_seconds: float = 30.0,
) -> AsyncIterator[World]:
    now, failovers = [1_000.0], list[None]()
    inconsistencies: Counter[Inconsistency] = Counter()
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.running())
        pool = EndpointPool(
            [
                RpcEndpoint(
                    str(place),
                    server.url,
                    request_timeout_seconds=timeout_seconds,
                    max_answer_bytes=1_000_000,
                    observe=lambda *_: None,
                    clock=lambda: now[0],
                )
                for place, server in enumerate(servers)
            ],
            requests_per_second=requests_per_second,
            limits=limits,
            told=Told(
                inconsistency=lambda kind: inconsistencies.update([kind]), failover=lambda: failovers.append(None)
            ),
            clock=lambda: now[0],
            chance=lambda: 0.5,
        )
        node = Node(pool)
        stack.push_async_callback(node.close)
        if identity is not None:
            node.expect(identity)
        yield World(
            servers=servers, node=node, pool=pool, now=now, inconsistencies=inconsistencies, failovers=failovers
        )


def pair(first: Chain = CHAIN, second: Chain = CHAIN) -> tuple[RpcStandIn, RpcStandIn]:
    return RpcStandIn(chain=first), RpcStandIn(chain=second)


async def test_the_preferred_endpoint_is_asked_and_the_other_one_left_alone() -> None:
    """Hard case 26: also while the other one is ahead."""
    async with world(*pair(CHAIN, LONGER)) as w:
        assert [await w.tick(10) for _ in range(3)] == ["0", "0", "0"]
        assert w.servers[1].exchanges == 0
        assert (w.failovers, w.inconsistencies) == ([], Counter())


@pytest.mark.parametrize(
    ("interfere", "state"),
    [
        (hung, UNREACHABLE),
        (huge, UNREACHABLE),
        (said("<html>captive portal</html>"), UNREACHABLE),
        (refused(500, text="<html>oops</html>"), UNREACHABLE),
        (refused(401), UNREACHABLE),
        (refused(302, {"Location": "http://127.0.0.1:1/"}), UNREACHABLE),
        (refused(429), LIMITED),
        (refused(429, {"Retry-After": "7"}), LIMITED),
        (refused(503, {"Retry-After": "7"}), LIMITED),
    ],
)
async def test_whatever_goes_wrong_with_one_endpoint_the_next_one_answers_at_once(
    interfere: Callable[..., Awaitable[object]], state: EndpointState
) -> None:
    """Hard cases 24, 28, 30."""
    first, second = pair()
    async with world(first, second, timeout_seconds=1.0) as w:
        assert await w.tick() == "0"
        first.interfere = interfere  # type: ignore[assignment]  # each is one
        assert await w.tick() == "1"
        assert w.states == [state, ALIVE]
        assert (w.node.reports()[0].failovers, len(w.failovers)) == (1, 1)
        asked = first.exchanges
        assert [await w.tick() for _ in range(3)] == ["1", "1", "1"]
        assert first.exchanges == asked


async def test_a_server_that_dies_is_left_and_gets_its_work_back_after_it_has_proven_itself() -> None:
    first, second = pair()
    async with world(first, second) as w:
        assert await w.tick() == "0"
        first.interfere = refused(502)
        assert await w.tick() == "1"
        await w.probe(1)
        assert w.states == [UNREACHABLE, ALIVE]
        first.interfere = None
        await w.probe(PROBES_TO_RETURN - 1)
        assert w.states == [UNREACHABLE, ALIVE]
        assert await w.tick() == "1"
        await w.probe(1)
        assert w.states == [ALIVE, ALIVE]
        assert await w.tick() == "0"
        assert len(w.failovers) == 1  # to return is not to fail over


async def test_an_idle_endpoint_is_looked_at_now_and_then_and_one_at_work_is_not() -> None:
    async with world(*pair()) as w:
        await w.tick()
        assert not await w.node.probe()
        assert w.states == [ALIVE, ALIVE]
        w.forget()
        assert not await w.node.probe()
        assert w.exchanges == [0, 0]
        w.now[0] += 61
        await w.tick()
        w.forget()
        await w.node.probe()
        assert w.exchanges == [0, 1]


async def test_the_circuit_of_a_single_endpoint_opens_and_closes() -> None:
    """Hard case 24."""
    server = RpcStandIn(chain=CHAIN, interfere=refused(502))
    async with world(server, identity=None) as w:
        for _ in range(CIRCUIT_OPENS_AT):
            with pytest.raises(NodeUnavailable):
                await w.tick()
        w.forget()
        with pytest.raises(NodeUnavailable, match="none may be asked now: 0 unreachable") as caught:
            await w.tick()
        assert w.exchanges == [0]
        assert caught.value.retry_after_seconds is not None
        w.now[0] += caught.value.retry_after_seconds
        server.interfere = None
        assert await w.tick() == "0"
        assert w.states == [ALIVE]


async def test_a_retry_after_is_kept_to_the_second() -> None:
    """Hard case 24."""
    server = RpcStandIn(chain=CHAIN)
    async with world(server) as w:
        await w.tick()
        server.interfere = refused(429, {"Retry-After": "7"})
        with pytest.raises(NodeUnavailable):
            await w.tick()
        w.forget()
        server.interfere = None
        for seconds in (0.0, 6.9):
            w.now[0] = 1_000.0 + seconds
            with pytest.raises(NodeUnavailable) as caught:
                await w.tick()
            assert caught.value.retry_after_seconds == pytest.approx(7 - seconds)
        assert w.exchanges == [0]
        w.now[0] = 1_007.0
        assert await w.tick() == "0"


async def test_a_spent_budget_sends_the_work_to_the_next_endpoint() -> None:
    """Hard case 24."""
    async with world(*pair(), requests_per_second=1.0) as w:
        assert [await w.tick() for _ in range(3)] == ["0", "0", "1"]
        assert w.states == [ALIVE, ALIVE]
        assert w.servers[0].seen["eth_getBlockByNumber"] == 3  # with genesis
        await w.tick()
        with pytest.raises(BudgetSpent) as caught:
            await w.tick()
        # Nobody is to blame, and nobody need be told.
        assert (w.states, w.node.troubles()) == ([ALIVE, ALIVE], ())
        w.now[0] += caught.value.retry_after_seconds or 0.0
        assert await w.tick() == "0"


async def test_a_session_is_finished_though_it_overdraws_the_budget_and_the_debt_is_waited_for() -> None:
    """Hard case 24: given up half-way it would be begun again, and ask the same, for ever."""
    async with world(RpcStandIn(chain=CHAIN), requests_per_second=1.0) as w:
        await w.tick()
        w.now[0] += 10.0
        async with w.node.session() as session:
            for _ in range(3):
                await session.node.headers_by_number([1, 2, 3, 4])
        with pytest.raises(BudgetSpent) as caught:
            await w.tick()
        assert caught.value.retry_after_seconds == pytest.approx(12.0)  # 2 saved up, 13 asked, 1 for the next
        w.now[0] += 12.0
        assert await w.tick() == "0"


async def test_a_lagging_endpoint_is_not_asked_while_another_is_ahead() -> None:
    """Hard cases 7, 26."""
    first, second = pair(CHAIN, LONGER)
    async with world(first, second) as w:
        assert await w.tick(12) == "1"
        assert w.states == [LAGGING, ALIVE]
        w.forget()
        assert await w.tick(12) == "1"
        assert first.exchanges == 0
        first.chain = LONGER
        await w.probe()
        assert await w.tick(12) == "0"


async def test_if_all_lag_the_highest_is_asked_because_a_chain_can_become_shorter() -> None:
    """Hard case 6."""
    async with world(*pair(CHAIN, LONGER)) as w:
        assert await w.tick(13) == "1"
        assert await w.tick(13) == "1"
        assert w.states[0] is LAGGING


async def test_a_probed_endpoint_that_is_far_behind_does_not_get_its_work_back() -> None:
    first, second = pair(CHAIN, mined(CHAIN, *[[]] * 20))
    async with world(first, second) as w:
        first.interfere = refused(502)
        assert await w.tick() == "1"
        first.interfere = None
        await w.probe(2 * PROBES_TO_RETURN)
        assert w.states == [LAGGING, ALIVE]


async def test_a_head_that_goes_back_is_counted_and_nothing_else() -> None:
    """Hard case 7."""
    server = RpcStandIn(chain=LONGER)
    async with world(server) as w:
        await w.tick(12)
        server.chain = CHAIN
        assert await w.tick(12) == "0"
        assert w.inconsistencies == {Inconsistency.HEAD_BACKWARDS: 1}
        assert w.states == [ALIVE]


async def test_a_head_that_stands_still_is_compared_with_the_others_over_a_new_connection() -> None:
    """Hard case 28."""
    first, second = pair()
    async with world(first, second, limits=Limits(head_seconds=60)) as w:
        assert await w.tick(10) == "0"
        second.chain = LONGER
        w.now[0] += 60
        assert await w.tick(10) == "0"
        assert len(first.connections) == 1
        w.now[0] += 1
        assert await w.tick(10) == "1"
        assert w.states == [LAGGING, ALIVE]
        assert w.node.troubles() == ()
        first.chain = LONGER
        await w.probe()
        assert len(first.connections) == 2


async def test_a_chain_that_stands_still_everywhere_moves_no_work_and_is_said() -> None:
    """Hard cases 28, 120."""
    async with world(*pair(), limits=Limits(head_seconds=60)) as w:
        assert await w.tick(10) == "0"
        w.now[0] += 61
        assert await w.tick(10) == "0"
        (sentence,) = w.node.troubles()
        assert "no new head after block 10 for 61 s" in sentence
        w.forget()
        assert await w.tick(10) == "0"
        assert w.exchanges[1] == 0  # asked once in the limit's time, not at every tick
        assert w.states[0] is ALIVE


@pytest.mark.parametrize(
    "other",
    [
        RpcStandIn(chain=CHAIN, chain_id=1),
        RpcStandIn(chain=mined(genesis("another"), *[[]] * 10)),
        RpcStandIn(chain=CHAIN, code=b"\x60\x02"),
    ],
    ids=["chain id", "genesis", "factory"],
)
async def test_an_endpoint_of_another_chain_is_never_used_and_looked_at_rarely(other: RpcStandIn) -> None:
    """Hard cases 14, 27."""
    async with world(other, RpcStandIn(chain=CHAIN)) as w:
        assert await w.tick() == "1"
        assert w.states == [WRONG, ALIVE]
        assert w.inconsistencies == {Inconsistency.OTHER_CHAIN: 1}
        w.forget()
        w.now[0] += 100
        assert await w.tick() == "1"
        await w.node.probe()
        assert other.exchanges == 0
        w.now[0] += 300
        await w.probe(5)
        assert w.states == [WRONG, ALIVE]
        assert 1 <= other.seen["eth_chainId"] <= 5
        assert other.seen["eth_getLogs"] == 0


async def test_what_a_new_connection_says_is_not_believed_before_it_has_shown_its_chain() -> None:
    """Hard case 27: the server behind the address was replaced."""
    server = RpcStandIn(chain=CHAIN)
    async with world(server) as w:
        await w.tick()
        w.forget()
        await w.tick()
        assert w.exchanges == [1]  # the connection has shown its chain before
        server.drop_connections()
        server.chain = mined(genesis("another"), *[[]] * 99)
        with pytest.raises(NodeUnavailable, match="genesis hash"):
            await w.tick()
        assert w.states == [WRONG]
        assert w.node.troubles() == (f"node: no endpoint can be used: 0 wrong_chain ({w.node.reports()[0].reason})",)
        # The right one comes back: asked rarely, and believed as soon as it has shown its chain.
        server.chain = CHAIN
        w.now[0] += 301
        assert await w.tick() == "0"
        assert w.states == [ALIVE]


async def test_after_a_failure_the_chain_is_shown_again_even_over_the_same_connection() -> None:
    """Hard case 27: a proxy keeps our connection and puts another server behind it."""
    server = RpcStandIn(chain=CHAIN)
    async with world(server) as w:
        await w.tick()
        server.interfere = refused(502)
        with pytest.raises(NodeUnavailable, match="502"):
            await w.tick()
        server.interfere, server.chain = None, mined(genesis("another"), *[[]] * 99)
        with pytest.raises(NodeUnavailable, match="genesis hash"):
            await w.tick()
        assert len(server.connections) == 1


async def test_an_endpoint_that_has_no_factory_yet_lags_and_is_not_of_another_chain() -> None:
    async with world(RpcStandIn(chain=CHAIN, code=b""), RpcStandIn(chain=CHAIN)) as w:
        assert await w.tick() == "1"
        assert w.states == [LAGGING, ALIVE]


async def test_a_start_looks_at_every_endpoint_and_needs_one() -> None:
    down, other = RpcStandIn(chain=CHAIN, interfere=refused(502)), RpcStandIn(chain=CHAIN, chain_id=1)
    async with world(down, other, RpcStandIn(chain=CHAIN)) as w:
        await w.node.prove_all()
        assert w.states == [UNREACHABLE, WRONG, ALIVE]
        assert await w.tick() == "2"


async def test_a_start_without_a_right_endpoint_is_refused_and_one_without_any_answer_is_not_yet() -> None:
    """Hard case 14."""
    async with world(RpcStandIn(chain=CHAIN, chain_id=1), RpcStandIn(chain=CHAIN, interfere=refused(502))) as w:
        with pytest.raises(ChainMismatch, match="chain id is 1"):
            await w.node.prove_all()
    async with world(RpcStandIn(chain=CHAIN, interfere=refused(502))) as w:
        with pytest.raises(NodeUnavailable):
            await w.node.prove_all()


async def test_all_questions_of_a_session_go_to_one_endpoint() -> None:
    first, second = pair()
    async with world(first, second) as w:
        await w.tick()
        await w.node.probe()

        async def ask(session: Session) -> object:
            first.interfere = refused(502)
            w.forget()
            return await session.node.header_by_number(3)

        with pytest.raises(EndpointChanged):
            await w.ask_in_session(ask)
        assert w.exchanges == [1, 0]
        assert await w.tick() == "1"


async def test_a_session_that_fails_without_another_endpoint_says_why() -> None:
    server = RpcStandIn(chain=CHAIN)
    async with world(server) as w:

        async def ask(session: Session) -> object:
            server.interfere = refused(502)
            return await session.node.header_by_number(3)

        with pytest.raises(NodeUnavailable, match="502") as caught:
            await w.ask_in_session(ask)
        assert not isinstance(caught.value, EndpointChanged)


async def test_what_a_tick_finds_contradictory_is_the_endpoints_fault() -> None:
    async with world(*pair()) as w:
        await w.tick()
        await w.node.probe()
        with pytest.raises(EndpointChanged):
            async with w.node.session() as session:
                raise session.node.contradiction(Inconsistency.OTHER_BLOCK, "two answers do not fit")
        assert w.inconsistencies == {Inconsistency.OTHER_BLOCK: 1}
        assert w.states == [UNREACHABLE, ALIVE]
        with pytest.raises(NodeUnavailable):
            async with w.node.session() as session:
                raise EndpointLags(session.node.endpoint_name, "any", "too low")
        assert w.states == [UNREACHABLE, LAGGING]


async def test_an_error_of_ours_is_nobodys_fault() -> None:
    async with world(*pair()) as w:
        await w.tick()
        with pytest.raises(LookupError):
            async with w.node.session():
                raise LookupError
        assert w.states[0] is ALIVE


async def test_an_endpoint_that_keeps_announcing_blocks_that_it_does_not_know_lags() -> None:
    """Hard cases 21, 32: a proxy that remembers null."""
    first, second = pair()
    first.tampers["eth_getBlockByHash"] = lambda *_: None
    async with world(first, second) as w:
        for _ in range(3):
            assert w.states[0] is not LAGGING
            with pytest.raises(BlockUnknown):
                await w.ask_in_session(lambda session: session.node.header_by_hash(session.head.hash))
        assert await w.tick() == "1"
        assert w.states == [LAGGING, ALIVE]


async def test_a_question_outside_of_a_session_is_answered_by_the_first_endpoint_that_can() -> None:
    """Hard case 34: one endpoint has thrown the history away."""

    def pruned(params: list[object], result: object) -> object:
        if params[0] == "0x3":
            raise RpcError(4444, "pruned history unavailable")
        return result

    first, second = pair()
    first.tampers["eth_getBlockByNumber"] = pruned
    async with world(first, second) as w:
        assert await w.tick() == "0"
        assert (await w.node.header_by_number(3)).hash == CHAIN[3].hash
        assert w.exchanges[1] > 0
        # That says nothing about its tip.
        assert await w.tick() == "0"
        assert w.states == [ALIVE, ALIVE]
        assert w.failovers == []
        second.tampers["eth_getBlockByNumber"] = pruned
        with pytest.raises(HistoryPruned, match="block 3 "):
            await w.node.header_by_number(3)


async def test_a_session_about_old_blocks_goes_to_an_endpoint_that_keeps_them() -> None:
    """Hard case 34: one endpoint has thrown the history away, and is in order otherwise."""

    def pruned(params: list[object], result: object) -> object:
        if params[0] in {"0x2", "0x3"}:
            raise RpcError(4444, "pruned history unavailable")
        return result

    first, second = pair()
    first.tampers["eth_getBlockByNumber"] = pruned
    async with world(first, second) as w:

        async def asked_about(number: int) -> str:
            async with w.node.session(from_block=number) as session:
                assert (await session.node.header_by_number(number)).hash == CHAIN[number].hash
                return session.node.endpoint_name

        with pytest.raises(EndpointChanged, match="block 3 "):
            await asked_about(3)
        assert w.node.has_another("1", from_block=4)
        assert not w.node.has_another("1", from_block=3)
        assert [await asked_about(number) for number in (3, 2, 4)] == ["1", "1", "0"]
        assert w.states == [ALIVE, ALIVE]
        async with w.node.second_opinion(than="1", reaching=4, from_block=4) as session:
            assert session.node.endpoint_name == "0"
        async with w.node.second_opinion(than="1", reaching=4, from_block=3) as session:
            assert session.node.endpoint_name == "1"
        # None keeps them: that is what is told.
        second.tampers["eth_getBlockByNumber"] = pruned
        with pytest.raises(HistoryPruned, match="block 3 "):
            await asked_about(3)
        assert w.states == [ALIVE, ALIVE]


async def test_a_block_that_is_unknown_is_an_answer_and_no_trouble() -> None:
    async with world(*pair()) as w:
        for _ in range(5):
            with pytest.raises(BlockUnknown):
                await w.node.header_by_number(1_000)
        assert w.states[0] is ALIVE
        assert w.exchanges[1] == 0


async def test_finality_is_asked_in_one_exchange_and_its_contradictions_are_counted() -> None:
    """Hard case 33."""
    server = RpcStandIn(chain=CHAIN, finalized=5, safe=7)
    async with world(server) as w:
        async with w.node.session() as session:
            w.forget()
            tags = await session.node.finality(session.head)
        assert ((tags.finalized, tags.safe), w.exchanges) == ((5, 7), [1])
        server.finalized = 4
        async with w.node.session() as session:
            assert (await session.node.finality(session.head)).finalized == 4
        assert w.inconsistencies == {Inconsistency.FINALIZED_BACKWARDS: 1}
        above = LONGER[12].header()
        server.tampers["eth_getBlockByNumber"] = lambda params, result: above if params[0] == "finalized" else result
        with pytest.raises(NodeUnavailable, match="finalized block 12 or safe block 7 is above the head 10"):
            await w.ask_in_session(lambda session: session.node.finality(session.head))
        assert w.inconsistencies[Inconsistency.FINALITY_ABOVE_HEAD] == 1


async def test_finality_that_overtakes_a_head_asked_before_is_no_contradiction() -> None:
    server = RpcStandIn(chain=CHAIN)
    async with world(server) as w:
        async with w.node.session() as session:
            server.chain, server.finalized = LONGER, 12
            assert (await session.node.finality(session.head)).finalized == 12
        assert w.inconsistencies == Counter()


@pytest.mark.parametrize("error", [RpcError(-32602, "invalid argument"), RpcError(-39001, "safe block not found")])
async def test_a_chain_that_knows_only_one_of_the_tags_has_that_one(error: RpcError) -> None:
    """Hard case 33."""

    def tamper(params: list[object], result: object) -> object:
        if params[0] == "safe":
            raise error
        return result

    server = RpcStandIn(chain=CHAIN, finalized=5, tampers={"eth_getBlockByNumber": tamper})
    async with world(server) as w, w.node.session() as session:
        tags = await session.node.finality(session.head)
        assert (tags.finalized, tags.safe) == (5, -1)


async def test_a_report_shows_state_head_and_reason_and_no_url() -> None:
    """Hard case 110."""
    first, second = pair()
    async with world(first, second) as w:
        first.interfere = refused(500, text="x")
        await w.tick()
        one, two = w.node.reports()
        assert (one.name, one.state, one.head) == ("0", UNREACHABLE, None)
        assert (two.name, two.state, two.head, two.reason, two.failovers) == ("1", ALIVE, 10, None, 0)
        assert two.requests >= 1
        assert "127.0.0.1" not in repr(one)


async def test_questions_at_once_prove_a_new_connection_once() -> None:
    server = RpcStandIn(chain=CHAIN)
    async with world(server) as w:
        await asyncio.gather(*(w.node.header_by_number(number) for number in range(8)))
        assert server.seen["eth_chainId"] <= 8
        server.forget()
        await asyncio.gather(*(w.node.header_by_number(number) for number in range(8)))
        assert server.seen["eth_chainId"] == 0


@pytest.mark.parametrize("needs_finalized", [True, False])
async def test_a_finalized_block_that_no_endpoint_knows_is_said_where_something_waits_for_it(
    needs_finalized: bool,
) -> None:
    def unknown(params: list[object], result: object) -> object:
        if params[0] in {"finalized", "safe"}:
            raise RpcError(-32602, "")
        return result

    async with world(*pair(), limits=Limits(needs_finalized=needs_finalized)) as w:
        for each in w.servers:
            each.tampers["eth_getBlockByNumber"] = unknown
        await w.node.prove_all()
        said = "node: no endpoint knows the finalized block"
        assert any(said in trouble for trouble in w.node.troubles()) is needs_finalized
        del w.servers[1].tampers["eth_getBlockByNumber"]
        await w.node.prove_all()
        assert not any(said in trouble for trouble in w.node.troubles())
