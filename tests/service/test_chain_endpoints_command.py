"""What each node can do, as ``bskt chain endpoints`` and ``bskt check`` show it: tried, and never its URL or key."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from datastore.connection import Pool
from service.console import Exit
from tests.node.provider_proxy import PROFILES, ProviderProxy
from tests.node.rpc_stand_in import Emitted, RpcStandIn, genesis, mined
from tests.service.rows import CHAIN, Chain, bskt

PROFILE_BY_NAME = {profile.name: profile for profile in PROFILES}
LOGS = [Emitted(address=b"\x01" * 20, topics=(b"\x02" * 32,), data=bytes([number])) for number in range(40)]


@asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[list[ProviderProxy]]:
    """A provider of each name before one node."""
    async with AsyncExitStack() as stack:
        server = RpcStandIn(chain=mined(genesis(), *([log] for log in LOGS)), chain_id=CHAIN, finalized=30, safe=30)
        await stack.enter_async_context(server.running())
        proxies = [ProviderProxy(PROFILE_BY_NAME[name], server.url, clock=lambda: 0.0) for name in names]
        for proxy in proxies:
            await stack.enter_async_context(proxy.running())
        yield proxies


async def test_each_node_is_shown_with_what_it_can_do(dsn: str, indexer_pool: Pool, invocator_pool: Pool) -> None:
    await Chain.pinned(indexer_pool, invocator_pool)
    async with nodes("anvil", "drpc", "publicnode", "one_without_anything") as proxies:
        urls = [*(proxy.url for proxy in proxies), "http://127.0.0.1:1/v2/a-key-that-nobody-may-see"]
        settings = {
            "BSKT_RPC_URL": ",".join(urls),
            "BSKT_RPC_HEADERS": "X-Team: mint\n1 X-Api-Key: canary-of-drpc",
            "BSKT_MAX_LOG_RANGE_BLOCKS": "30",
        }
        shown = (await bskt(dsn, "--output", "json", "chain", "endpoints", **settings)).json
        table = (await bskt(dsn, "chain", "endpoints", **settings)).stdout
    found = {row["name"]: (row["batch_size"], row["range_blocks"], row["lacks"]) for row in shown}
    assert found == {
        "0": (100, 30, []),
        "1": (2, 15, []),
        "2": (100, 30, ["logs_by_topic"]),
        "3": (1, 7, ["logs_by_topic", "logs_by_hash", "block_receipts", "finalized_tag"]),
        "4": (None, None, None),
    }
    assert [row["state"] for row in shown] == ["alive"] * 4 + ["unreachable"]
    assert "block_receipts" in table
    for secret in ("a-key-that", "canary", proxies[0].url):
        assert secret not in str(shown) + table
    sent = [{name.lower(): value for name, value in proxy.headers[0].items()} for proxy in proxies]
    assert [headers.get("x-api-key") for headers in sent] == [None, "canary-of-drpc", None, None]
    assert {headers.get("x-team") for headers in sent} == {"mint"}


async def test_check_says_what_is_done_where_a_node_lacks_something_and_what_must_be_mended(dsn: str) -> None:
    async with nodes("quicknode", "one_without_anything") as proxies:
        settings = {
            "BSKT_CHAIN_ID": str(CHAIN),
            "BSKT_RPC_URL": ",".join(proxy.url for proxy in proxies),
            "BSKT_COMPLETE_FINALITY": "finalized",
        }
        answer = await bskt(dsn, "--output", "json", "check", **settings)
    assert answer.code == Exit.FINDINGS
    said = [(each["check"], each["severity"], each["sentence"]) for each in answer.json]
    assert ("node 1", "error", "It does not know the finalized block.") in said
    notes = {sentence for check, severity, sentence in said if check == "node 1" and severity == "note"}
    assert "It gives no logs without an address: they are asked for by address." in notes
    assert "It gives no receipts of a block at once: they are asked for one by one." in notes
    # Its limit is below what a look at it asks in a second.
    assert ("node 0", "warning", "It limits how fast it is asked: what it can do was not seen.") in said
    assert not [each for each in said if each[0] == "node 0" and each[1] == "error"]
