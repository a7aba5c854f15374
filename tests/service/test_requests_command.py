import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datastore.connection import Pool
from service.console import Exit
from tests.datastore.builders import BOB, ETHER, batch, block, hash_of, mint, report, request
from tests.service.rows import CHAIN, Chain, asked_for, basket, bskt, execution_id


@pytest.fixture
async def chain(indexer_pool: Pool, invocator_pool: Pool) -> Chain:
    return await Chain.pinned(indexer_pool, invocator_pool)


async def test_a_request_is_listed_with_everything_that_its_row_and_its_chain_say(chain: Chain, dsn: str) -> None:
    one = chain.next()
    asked = request("DEP-1001", one, log_index=3, amount=2**255, predicted_amount=2**255)
    await chain.grow(baskets=(basket(one),), requests=(asked,))
    (shown,) = (await bskt(dsn, "--output", "json", "requests", "list")).json
    assert shown["label"] == "Mint Request Seen (1/4)"
    assert shown["amount"] == str(2**255)
    assert shown["nonce"] == str(asked.nonce)
    assert shown["basket"] == {
        "symbol": "AUD",
        "stablecoin": "0x" + "70" * 20,
        "consumer": "0xC0C0c0c0C0C0c0c0c0C0c0C0C0C0C0C0C0C0c0c0",
    }
    assert shown["bank_reference"] == {"text": "DEP-1001", "hex": "0x" + asked.bank_reference.hex()}
    assert shown["chain"]["block_time"] == "2023-11-14T22:13:21Z"
    assert (shown["chain"]["block_number"], shown["chain"]["log_index"]) == (1, 3)
    assert (shown["sent"], shown["attempts"], shown["queue"], shown["mint"]) == (False, 0, None, None)


@pytest.mark.parametrize("output", ["table", "json", "jsonl"])
async def test_no_request_is_an_empty_list_in_every_form(chain: Chain, dsn: str, output: str) -> None:
    assert chain.tip.number == 0
    answer = await bskt(dsn, "requests", "list", "--output", output)
    assert answer.code == Exit.DONE
    assert {"table": "id" in answer.stdout, "json": answer.stdout == "[]\n", "jsonl": answer.stdout == ""}[output]


async def test_the_filters_take_what_they_say(chain: Chain, dsn: str) -> None:
    one = chain.next()
    first = request("DEP-1", one)
    second = request("DEP-2", one, log_index=1, requester=BOB, stablecoin=b"\x71" * 20)
    third = request("again", one, log_index=2, bank="DEP-1")
    await chain.grow(baskets=(basket(one),), requests=(first, second, third))
    await chain.grow(final=1)

    async def listed(*filters: str) -> list[int]:
        return [row["id"] for row in (await bskt(dsn, "--output", "json", "requests", "list", *filters)).json]

    assert await listed() == [3, 2, 1]
    assert await listed("--limit", "2") == [3, 2]
    assert await listed("--state", "rejected") == [3]
    assert await listed("--state", "rejected", "--state", "confirmed") == [3, 2, 1]
    assert await listed("--reason", "duplicate_bank_reference") == [3]
    assert await listed("--basket", "AUD") == [3, 1]
    assert await listed("--basket", "0x" + "70" * 20) == [3, 1]
    assert await listed("--requester", "0x" + BOB.hex()) == [2]
    assert await listed("--reference", "DEP-2") == [2]
    assert await listed("--reference", "0x" + first.bank_reference.hex()) == [3, 1]
    assert await listed("--since", "1h") == [3, 2, 1]
    assert await listed("--since", (datetime.now(UTC) + timedelta(hours=1)).isoformat()) == []
    assert await listed("--held") == []


@pytest.mark.parametrize(
    "filters",
    [
        ("--requester", "0x12"),
        ("--since", "yesterday"),
        ("--since", "999999999w"),
        ("--state", "lost"),
        ("--limit", "0"),
        ("--reference", "0xzz"),
        ("--reference", "x" * 33),
        ("--basket", "0x" + "00" * 20),
    ],
)
async def test_a_filter_that_makes_no_sense_is_a_usage_error(chain: Chain, dsn: str, filters: tuple[str, str]) -> None:
    assert chain.tip.number == 0
    answer = await bskt(dsn, "requests", "list", *filters)
    assert (answer.code, answer.stdout) == (Exit.USAGE, "")
    assert filters[1][:6] in answer.stderr or "reference" in answer.stderr or "limit" in answer.stderr


async def test_a_request_is_found_by_any_of_its_names(chain: Chain, dsn: str) -> None:
    one = chain.next()
    asked, other = request("DEP-1", one), request("DEP-2", one, log_index=1)
    await chain.grow(requests=(asked, other))
    await chain.grow(final=1)
    await chain.send("accepted")
    after = chain.next()
    await chain.grow(mints=(mint(after, of=asked),), reports=(report(after, execution_id=execution_id(1)),), final=1)
    for name in (
        "1",
        str(asked.nonce),
        asked.nonce.hex,
        asked.nonce.hex.upper(),
        "0x" + asked.identity.hex(),
        "0x" + asked.identity.hex()[:9],
        "0x" + asked.tx_hash.hex()[:8],
        asked.tx_hash.hex(),
        "0x" + execution_id(1).hex(),
        "0x" + hash_of("tx", "delivery").hex(),
    ):
        answer = await bskt(dsn, "--output", "json", "requests", "show", name)
        assert (name, answer.code, answer.stderr) == (name, Exit.DONE, "")
        assert answer.json["id"] == 1


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("3", Exit.ERROR, "no request of chain 31337 goes by '3'"),
        ("9" * 40, Exit.ERROR, "no request"),
        ("0x" + "00" * 32, Exit.ERROR, "no request"),
        ("DEP-1", Exit.USAGE, "names no request: expected a row id, a nonce"),
        ("0x12", Exit.USAGE, "names no request"),
        ("", Exit.USAGE, "names no request"),
        ("\x1b[31m", Exit.USAGE, "names no request"),
    ],
)
async def test_a_name_of_no_request_is_refused_with_what_names_one(
    chain: Chain, dsn: str, name: str, code: Exit, text: str
) -> None:
    await chain.grow(requests=(request("DEP-1", chain.next()),))
    answer = await bskt(dsn, "requests", "show", name)
    assert (answer.code, answer.stdout) == (code, "")
    assert text in answer.stderr
    assert "\x1b" not in answer.stderr


async def test_a_name_of_several_requests_is_refused_with_their_ids(chain: Chain, dsn: str) -> None:
    one = chain.next()
    tx_hash = hash_of("one transaction")
    await chain.grow(requests=tuple(request(name, one, log_index=n, tx_hash=tx_hash) for n, name in enumerate("ab")))
    answer = await bskt(dsn, "requests", "show", "0x" + tx_hash.hex())
    assert answer.code == Exit.USAGE
    assert "1, 2" in answer.stderr


async def test_a_waiting_request_says_its_place_and_when_its_turn_is_expected(chain: Chain, dsn: str) -> None:
    """Hard case 78: the queue is served one of each basket in turn, one trigger a minute."""
    one = chain.next()
    asked = (
        request("a1", one, log_index=0),
        request("a2", one, log_index=1),
        request("b1", one, log_index=2, stablecoin=b"\x71" * 20, consumer=b"\xc1" * 20),
    )
    await chain.grow(requests=asked)
    await chain.grow(final=1)
    rows = (await bskt(dsn, "--output", "json", "requests", "list")).json
    assert {row["id"]: row["queue"]["position"] for row in rows} == {1: 1, 3: 2, 2: 3}
    times = {row["id"]: datetime.fromisoformat(row["queue"]["expected_at"]) for row in rows}
    assert (times[3] - times[1], times[2] - times[1]) == (timedelta(minutes=1), timedelta(minutes=2))
    shown = await bskt(dsn, "requests", "show", "2")
    assert "It is number 3 in the queue." in shown.stdout


async def test_show_says_why_and_what_a_person_can_do(chain: Chain, dsn: str) -> None:
    one = chain.next()
    asked = request("DEP-1", one)
    rival = request("rival", one, log_index=1, bank="DEP-1", beneficiary=BOB)
    await chain.grow(requests=(asked, rival))
    await chain.grow(final=1)
    answer = await bskt(dsn, "requests", "show", "1")
    assert "Request 1: Under Review" in answer.stdout
    assert "Request 2 asks for the same deposit for another beneficiary" in answer.stdout
    assert "bskt requests cancel 1 --reason" in answer.stdout


async def test_a_request_in_doubt_tells_when_it_is_sent_again(chain: Chain, dsn: str) -> None:
    await chain.grow(requests=(request("DEP-1", chain.next()),))
    await chain.grow(final=1)
    await chain.send("unknown", "The answer (HTTP 502) is not JSON-RPC.")
    shown = (await bskt(dsn, "--output", "json", "requests", "show", "1")).json
    assert shown["label"] == "CRE Validating Reserves"
    assert "The answer (HTTP 502) is not JSON-RPC." in shown["why"]
    assert shown["next"].startswith("The same bytes are sent again, under the same id, from ")
    assert [call["outcome"] for call in shown["calls"]] == ["unknown"]
    assert shown["signer"] == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


async def test_the_timeline_reads_like_a_story(chain: Chain, dsn: str) -> None:
    one = chain.next()
    asked = request("DEP-1", one)
    await chain.grow(baskets=(basket(one),), requests=(asked,), logs=(asked_for(asked, one),))
    # A reorg takes the block away, and the very same transaction is mined again.
    again = block(1, fork="b", parent_fork="a")
    moved = request("DEP-1", again, log_index=5)
    await chain.commit(
        batch(
            again,
            on=block(0),
            leaving=one,
            baskets=(basket(again),),
            requests=(moved,),
            logs=(asked_for(moved, again),),
        )
    )
    two = block(2, fork="b")
    await chain.commit(batch(two, on=again, final=1))
    await chain.send("accepted")
    three = block(3, fork="b")
    minted = (mint(three, of=asked),)
    await chain.commit(
        batch(three, on=two, mints=minted, reports=(report(three, execution_id=execution_id(1)),), final=1)
    )
    await chain.commit(batch(block(4, fork="b"), on=three, final=3))
    story = (await bskt(dsn, "--output", "json", "requests", "timeline", "1")).json
    assert [(line["source"], line["sentence"].partition(".")[0].partition(":")[0]) for line in story] == [
        ("chain", "Asked for on chain in block 1 (orphaned later)"),
        ("indexer", "Recorded"),
        ("chain", "A reorg of 1 block above block 0"),
        ("chain", "Asked for on chain in block 1"),
        ("indexer", "It is final enough, the policy allows it, and it holds its bank reference"),
        ("invocator", "A worker took it"),
        ("invocator", f"Attempt 1 is sent by worker {str(chain.worker)[:8]}"),
        ("invocator", "An attempt begins; from here on it may have been delivered"),
        ("gateway", story[8]["sentence"].partition(".")[0]),
        ("invocator", "CRE accepted it"),
        ("chain", "CRE's delivery succeeded in block 3"),
        ("chain", "1 AUD minted for 0xA1A1a1a1A1A1A1A1A1a1a1a1a1a1A1A1a1A1a1a1 in block 3"),
        ("indexer", "Its mint is on chain, proven by the forwarder's report in the same transaction"),
        ("indexer", "Request and mint are final"),
    ]
    assert story[8]["sentence"].endswith("s, HTTP 200: accepted.")
    told = await bskt(dsn, "requests", "timeline", "1")
    assert "executed → completed" in told.stdout
    assert "Now: Minted 1 AUD in block 3, proven by its report" in told.stderr


async def test_a_basket_is_listed_with_its_requests_and_its_mints(chain: Chain, dsn: str) -> None:
    one = chain.next()
    asked = request("DEP-1", one, amount=5 * ETHER // 2)
    await chain.grow(baskets=(basket(one, name="\u202eevil [red]"),), requests=(asked,))
    await chain.grow(final=1)
    await chain.send("accepted")
    after = chain.next()
    await chain.grow(mints=(mint(after, of=asked),), reports=(report(after, execution_id=execution_id(1)),), final=1)
    (listed,) = (await bskt(dsn, "--output", "json", "baskets", "list")).json
    assert (listed["symbol"], listed["minted"], listed["minted_tokens"]) == ("AUD", str(5 * ETHER // 2), "2.5")
    assert listed["requests"] == {"executed": 1}
    table = await bskt(dsn, "baskets", "list")
    assert "\\u202eevil [red]" in table.stdout
    for name in ("AUD", "0x" + "70" * 20, "0x" + "c0" * 20):
        assert (await bskt(dsn, "--output", "json", "baskets", "show", name)).json == listed
    assert (await bskt(dsn, "baskets", "show", "EUR")).code == Exit.ERROR


async def test_a_basket_that_a_reorg_took_is_shown_only_when_asked_for(chain: Chain, dsn: str) -> None:
    one = chain.next()
    await chain.grow(baskets=(basket(one),))
    await chain.commit(batch(block(1, fork="b", parent_fork="a"), on=block(0), leaving=one))
    assert (await bskt(dsn, "--output", "json", "baskets", "list")).json == []
    (gone,) = (await bskt(dsn, "--output", "json", "baskets", "list", "--orphaned")).json
    assert gone["canonical"] is False


async def test_a_database_without_the_chain_is_not_ready(dsn: str) -> None:
    answer = await bskt(dsn, "requests", "list")
    assert answer.code == Exit.NOT_READY
    assert "`bskt run` writes it at its first start" in answer.stderr


async def test_another_chain_than_the_stored_one_is_refused_with_the_stored_ones(chain: Chain, dsn: str) -> None:
    assert chain.tip.number == 0
    answer = await bskt(dsn, "requests", "list", BSKT_CHAIN_ID="1")
    assert answer.code == Exit.ERROR
    assert f"does not hold chain 1, only {CHAIN}" in answer.stderr


# ---------------------------------------------------------------------------------------------------------------------
# docs/cli.md
# ---------------------------------------------------------------------------------------------------------------------
def documented(heading: str) -> list[Any]:
    """The JSON examples under a heading of docs/cli.md."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.partition(f"### {heading}")[2].partition("\n### ")[0]
    return [json.loads(example) for example in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]


def names(value: Any, below: str = "") -> set[str]:
    """The members of a shape, dotted; a list is what its first item is."""
    if isinstance(value, list):
        return names(value[0], below) if value else set()
    if not isinstance(value, dict):
        return set()
    return {below + name for name in value} | {each for name in value for each in names(value[name], f"{below}{name}.")}


async def test_the_documented_shapes_are_those_that_are_written(chain: Chain, dsn: str) -> None:
    one = chain.next()
    asked = request("DEP-1", one)
    rivals = [request(f"rival {n}", one, log_index=1 + n, bank="DEP-2", beneficiary=bytes([n]) * 20) for n in (1, 2)]
    waiting = request("DEP-3", one, log_index=9)
    await chain.grow(baskets=(basket(one),), requests=(asked, *rivals, waiting))
    await chain.grow(final=1)
    await chain.send("accepted")
    after = chain.next()
    await chain.grow(mints=(mint(after, of=asked),), reports=(report(after, execution_id=execution_id(1)),), final=1)

    async def written(*arguments: str) -> set[str]:
        return names((await bskt(dsn, "--output", "json", *arguments)).json)

    optional = {"held.reason", "held.since"}
    listed, added = documented("`bskt requests list`")
    (shown, waits) = [(await bskt(dsn, "--output", "json", "requests", "show", name)).json for name in ("1", "4")]
    assert names(shown) | names(waits) == (names(listed) | names(added)) - optional
    rows = (await bskt(dsn, "--output", "json", "requests", "list")).json
    assert set().union(*map(names, rows)) == names(listed) - optional
    (line,) = documented("`bskt requests timeline`")
    assert await written("requests", "timeline", "1") == names(line)
    (listed_basket,) = documented("`bskt baskets list`")
    assert {each.partition(".")[0] for each in await written("baskets", "list")} == set(listed_basket)
    (workflow,) = documented("`bskt workflows list`")
    assert await written("workflows", "list") == {each for each in names(workflow) if not each.startswith("breaker.")}
    (status,) = documented("`bskt status`")
    seen = await written("status")
    missing = {each for each in names(status) if not each.startswith(("requests.",))} - seen
    assert {each for each in seen if not each.startswith("requests.")} <= names(status)
    assert all(
        each.startswith(
            ("chain.last_reorg.", "chain.endpoints.", "paused.", "quarantined.", "sends_fail.", "refused_", "alarms.")
        )
        for each in missing
    )
    (finding,) = documented("`bskt check`")
    assert await written("keys", "check") == names(finding)
