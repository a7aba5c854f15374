"""The follower on endpoints that fail, lag, flip and lie, with a real database: nothing lost, nothing invented."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_hash.auto import keccak

from datastore.connection import Pool
from datastore.errors import FinalityViolated
from datastore.following import Rules
from datastore.identity import secret_check_value
from datastore.pinning import Pin, pin_first_start
from datastore.rows import Block
from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.follower import ALWAYS_INDEXED_BLOCKS, FORK_SEARCH_BLOCKS, FinalityRule, Follower
from indexer.observation import Sources
from indexer.policy import Policy
from indexer.sweep import Examiner, Sweep
from node.endpoint import RpcEndpoint
from node.errors import NodeUnavailable
from node.health import EndpointState
from node.identity import ChainIdentity
from node.inconsistency import Inconsistency
from node.node import Node
from node.pool import EndpointPool, Told
from tests.node.rpc_stand_in import (
    BLOCK_SECONDS,
    CHAIN_ID,
    CODE,
    FACTORY,
    Chain,
    Emitted,
    RpcError,
    RpcStandIn,
    genesis,
    hung,
    mined,
    refused,
)

CATALOG = EventCatalog(load_abis(Path(__file__).parents[2] / "abi"))
SECRET = b"a secret of this test, 32 bytes!"
TOKEN, CONSUMER, FORWARDER, USER, STRANGER = (bytes([n]) * 20 for n in (0x70, 0xC0, 0xF0, 0xA1, 0x99))
GENESIS = genesis()


def word(value: bytes) -> bytes:
    return value.rjust(32, b"\0")


BASKET = Emitted(
    address=FACTORY,
    topics=(CATALOG.basket_created_topic0, word(USER), word(USER), word(TOKEN)),
    data=encode(["address", "string", "string"], [CONSUMER, "Basket", "B"]),
)
NOISE = Emitted(address=STRANGER, topics=(b"\xdd" * 32,))


def request(name: str) -> Emitted:
    """A mint request; its name is its bank reference."""
    topic0 = keccak(b"MintRequested(address,address,uint256,bytes32)")
    return Emitted(
        address=TOKEN,
        topics=(topic0, word(USER), word(USER), name.encode().ljust(32, b"\0")),
        data=(10**18).to_bytes(32, "big"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    servers: tuple[RpcStandIn, ...]
    node: Node
    follower: Follower
    sweep: Sweep
    pool: Pool
    now: list[float]
    kinds: Counter[Inconsistency]

    @property
    def states(self) -> list[EndpointState]:
        return [report.state for report in self.node.reports()]

    @property
    def exchanges(self) -> int:
        return sum(server.exchanges for server in self.servers)

    def serve(self, chain: Chain, *, finalized: int | None = None) -> None:
        """Every server has this chain."""
        for server in self.servers:
            server.chain = chain
            if finalized is not None:
                server.finalized = server.safe = finalized

    def forget(self) -> None:
        for server in self.servers:
            server.forget()

    async def follow(self) -> None:
        while await self.follower.tick():
            pass

    async def follow_forgiving(self) -> None:
        """As the supervisor does: an error costs time, and then it goes on."""
        for _ in range(3):
            try:
                while await self.follower.tick():
                    pass
            except NodeUnavailable:
                pass
            self.now[0] += 61

    async def probe(self) -> None:
        for _ in range(3):
            self.now[0] += 400
            while await self.node.probe():
                pass

    async def cursor(self) -> tuple[int, bytes]:
        row = await self.pool.fetchrow("SELECT block_number, block_hash FROM cursor")
        assert row is not None
        return row["block_number"], row["block_hash"]

    async def is_at(self, chain: Chain) -> bool:
        return await self.cursor() == (chain[-1].number, chain[-1].hash)

    async def requests(self) -> list[tuple[str, str]]:
        """Bank reference and chain status of each row, in the order of recording."""
        rows = await self.pool.fetch("SELECT bank_reference, chain_status FROM mint_request ORDER BY id")
        return [(row["bank_reference"].rstrip(b"\0").decode(), row["chain_status"]) for row in rows]

    async def reorgs(self) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM reorg"))


@asynccontextmanager
async def following(
    indexer_pool: Pool,
    *servers: RpcStandIn,
    finality_pause_seconds: float = 0.0,
    most_unfinalized_seconds: float = 1_000_000,
    most_unfinalized_blocks: int = 100,
    deepest_fork_blocks: int = 100,
    timeout_seconds: float = 30.0,
    requests_per_second: float | None = None,
) -> AsyncIterator[World]:
    now, kinds = [1_000.0], Counter[Inconsistency]()
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server.running())
        endpoints = [
            RpcEndpoint(
                str(place),
                server.url,
                request_timeout_seconds=timeout_seconds,
                max_answer_bytes=10_000_000,
                observe=lambda *_: None,
                clock=lambda: now[0],
            )
            for place, server in enumerate(servers)
        ]
        node = Node(
            EndpointPool(
                endpoints,
                requests_per_second=requests_per_second,
                told=Told(inconsistency=lambda kind: kinds.update([kind])),
                clock=lambda: now[0],
                chance=lambda: 0.5,
            )
        )
        stack.push_async_callback(node.close)
        node.expect(
            ChainIdentity(
                chain_id=CHAIN_ID,
                genesis_hash=GENESIS[0].hash,
                factory_address=FACTORY,
                factory_code_hash=keccak(CODE),
            )
        )
        first = servers[0].chain[1]
        await pin_first_start(
            indexer_pool,
            Pin(
                chain_id=CHAIN_ID,
                genesis_hash=GENESIS[0].hash,
                factory_address=FACTORY,
                factory_code_hash=keccak(CODE),
                forwarder_address=FORWARDER,
                secret_check=secret_check_value(SECRET),
            ),
            start=Block(number=1, hash=first.hash, parent_hash=first.parent_hash, timestamp=1),
            first_trigger_block_number=0,
        )
        sources = Sources(chain_id=CHAIN_ID, factory=FACTORY, forwarder=FORWARDER, catalog=CATALOG, secret=SECRET)
        rules = Rules(policy=Policy(max_mint_wei=None), contest=True, first_trigger_block_number=0)
        follower = Follower(
            pool=indexer_pool,
            node=node,
            sources=sources,
            rules=rules,
            trigger_finality=FinalityRule(tag="finalized"),
            complete_finality=FinalityRule(tag="finalized"),
            max_range_blocks=100,
            finality_pause_seconds=finality_pause_seconds,
            most_unfinalized_seconds=most_unfinalized_seconds,
            most_unfinalized_blocks=most_unfinalized_blocks,
            deepest_fork_blocks=deepest_fork_blocks,
            clock=lambda: now[0],
        )
        examiner = Examiner(
            pool=indexer_pool,
            node=node,
            sources=sources,
            trigger_finality=FinalityRule(tag="finalized"),
            complete_finality=FinalityRule(tag="finalized"),
            max_range_blocks=100,
        )
        sweep = Sweep(pool=indexer_pool, chain_id=CHAIN_ID, examiner=examiner, rules=rules, clock=lambda: now[0])
        yield World(servers=servers, node=node, follower=follower, sweep=sweep, pool=indexer_pool, now=now, kinds=kinds)


BASE = mined(GENESIS, [BASKET], [NOISE], [NOISE], [request("one")])


async def test_an_empty_block_costs_one_exchange_and_a_block_with_our_event_two(indexer_pool: Pool) -> None:
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server, finality_pause_seconds=6.0) as w:
        await w.follow()
        chain = BASE
        for emitted, exchanges in (([], 1), ([NOISE], 1), ([request("two"), NOISE], 2), ([], 1)):
            chain = mined(chain, emitted)
            w.serve(chain)
            w.forget()
            assert not await w.follower.tick()
            assert (w.exchanges, await w.is_at(chain)) == (exchanges, True)
            w.forget()
            assert not await w.follower.tick()
            assert w.exchanges == 1  # nothing new
        assert await w.requests() == [("one", "canonical"), ("two", "canonical")]


async def test_finality_is_asked_no_more_often_than_the_pause_and_then_in_one_exchange(indexer_pool: Pool) -> None:
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server, finality_pause_seconds=6.0) as w:
        await w.follow()
        w.serve(BASE, finalized=3)
        w.now[0] += 5.9
        await w.follow()
        assert await w.pool.fetchval("SELECT finalized_number FROM cursor") == 0
        w.forget()
        w.now[0] += 0.1
        await w.follow()
        assert w.exchanges == 2
        assert await w.pool.fetchval("SELECT finalized_number FROM cursor") == 3


@pytest.mark.parametrize("blocks", [1, 3])
async def test_finality_that_passes_the_head_between_two_questions_is_no_contradiction(
    indexer_pool: Pool, blocks: int
) -> None:
    """Hard case 33: where every block is final at once, each one that comes between the two questions does it."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server) as w:
        await w.follow()
        seen = mined(BASE, [request("two")], [])
        grown = mined(seen, *[[NOISE]] * blocks)
        w.serve(seen)

        def grow(params: list[Any], result: Any) -> Any:
            """A head is told, and the chain goes on before its finality is asked."""
            if params[0] != "finalized":
                return result
            w.serve(grown, finalized=grown[-1].number)
            return grown[-1].header()

        server.tampers["eth_getBlockByNumber"] = grow
        assert await w.follower.tick()
        assert (w.states, w.kinds) == ([EndpointState.ALIVE], {})
        await w.follow()
        assert await w.is_at(grown)
        assert await w.pool.fetchval("SELECT finalized_number FROM cursor") == grown[-1].number


async def test_what_one_endpoint_told_of_finality_is_not_believed_of_another(indexer_pool: Pool) -> None:
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second, finality_pause_seconds=3_600.0) as w:
        await w.follow()
        await w.node.probe()
        assert [method for method, params in second.asked if params[:1] == ["finalized"]] == []
        first.interfere = refused(502)
        await w.follow()
        assert len([method for method, params in second.asked if params[:1] == ["finalized"]]) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _, result: [*result, *result],
        lambda _, result: [entry | {"blockHash": "0x" + "99" * 32} for entry in result],
        lambda *_: None,
    ],
    ids=["twice", "of another block", "null"],
)
async def test_an_endpoint_that_spoils_logs_is_left_in_the_same_breath_and_nothing_is_lost(
    indexer_pool: Pool, spoil: Callable[[list[Any], Any], object]
) -> None:
    """Hard cases 1, 19, 31."""
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    first.tampers["eth_getLogs"] = spoil
    async with following(indexer_pool, first, second) as w:
        assert await w.follower.tick()  # "again, at once": with the other one
        await w.follow()
        assert await w.is_at(BASE)
        assert await w.requests() == [("one", "canonical")]
        assert w.states == [EndpointState.UNREACHABLE, EndpointState.ALIVE]


async def test_a_request_whose_log_the_only_endpoint_hides_is_recorded(indexer_pool: Pool) -> None:
    """Hard case 19."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server) as w:
        await w.follow()
        server.tampers["eth_getLogs"] = lambda *_: []
        w.serve(mined(BASE, [request("two")]))
        await w.follow()
        assert await w.requests() == [("one", "canonical"), ("two", "canonical")]
        assert w.kinds == {Inconsistency.LOGS_MISSING: 1}


async def test_a_head_that_goes_back_on_the_same_chain_changes_nothing(indexer_pool: Pool) -> None:
    """Hard case 7."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server) as w:
        await w.follow()
        for shorter in (BASE[:-1], BASE[:-2], BASE[:2]):
            w.serve(shorter)
            await w.follow()
            assert await w.is_at(BASE)
        assert (await w.requests(), await w.reorgs()) == ([("one", "canonical")], 0)
        assert w.kinds[Inconsistency.HEAD_BACKWARDS] == 3


async def test_a_head_below_our_finalized_block_is_a_lag_and_not_a_violated_finality(indexer_pool: Pool) -> None:
    """Hard cases 5, 7: a node that is syncing, or was restored from a backup."""
    server = RpcStandIn(chain=BASE, finalized=3)
    async with following(indexer_pool, server) as w:
        await w.follow()
        server.finalized = 0
        for fork in ("", "another"):
            w.serve(mined(GENESIS, [], [], fork=fork) if fork else BASE[:3])
            with pytest.raises(NodeUnavailable, match="head 2 is below our finalized block 3"):
                await w.follower.tick()
        assert w.states == [EndpointState.LAGGING]
        w.serve(BASE)
        await w.follow()
        assert w.states == [EndpointState.ALIVE]
        assert (await w.is_at(BASE), await w.reorgs()) == (True, 0)


async def test_another_block_at_a_final_height_still_stops_everything(indexer_pool: Pool) -> None:
    """Hard case 5."""
    server = RpcStandIn(chain=BASE, finalized=3)
    async with following(indexer_pool, server) as w:
        await w.follow()
        w.serve(mined(BASE[:3], [], [], [], fork="another"))
        with pytest.raises(FinalityViolated):
            await w.follower.tick()
        assert await w.is_at(BASE)


async def test_a_lagging_endpoint_is_left_for_one_that_is_ahead_without_a_reorg(indexer_pool: Pool) -> None:
    """Hard case 26."""
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second) as w:
        await w.follow()
        first.chain, second.chain = BASE[:-1], mined(BASE, [request("two")])
        await w.follow()
        assert w.states == [EndpointState.LAGGING, EndpointState.ALIVE]
        assert await w.is_at(second.chain)
        assert await w.reorgs() == 0


async def test_a_failover_to_another_fork_is_a_reorg_like_any_other_and_so_is_the_return(indexer_pool: Pool) -> None:
    """Hard cases 4, 26."""
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second) as w:
        await w.follow()
        first.chain = mined(BASE, [request("two")], [], fork="a")
        second.chain = mined(BASE, [], [request("two")], [request("three")], fork="b")
        await w.follow()
        assert await w.requests() == [("one", "canonical"), ("two", "canonical")]
        first.interfere = refused(502)
        await w.follow()
        assert await w.is_at(second.chain)
        assert await w.requests() == [("one", "canonical"), ("two", "canonical"), ("three", "canonical")]
        first.interfere, first.chain = None, mined(first.chain, [], [], fork="a")
        await w.probe()
        await w.follow()
        assert await w.is_at(first.chain)
        assert await w.requests() == [("one", "canonical"), ("two", "canonical"), ("three", "orphaned")]
        assert await w.reorgs() == 2


async def test_an_endpoint_that_flips_between_two_forks_within_a_tick_is_read_again(indexer_pool: Pool) -> None:
    """Hard cases 1, 8: A announced, B by number, A again."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server) as w:
        await w.follow()
        ours = mined(BASE, [request("two")], [], [], fork="a")
        others = mined(BASE, [], [request("three")], [], fork="b")
        server.chain, server.orphans = ours, others[len(BASE) :]

        def flipping(params: list[Any], result: Any) -> Any:
            number = int(params[0], 16) if params[0].startswith("0x") else 0
            return others[number].header() if number == len(BASE) + 1 else result

        server.tampers["eth_getBlockByNumber"] = flipping
        assert not await w.follower.tick()
        assert await w.is_at(BASE)
        del server.tampers["eth_getBlockByNumber"]
        await w.follow()
        assert await w.is_at(ours)
        assert await w.requests() == [("one", "canonical"), ("two", "canonical")]


async def test_a_block_of_another_number_is_the_endpoints_fault(indexer_pool: Pool) -> None:
    """Hard case 26: another chain's block, by number."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server) as w:
        await w.follow()
        server.chain = mined(BASE, [], [], [])
        server.tampers["eth_getBlockByNumber"] = lambda params, result: (
            result if params[0] in {"latest", "finalized", "safe"} else result | {"number": "0x63"}
        )
        with pytest.raises(NodeUnavailable, match="got 99"):
            await w.follower.tick()
        assert await w.is_at(BASE)


async def test_a_null_for_an_announced_block_moves_nothing_and_is_asked_again(indexer_pool: Pool) -> None:
    """Hard cases 2, 21, 32."""
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second) as w:
        await w.follow()
        longer = mined(BASE, [], [request("two")])
        w.serve(longer)
        first.tampers["eth_getBlockByNumber"] = lambda params, result: None if params[0] == hex(len(BASE)) else result
        for _ in range(3):
            assert not await w.follower.tick()
            assert await w.is_at(BASE)
        await w.follow()  # three times in a row was enough: the other one is asked
        assert await w.is_at(longer)


async def test_an_ancestry_without_an_end_is_refused(indexer_pool: Pool) -> None:
    """Hard case 8."""
    server = RpcStandIn(chain=BASE)
    async with following(indexer_pool, server) as w:
        await w.follow()
        fork = mined(BASE[:2], [], [], [], [], [], fork="b")
        server.chain = fork
        server.tampers["eth_getBlockByHash"] = lambda _, result: result | {"number": hex(1_000)}
        with pytest.raises(NodeUnavailable, match="block 1000 is the parent of block"):
            await w.follower.tick()
        assert await w.is_at(BASE)


async def test_a_hung_endpoint_in_the_middle_of_a_tick_costs_nothing_but_the_tick(indexer_pool: Pool) -> None:
    """Hard case 28."""
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second, timeout_seconds=1.0) as w:
        await w.follow()
        w.serve(mined(BASE, [request("two")]))

        def hang_from_now_on(_: list[Any], result: Any) -> Any:
            first.interfere = hung
            return result

        first.tampers["eth_getBlockByNumber"] = hang_from_now_on
        await w.follow()
        assert await w.requests() == [("one", "canonical"), ("two", "canonical")]
        assert w.states == [EndpointState.UNREACHABLE, EndpointState.ALIVE]


@pytest.mark.parametrize("cap", [100, 1_000])
async def test_a_provider_that_silently_cuts_its_answers_costs_smaller_ranges_and_no_request(
    indexer_pool: Pool, cap: int
) -> None:
    """Hard cases 22, 23."""
    chain = mined(BASE, *[[request(f"{block}-{n}") for n in range(cap // 25)] for block in range(30)], [])
    server = RpcStandIn(chain=chain, finalized=len(chain) - 1)
    server.tampers["eth_getLogs"] = lambda _, logs: logs[:cap]
    async with following(indexer_pool, server) as w:
        await w.follow()
        assert len(await w.requests()) == 1 + 30 * (cap // 25)
        assert await w.is_at(chain)
        assert w.kinds[Inconsistency.ROUND_COUNT] >= 1


async def test_a_stalled_finality_holds_the_index_in_sight_and_lets_it_go_on_afterwards(indexer_pool: Pool) -> None:
    """Hard case 12."""
    server = RpcStandIn(chain=BASE, finalized=2, safe=2)
    async with following(indexer_pool, server, most_unfinalized_blocks=5) as w:
        long = mined(BASE, *[[]] * 10, [request("two")])
        w.serve(long)
        await w.follow()
        assert (await w.cursor())[0] == 7
        (sentence,) = w.follower.troubles()
        assert "block 2 is the last final one; indexing waits at block 7" in sentence
        # A reorg of what is held is still followed.
        fork = mined(long[:6], *[[]] * 12, [request("three")], fork="b")
        w.serve(fork)
        await w.follow()
        assert await w.cursor() == (7, fork[7].hash)
        w.serve(fork, finalized=18)
        await w.follow()
        assert w.follower.troubles() == ()
        assert await w.is_at(fork)
        assert await w.requests() == [("one", "finalized"), ("three", "finalized")]


async def test_the_window_above_finality_is_measured_by_the_times_of_blocks(indexer_pool: Pool) -> None:
    server = RpcStandIn(chain=mined(BASE, *[[]] * 120), finalized=2)
    limits = {"most_unfinalized_seconds": 80 * BLOCK_SECONDS, "most_unfinalized_blocks": 1_000}
    async with following(indexer_pool, server, **limits) as w:
        await w.follow()
        assert (await w.cursor())[0] == 82
        (sentence,) = w.follower.troubles()
        assert "block 2 is the last final one; indexing waits at block 82" in sentence
        w.serve(server.chain, finalized=3)
        await w.follow()
        assert (await w.cursor())[0] == 83


async def test_some_blocks_above_finality_are_indexed_whatever_their_times(indexer_pool: Pool) -> None:
    server = RpcStandIn(chain=mined(BASE, *[[]] * 120), finalized=2)
    async with following(indexer_pool, server, most_unfinalized_seconds=1, most_unfinalized_blocks=1_000) as w:
        await w.follow()
        assert (await w.cursor())[0] == 2 + ALWAYS_INDEXED_BLOCKS


async def test_a_fork_that_is_deeper_than_the_first_search_is_followed(indexer_pool: Pool) -> None:
    deep = FORK_SEARCH_BLOCKS + 10
    chain = mined(BASE, *[[]] * (deep + 5))
    server = RpcStandIn(chain=chain, finalized=2)
    async with following(indexer_pool, server, most_unfinalized_blocks=2 * deep) as w:
        await w.follow()
        assert await w.is_at(chain)
        fork = mined(chain[:-deep], *[[]] * (deep + 1), fork="b")
        w.serve(fork)
        await w.follow()
        assert await w.is_at(fork)


async def test_what_one_endpoint_has_thrown_away_is_read_and_swept_by_the_one_that_keeps_it(indexer_pool: Pool) -> None:
    """Hard case 34: the preferred node is in order, and stays so; it has no old blocks."""

    def pruned(params: list[Any], result: Any) -> Any:
        if int(params[0].get("fromBlock", "0xff"), 16) <= 3:
            raise RpcError(4444, "pruned history unavailable")
        return result

    chain = mined(BASE, [request("two")], [], [])
    own = RpcStandIn(chain=chain, finalized=6, tampers={"eth_getLogs": pruned})
    archive = RpcStandIn(chain=chain, finalized=6)
    async with following(indexer_pool, own, archive) as w:
        await w.follow()
        assert await w.is_at(chain)
        assert w.states == [EndpointState.ALIVE, EndpointState.ALIVE]
        while await w.sweep.tick():
            pass
        assert await w.pool.fetchval("SELECT block_number FROM sweep") == 6
        assert w.states == [EndpointState.ALIVE, EndpointState.ALIVE]
        assert w.sweep.troubles() == ()


async def test_a_chain_that_has_no_finalized_block_is_followed_without_a_bound(indexer_pool: Pool) -> None:
    """Hard case 33."""

    def untagged(params: list[Any], result: Any) -> Any:
        if params[0] in {"finalized", "safe"}:
            raise RpcError(-32602, "invalid argument 0: hex string without 0x prefix")
        return result

    server = RpcStandIn(chain=mined(BASE, *[[]] * 20), tampers={"eth_getBlockByNumber": untagged})
    async with following(indexer_pool, server, most_unfinalized_blocks=5, deepest_fork_blocks=5) as w:
        await w.follow()
        assert await w.is_at(server.chain)
        # The tick before the fork reads no further back than the bound.
        w.serve(mined(server.chain[:-3], [], [], [], [], fork="b"))
        await w.follow()
        assert await w.is_at(server.chain)
        w.serve(mined(server.chain[:-8], *[[]] * 10, fork="c"))
        with pytest.raises(FinalityViolated):
            await w.follower.tick()


@pytest.mark.parametrize("requests_per_second", [2.0, 25.0])
async def test_a_budget_below_one_commits_questions_delays_the_catching_up_and_does_not_prevent_it(
    indexer_pool: Pool, requests_per_second: float
) -> None:
    """Hard case 24."""
    chain = mined(BASE, *[[NOISE]] * 90)
    server = RpcStandIn(chain=chain)
    async with following(indexer_pool, server, requests_per_second=requests_per_second) as w:
        for _ in range(200):
            await w.follower.tick()  # nobody is at fault, so it is no error either
            if await w.is_at(chain):
                break
            w.now[0] += 2.0
            assert w.node.troubles() == ()
        assert await w.is_at(chain)
        assert w.now[0] - 1_000.0 < len(server.asked) / requests_per_second + 10
        assert w.states == [EndpointState.ALIVE]


FAULTS: tuple[Callable[[RpcStandIn], None], ...] = (
    lambda server: setattr(server, "interfere", refused(502)),
    lambda server: setattr(server, "interfere", refused(429, {"Retry-After": "3"})),
    lambda server: setattr(server, "chain", server.chain[: max(2, len(server.chain) - 3)]),
    lambda server: server.tampers.update(eth_getLogs=lambda _, logs: [*logs, *logs[:1]]),
    lambda server: server.tampers.update(eth_getLogs=lambda _, logs: logs[1:]),
    lambda server: server.tampers.update(eth_getBlockByHash=lambda *_: None),
    lambda server: server.tampers.update(eth_getBlockByNumber=lambda *_: None),
    lambda server: setattr(server, "chain_id", 1),
    lambda server: server.drop_connections(),
)


@pytest.mark.parametrize("seed", range(6))
async def test_after_any_row_of_faults_and_forks_the_rows_are_the_chain(indexer_pool: Pool, seed: int) -> None:
    """Hard cases 1 to 10, 19 to 32: every request of the chain once, and no other one canonical."""
    chance = Random(seed)  # noqa: S311 - a schedule, to be had again
    first, second = RpcStandIn(chain=BASE), RpcStandIn(chain=BASE)
    async with following(indexer_pool, first, second) as w:
        await w.follow()
        assert w.node.reports()[0].state is EndpointState.ALIVE
        chain, made = BASE, 0
        for _ in range(25):
            if chance.random() < 0.3:
                keep = chance.randint(max(len(BASE), len(chain) - 4), len(chain))
                chain = chain[:keep]
            for _ in range(chance.randint(1, 3)):
                emitted = [NOISE] if chance.random() < 0.5 else []
                if chance.random() < 0.5:
                    made += 1
                    emitted.append(request(f"request-{made}"))
                chain = mined(chain, emitted, fork=str(chance.random()))
            for server in (first, second):
                server.chain, server.chain_id, server.interfere = chain, CHAIN_ID, None
                server.tampers.clear()
                if chance.random() < 0.4:
                    chance.choice(FAULTS)(server)
            await w.follow_forgiving()
            await w.probe()
        for server in (first, second):
            server.chain, server.chain_id, server.interfere = mined(chain, []), CHAIN_ID, None
            server.tampers.clear()
        chain = first.chain
        w.now[0] += 400
        await w.probe()
        await w.follow()
        assert await w.is_at(chain)
        on_chain = [e.topics[3].rstrip(b"\0").decode() for b in chain for e in b.emitted if e.address == TOKEN]
        canonical = [name for name, status in await w.requests() if status == "canonical"]
        assert sorted(canonical) == sorted(on_chain)
        assert len(canonical) > 3
