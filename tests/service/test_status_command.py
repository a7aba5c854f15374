import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from aiohttp import web

from datastore.claims import Says
from datastore.connection import Pool
from datastore.errors import FinalityViolated
from datastore.pinning import clear_halt, halt, halted_at
from service import wiring
from service.console import Exit
from tests.datastore.builders import BOB, CHAIN, batch, block, request
from tests.service.rows import WORKFLOW, Chain, basket, bskt


@pytest.fixture
async def chain(indexer_pool: Pool, invocator_pool: Pool) -> Chain:
    return await Chain.pinned(indexer_pool, invocator_pool)


@asynccontextmanager
async def node(*, head: int, chain_id: int = CHAIN) -> AsyncIterator[str]:
    """A node that knows its chain and its head."""

    async def answer(asked: web.Request) -> web.Response:
        question = await asked.json()
        word = "0x" + "00" * 32
        header = {
            "number": hex(head),
            "hash": "0x" + "01" * 32,
            "parentHash": word,
            "timestamp": hex(1_700_000_000 + head),
            "logsBloom": "0x" + "00" * 256,
            "stateRoot": word,
            "receiptsRoot": word,
            "transactionsRoot": word,
        }
        result = {"eth_chainId": hex(chain_id), "eth_getBlockByNumber": header}[question["method"]]
        return web.json_response({"jsonrpc": "2.0", "id": question["id"], "result": result})

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def status(dsn: str, *arguments: str, **environment: str) -> tuple[int, Any]:
    answer = await bskt(dsn, "--output", "json", "status", *arguments, **environment)
    return answer.code, answer.json


async def test_a_chain_in_order_is_well(chain: Chain, dsn: str) -> None:
    await chain.grow(baskets=(basket(chain.next()),), requests=(request("DEP-1", chain.next()),))
    async with node(head=1) as url:
        code, shown = await status(dsn, BSKT_RPC_URL=url)
        table = await bskt(dsn, "status", BSKT_RPC_URL=url)
    assert code == Exit.DONE
    assert shown["chain"]["endpoints"] == [{"name": "0", "state": "alive", "head": 1, "reason": None}]
    assert shown["requests"]["seen"] == 1
    assert shown["queue"]["slots"] == [{"workflow_id": "0x" + WORKFLOW.hex(), "next_at": None}]
    assert (table.code, "chain 31337: following" in table.stdout) == (Exit.DONE, True)
    assert "127.0.0.1" not in table.stdout


async def test_a_node_that_is_far_ahead_of_the_rows_is_a_lag_while_the_daemon_is_down(chain: Chain, dsn: str) -> None:
    """Hard case 120: the rows alone would say that all is well."""
    await chain.grow()
    async with node(head=500) as url:
        code, shown = await status(dsn, BSKT_RPC_URL=url)
        table = await bskt(dsn, "status", BSKT_RPC_URL=url)
    assert (code, shown["chain"]["lag_blocks"]) == (Exit.NOT_READY, 499)
    assert "LAGGING: the index is 499 blocks" in table.stdout


async def test_nodes_that_do_not_answer_are_not_ready_and_their_urls_are_not_shown(chain: Chain, dsn: str) -> None:
    await chain.grow()
    async with node(head=1, chain_id=5) as url:
        urls = f"{url},http://127.0.0.1:1/v2/a-key-that-nobody-may-see"
        answer = await bskt(dsn, "status", BSKT_RPC_URL=urls)
    assert answer.code == Exit.NOT_READY
    assert "it serves chain 5" in answer.stdout
    assert "a-key-that" not in answer.stdout + answer.stderr


async def test_a_pause_and_a_halt_have_an_exit_code_of_their_own(chain: Chain, indexer_pool: Pool, dsn: str) -> None:
    await chain.grow()
    await halt(indexer_pool, CHAIN, "finality violated")
    code, shown = await status(dsn)
    assert code == Exit.PAUSED
    assert shown["halted"]["reason"] == "finality violated"
    table = await bskt(dsn, "status")
    assert (table.code, "HALTED" in table.stdout) == (Exit.PAUSED, True)


async def test_a_halt_says_which_part_has_halted_and_a_second_one_does_not_hide_the_first(
    chain: Chain, indexer_pool: Pool, dsn: str
) -> None:
    await chain.grow()

    async def refuses() -> bool:
        raise FinalityViolated("block 7 has another hash")

    for name in (wiring.SWEEP, wiring.INDEXER, wiring.SWEEP):
        with pytest.raises(FinalityViolated):
            await wiring._halting(name, refuses, indexer_pool, CHAIN)()
    sentence = "the sweep: block 7 has another hash; the follower: block 7 has another hash"
    assert (await status(dsn))[1]["halted"]["reason"] == sentence
    assert f"HALTED: {sentence}" in " ".join((await bskt(dsn, "status")).stdout.split())
    before = await halted_at(indexer_pool, CHAIN)
    assert before is not None
    await halt(indexer_pool, CHAIN, sentence)  # again, after somebody saw the chain in order
    await clear_halt(indexer_pool, CHAIN, before)
    shown = (await status(dsn))[1]["halted"]
    assert shown["reason"] == sentence
    await clear_halt(indexer_pool, CHAIN, datetime.fromisoformat(shown["since"]))
    assert (await status(dsn))[1]["halted"] is None


async def test_what_needs_a_person_comes_with_the_command_that_lists_it(chain: Chain, dsn: str) -> None:
    one = chain.next()
    asked = (request("DEP-1", one), request("rival", one, log_index=1, bank="DEP-1", beneficiary=BOB))
    await chain.grow(requests=asked)
    await chain.grow(final=1)
    _, shown = await status(dsn)
    groups = shown["for_a_person"]
    assert [(group["state"], group["requests"]) for group in groups] == [("review", 2)]
    assert groups[0]["example"] in {1, 2}  # both since the same statement
    command = shlex.split(groups[0]["command"])
    assert command[0] == "bskt"
    listed = await bskt(dsn, *command[1:], "--output", "json")
    assert [row["id"] for row in listed.json] == [2, 1]


async def test_refusals_of_this_instance_are_told_and_explain_every_waiting_request(chain: Chain, dsn: str) -> None:
    """Hard case 85."""
    one = chain.next()
    await chain.grow(requests=(request("DEP-1", one), request("DEP-2", one, log_index=1)))
    await chain.grow(final=1)
    await chain.send("instance_refused", "Auth failure: signer is not authorized")
    async with node(head=2) as url:
        code, shown = await status(dsn, BSKT_RPC_URL=url)
    assert (code, shown["sends_fail"]["answers"]) == (Exit.NOT_READY, 1)
    (last, *_) = (await bskt(dsn, "--output", "json", "requests", "list")).json
    assert "signer is not authorized" in last["next"]
    await chain.let_probe()
    await chain.send("accepted")
    async with node(head=2) as url:
        code, shown = await status(dsn, BSKT_RPC_URL=url)
    assert (code, shown["sends_fail"]) == (Exit.DONE, None)


async def test_a_refused_workflow_is_told_listed_and_reset(chain: Chain, dsn: str) -> None:
    one = chain.next()
    await chain.grow(requests=(request("DEP-1", one), request("DEP-2", one, log_index=1)))
    await chain.grow(final=1)
    await chain.send("instance_refused", "Workflow not found.", refused=Says.WORKFLOW_REFUSED)
    async with node(head=2) as url:
        code, shown = await status(dsn, BSKT_RPC_URL=url)
    (refused,) = shown["refused_workflows"]
    assert (code, shown["sends_fail"], refused["sentence"]) == (Exit.NOT_READY, None, "Workflow not found.")
    # Frozen for it or not: each of its requests says what it waits for.
    for row in (await bskt(dsn, "--output", "json", "requests", "list")).json:
        assert "Workflow not found." in row["next"]
    (listed,) = (await bskt(dsn, "--output", "json", "workflows", "list")).json
    assert (listed["workflow_id"], listed["state"], listed["waiting"]) == ("0x" + WORKFLOW.hex(), "refused", 2)
    assert listed["breaker"]["sentence"] == "Workflow not found."
    who = ("--operator", "alice", "--reason", "deployed")
    for wrong in ("0x12", "ab" * 32):
        assert (await bskt(dsn, "workflows", "reset", wrong, *who)).code in {Exit.USAGE, Exit.ERROR}
    told = await bskt(dsn, "--output", "json", "workflows", "reset", WORKFLOW.hex(), *who, "--dry-run")
    assert told.json["outcome"] == "would be done"
    done = await bskt(dsn, "--output", "json", "workflows", "reset", "0x" + WORKFLOW.hex(), *who, "--yes")
    assert (done.json["outcome"], done.json["before"]["code"], done.json["after"]["code"]) == (
        "done",
        "signer_not_authorized",
        None,
    )
    (listed,) = (await bskt(dsn, "--output", "json", "workflows", "list")).json
    assert (listed["state"], listed["breaker"]) == ("configured", None)
    (retired,) = (await bskt(dsn, "--output", "json", "workflows", "list", BSKT_CRE_WORKFLOW="ab" * 32)).json
    assert retired["state"] == "retired"


async def test_alarms_of_the_last_day_are_counted_by_kind_with_the_latest_sentence(chain: Chain, dsn: str) -> None:
    await chain.grow(requests=(request("DEP-1", chain.next()),))
    await chain.grow(trigger=1)
    await chain.send("accepted")
    await chain.commit(batch(block(1, fork="b", parent_fork="a"), on=block(0), leaving=block(2)))
    _, shown = await status(dsn)
    ((alarm),) = shown["alarms"]
    assert (alarm["kind"], alarm["times"], alarm["request_id"]) == ("orphaned_after_send", 1, 1)
    reorg = shown["chain"]["last_reorg"]
    assert (reorg["ancestor"], reorg["orphaned_blocks"], reorg["orphaned_requests"]) == (0, 2, 1)
    table = await bskt(dsn, "status")
    assert "orphaned_after_send" in table.stdout
    (asked,) = (await bskt(dsn, "--output", "json", "requests", "list")).json
    assert asked["why"].endswith("A reorg has taken its block 1 away.")


async def test_where_no_node_can_be_asked_an_old_index_is_not_ready(chain: Chain, indexer_pool: Pool, dsn: str) -> None:
    await chain.grow()
    await indexer_pool.execute("UPDATE cursor SET indexed_at = now() - interval '2 hours'")
    answer = await bskt(dsn, "status")
    assert (answer.code, "nothing was indexed for 2 h" in answer.stdout) == (Exit.NOT_READY, True)


async def test_watch_looks_again_until_it_is_asked_to_stop(chain: Chain, dsn: str) -> None:
    await chain.grow()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from service.cli import main; main()",
        *("status", "--watch", "--interval", "0.2", "--output", "jsonl"),
        env={"PATH": os.defpath, "BSKT_DATABASE_URL": dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    first = json.loads(await process.stdout.readline())
    await chain.grow()
    while json.loads(await process.stdout.readline())["chain"]["indexed"] != first["chain"]["indexed"] + 1:
        """The next look sees the next block."""
    process.send_signal(signal.SIGINT)
    _, messages = await process.communicate()
    assert (process.returncode, messages) == (Exit.DONE, b"")


async def test_the_head_of_the_chain_is_what_rows_and_node_know(chain: Chain, dsn: str) -> None:
    await chain.grow()
    async with node(head=7) as url:
        shown = (await bskt(dsn, "--output", "json", "chain", "head", BSKT_RPC_URL=url)).json
    assert (shown["indexed"], shown["head"], shown["indexed_hash"]) == (1, 7, "0x" + block(1).hash.hex())


async def test_reorgs_are_listed_newest_first(chain: Chain, dsn: str) -> None:
    await chain.grow()
    other = block(1, fork="b", parent_fork="a")
    await chain.commit(batch(other, on=block(0), leaving=block(1)))
    await chain.commit(batch(block(1), on=block(0), leaving=other))
    rows = (await bskt(dsn, "--output", "json", "chain", "reorgs")).json
    assert [(row["id"], row["old_tip_hash"]) for row in rows] == [
        (2, "0x" + other.hash.hex()),
        (1, "0x" + block(1).hash.hex()),
    ]
    assert len((await bskt(dsn, "--output", "json", "chain", "reorgs", "--limit", "1")).json) == 1
