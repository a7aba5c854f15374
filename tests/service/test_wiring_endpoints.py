"""The daemon's own wiring of its nodes: several URLs, a WebSocket, what /status and /readyz say, a refused start."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import pytest
from websockets.asyncio.server import ServerConnection, serve

from node.errors import ChainMismatch, NodeUnavailable
from service import settings, wiring
from service.settings import SettingsError
from service.supervision import Stop
from tests.node.rpc_stand_in import CHAIN_ID, FACTORY, Emitted, RpcStandIn, genesis, mined, refused

HEAD = json.dumps({"jsonrpc": "2.0", "method": "eth_subscription", "params": {"subscription": "0x1", "result": {}}})
NOISE = Emitted(address=b"\x99" * 20)
BASE = mined(genesis(), [NOISE], [NOISE], [NOISE])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(dsn: str, *urls: str, **more: str) -> dict[str, str]:
    return {
        "BSKT_DATABASE_URL": dsn,
        "BSKT_INSTANCE_SECRET": "ab" * 32,
        "BSKT_CHAIN_ID": str(CHAIN_ID),
        "BSKT_RPC_URL": ",".join(urls),
        "BSKT_FACTORY_ADDRESS": FACTORY.hex(),
        "BSKT_FORWARDER_ADDRESS": "f0" * 20,
        "BSKT_START_BLOCK": "1",
        "BSKT_LISTEN": f"127.0.0.1:{free_port()}",
        "BSKT_CRE_MODE": "gateway",
        "BSKT_CRE_GATEWAY_URL": "http://127.0.0.1:1/",
        "BSKT_CRE_WORKFLOW": "01" * 32,
        "BSKT_CRE_SIGNER_KEY": "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
        **more,
    }


class Daemon:
    """The daemon in this process, and each of its commits as they happen."""

    def __init__(self, environ: dict[str, str], *, starts_without: Callable[[Sequence[str]], bool] = bool) -> None:
        self._settings = settings.load({}, None, environ)
        self._starts_without = starts_without
        self.stop = Stop()
        self._commits: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> int:
        return await wiring.run(
            self._settings,
            parts=("indexer",),
            stop=self.stop,
            reached=self._reached,
            starts_without=self._starts_without,
        )

    def _reached(self, boundary: str) -> None:
        if boundary == "indexer.after_commit":
            self._commits.put_nowait(boundary)

    async def commits(self, count: int) -> None:
        for _ in range(count):
            await self._commits.get()

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self._settings.listen}{path}") as answer,
        ):
            return answer.status, await answer.text()


@asynccontextmanager
async def announcing() -> AsyncIterator[tuple[str, asyncio.Queue[ServerConnection]]]:
    """A WebSocket server; its URL, and every connection that subscribed."""
    subscribed: asyncio.Queue[ServerConnection] = asyncio.Queue()

    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        subscribed.put_nowait(connection)
        await connection.wait_closed()

    async with serve(talk, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", subscribed


async def test_the_daemon_uses_the_right_one_of_its_nodes_and_is_woken_by_the_websocket(dsn: str) -> None:
    """Hard cases 27, 29, 120: with a poll interval of a day, only the wake-up can be what makes it look."""
    down, other, good = (RpcStandIn(chain=BASE) for _ in range(3))
    down.interfere, other.chain_id = refused(502), 1
    async with down.running(), other.running(), good.running(), announcing() as (ws_url, subscribed):
        daemon = Daemon(
            environment(dsn, down.url, other.url, good.url, BSKT_WS_URL=ws_url, BSKT_POLL_INTERVAL_SECONDS="86400")
        )

        async def drive() -> None:
            try:
                await daemon.commits(1)
                connection = await subscribed.get()
                # A wake during a tick is kept for the next one: a single head is enough.
                good.chain = mined(good.chain, [NOISE])
                await connection.send(HEAD)
                await daemon.commits(1)
                code, text = await daemon.get("/status")
                chain = json.loads(text)["chain"]
                assert (code, chain["indexed"]) == (200, 4)
                assert [(each["name"], each["state"]) for each in chain["endpoints"]] == [
                    ("0", "unreachable"),
                    ("1", "wrong_chain"),
                    ("2", "alive"),
                ]
                assert (await daemon.get("/readyz"))[0] == 200
                # It is lost and made again: that is counted, and makes nothing unready.
                await connection.close()
                connection = await subscribed.get()
                assert (await daemon.get("/readyz"))[0] == 200
                good.chain = mined(good.chain, [NOISE])
                await connection.send(HEAD)
                await daemon.commits(1)
                text = (await daemon.get("/metrics"))[1]
                assert 'bskt_wake_ups_lost_total{chain_id="31337",source="heads"} 1.0' in text
                text = (await daemon.get("/metrics"))[1]
                assert 'bskt_rpc_inconsistencies_total{chain_id="31337",kind="other_chain"} ' in text
                assert 'endpoint="2",method="eth_getBlockByNumber",outcome="ok"' in text
            finally:
                daemon.stop.ask()

        code, _ = await asyncio.gather(daemon.run(), drive())
        assert code == 0
        assert other.seen["eth_getLogs"] == 0


async def test_a_daemon_whose_every_node_is_of_another_chain_refuses_to_start(dsn: str) -> None:
    """Hard case 14."""
    async with RpcStandIn(chain=BASE, chain_id=1).running() as other:
        with pytest.raises(ChainMismatch, match="BSKT_RPC_URL"):
            await Daemon(environment(dsn, other.url)).run()


async def test_a_daemon_whose_chain_was_reset_refuses_to_start_and_one_without_an_answer_may_start_later(
    dsn: str,
) -> None:
    """Hard case 14: the pinned genesis and factory count, whatever the preferred node says."""
    async with RpcStandIn(chain=BASE).running() as good, RpcStandIn(chain=BASE).running() as reset:
        environ = environment(dsn, good.url)
        daemon = Daemon(environ)

        async def stop_after_the_first_commit() -> None:
            await daemon.commits(1)
            daemon.stop.ask()

        await asyncio.gather(daemon.run(), stop_after_the_first_commit())
        reset.chain = mined(genesis("reset"), [], [], [], [])
        with pytest.raises(ChainMismatch, match="genesis hash"):
            await Daemon(environ | {"BSKT_RPC_URL": reset.url}).run()
        reset.interfere = refused(502)
        with pytest.raises(NodeUnavailable):
            await Daemon(environ | {"BSKT_RPC_URL": reset.url}).run()
        # Beside a right one, a wrong one is left aside.
        reset.interfere = None
        daemon = Daemon(environ | {"BSKT_RPC_URL": f"{reset.url},{good.url}"})
        good.chain = mined(good.chain, [NOISE])
        code, _ = await asyncio.gather(daemon.run(), stop_after_the_first_commit())
        assert code == 0


async def test_a_first_start_whose_nodes_are_too_far_apart_is_refused_for_what_it_pins_is_pinned_for_good(
    dsn: str,
) -> None:
    """A single reserve that lies about its head would hold every request that is ever made."""

    def lie(params: list[Any], result: Any) -> object:
        return result | {"number": hex(10**9)} if params[0] == "latest" else result

    async with RpcStandIn(chain=BASE).running() as good, RpcStandIn(chain=BASE).running() as liar:
        liar.tampers["eth_getBlockByNumber"] = lie
        environ = environment(dsn, good.url, liar.url)
        with pytest.raises(SettingsError, match="endpoint 0 is at block 3, endpoint 1 is at block 1000000000, so this"):
            await Daemon(environ).run()
        connection = await asyncpg.connect(dsn)
        try:
            assert await connection.fetchval("SELECT count(*) FROM chain") == 0
            daemon = Daemon(environ | {"BSKT_TRIGGER_FROM_BLOCK": "2"})

            async def stop_after_the_first_commit() -> None:
                await daemon.commits(1)
                daemon.stop.ask()

            await asyncio.gather(daemon.run(), stop_after_the_first_commit())
            assert await connection.fetchval("SELECT first_trigger_block_number FROM chain") == 2
        finally:
            await connection.close()


async def test_only_a_first_start_asks_for_the_caps_that_nobody_chose_and_a_no_pins_nothing(dsn: str) -> None:
    asked: list[Sequence[str]] = []

    def no(caps: Sequence[str]) -> bool:
        asked.append(tuple(caps))
        return False

    async def start(daemon: Daemon) -> int:
        async def stop_after_the_first_commit() -> None:
            await daemon.commits(1)
            daemon.stop.ask()

        code, _ = await asyncio.gather(daemon.run(), stop_after_the_first_commit())
        return code

    async with RpcStandIn(chain=BASE).running() as good:
        environ = environment(dsn, good.url, BSKT_DAILY_CAP_TOKENS="none")
        with pytest.raises(SettingsError, match="BSKT_MAX_MINT_TOKENS: not set"):
            await Daemon(environ, starts_without=no).run()
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT count(*) FROM chain") == 0
        await connection.close()
        assert await start(Daemon(environ | {"BSKT_MAX_MINT_TOKENS": "5"}, starts_without=no)) == 0
        good.chain = mined(good.chain, [NOISE])
        assert await start(Daemon(environ, starts_without=no)) == 0
        assert asked == [("BSKT_MAX_MINT_TOKENS",)]


def test_the_first_block_to_trigger_is_after_the_highest_head_of_those_that_are_about_equal() -> None:
    assert wiring.first_block_to_trigger({"0": 100, "1": None, "2": 164}) == 165
    with pytest.raises(SettingsError, match="BSKT_TRIGGER_FROM_BLOCK"):
        wiring.first_block_to_trigger({"0": 100, "1": None, "2": 165})
