"""Whether a consumer refuses used references for ever, asked of a real chain; and the command that acts on it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from datastore.connection import Pool
from datastore.identity import secret_check_value
from datastore.instructions import ConsumerAnswer, Evidence, Unproven
from datastore.rows import Block
from service import evidence
from service.console import Exit
from service.demo.anvil import Anvil
from service.demo.contracts import DevChain, System, call, create_basket, deliver, deploy_system, mint_report
from service.evidence import KNOWN_CODES, known_contract
from service.settings import Settings, load
from tests.datastore.builders import CONSUMER, basket, batch, reference, request
from tests.service.rows import Answer, Chain, bskt

ARTIFACTS = Path(__file__).parents[2] / "contracts" / "artifacts"
REFERENCE = reference("DEP-1")
SECRET = bytes(range(32))
SLOT = int.from_bytes(keccak(b"eip1967.proxy.implementation"), "big") - 1
ZERO_TO_EVERYTHING = bytes.fromhex("5f5f5260205ff3")  # also to isReferenceUsed, as an honest one would
DELEGATE = bytes.fromhex(f"365f5f375f5f365f7f{SLOT:064x}545af43d5f5f3e5f3d91603757fd5bf3")
UNREACHABLE = "http://127.0.0.1:1/"


def code_of(contract: str) -> bytes:
    artifact = json.loads((ARTIFACTS / f"{contract}.json").read_text(encoding="utf-8"))
    return bytes.fromhex(artifact["deployedBytecode"][2:])


ONCE = code_of("MintingConsumerOnce")
(KNOWN,) = KNOWN_CODES
IMMUTABLE = {at + n for at in KNOWN.immutables_at for n in range(32)}


# -- the code ---------------------------------------------------------------------------------------------------------
def test_the_known_code_is_that_of_the_contract_that_mints_a_reference_once() -> None:
    assert known_contract(ONCE) == "MintingConsumerOnce"
    assert known_contract(code_of("MintingConsumer")) is None
    # What may differ is what the compiler left open: a word of zeros to push, and nothing else.
    assert {n for n in range(len(ONCE)) if ONCE[n - 1 : n + 32] == b"\x7f" + bytes(32)} == set(KNOWN.immutables_at)


def test_the_known_code_can_neither_be_replaced_nor_run_code_of_others_in_its_place() -> None:
    operations, at = set(), 0
    while at < len(ONCE):
        operations.add(ONCE[at])
        at += 1 + max(0, ONCE[at] - 0x5F) * (0x60 <= ONCE[at] <= 0x7F)  # what PUSH1 to PUSH32 push is no operation
    assert operations & {0xF2: "CALLCODE", 0xF4: "DELEGATECALL", 0xFF: "SELFDESTRUCT"}.keys() == set()


@given(st.integers(0, len(ONCE) - 1), st.integers(1, 255))
def test_no_byte_of_the_code_may_differ_but_those_of_its_immutables(place: int, change: int) -> None:
    changed = bytearray(ONCE)
    changed[place] ^= change
    assert (known_contract(bytes(changed)) is not None) == (place in IMMUTABLE)


@given(st.integers(0, len(ONCE) - 1), st.binary(min_size=1, max_size=40))
def test_code_that_was_cut_or_has_more_at_its_end_is_not_known(length: int, more: bytes) -> None:
    assert known_contract(ONCE[:length]) is None
    assert known_contract(ONCE + more) is None


# -- the chain --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Consumers:
    """Of each kind one, by name: what it is shows only in its code."""

    chain: DevChain
    url: str
    system: System
    by_kind: dict[str, bytes]

    async def head(self) -> tuple[bytes, int]:
        """The newest block: its hash and time."""
        block = await self.chain.rpc("eth_getBlockByNumber", "latest", False)
        return bytes.fromhex(block["hash"][2:]), int(block["timestamp"], 16)

    async def ask(self, kind: str, block_hash: bytes, *urls: str) -> Evidence:
        asked = Evidence(block_number=7, block_hash=block_hash, consumer=self.by_kind[kind], reference=REFERENCE)
        return await evidence.ask(settings(*(urls or (self.url,))), asked)

    async def answer(self, kind: str, block_hash: bytes) -> ConsumerAnswer:
        ((_, answer),) = (await self.ask(kind, block_hash)).answers
        return answer


def settings(*urls: str) -> Settings:
    return load({}, environ={"BSKT_RPC_URL": ",".join(urls)})


@pytest.fixture
async def consumers(anvil_binary: Path) -> AsyncIterator[Consumers]:
    async with await Anvil.start(anvil_binary) as anvil, aiohttp.ClientSession() as session:
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain, factory="once")
        plain = await deploy_system(chain)
        once = (await create_basket(chain, system.factory, name="A", symbol="A")).consumer
        liar, proxy = bytes([0x11]) * 20, bytes([0x12]) * 20
        for address, code in ((liar, ZERO_TO_EVERYTHING), (proxy, DELEGATE)):
            await chain.rpc("anvil_setCode", f"0x{address.hex()}", f"0x{code.hex()}")
        implementation = f"0x{once.rjust(32, bytes(1)).hex()}"
        await chain.rpc("anvil_setStorageAt", f"0x{proxy.hex()}", hex(SLOT), implementation)
        by_kind = {
            "once": once,
            "plain": (await create_basket(chain, plain.factory, name="B", symbol="B")).consumer,
            "liar": liar,
            "proxy": proxy,
            "nobody": bytes([0x13]) * 20,
        }
        await chain.mine()
        yield Consumers(chain=chain, url=anvil.url, system=system, by_kind=by_kind)


async def mint(consumers: Consumers, number: int) -> bool:
    """Whether the report of an execution of this number minted."""
    report = mint_report(recipient=CONSUMER, amount_wei=1, bank_reference=REFERENCE)
    receipt = await deliver(
        consumers.chain,
        consumers.system.forwarder,
        consumers.by_kind["once"],
        workflow_id=bytes(32),
        execution_id=number.to_bytes(32, "big"),
        report=report,
    )
    return any(receipt.logs[-1].data)


async def test_a_consumer_of_the_known_code_says_of_each_block_whether_the_reference_was_used_by_then(
    consumers: Consumers,
) -> None:
    before, _ = await consumers.head()
    assert [await mint(consumers, number) for number in (1, 2)] == [True, False]
    after, _ = await consumers.head()
    code_hash = keccak(
        bytes.fromhex((await consumers.chain.rpc("eth_getCode", hex_of(consumers, "once"), "latest"))[2:])
    )
    for block_hash, is_used in ((before, False), (after, True)):
        assert await consumers.answer("once", block_hash) == ConsumerAnswer(
            code_hash=code_hash, implementation=None, contract="MintingConsumerOnce", reference_is_used=is_used
        )


def hex_of(consumers: Consumers, kind: str) -> str:
    return f"0x{consumers.by_kind[kind].hex()}"


@pytest.mark.parametrize("kind", ["plain", "liar", "proxy", "nobody"])
async def test_no_other_consumer_is_taken_for_one_that_refuses_whatever_it_answers(
    consumers: Consumers, kind: str
) -> None:
    if kind in {"liar", "proxy"}:
        question = call(consumers.by_kind[kind], "isReferenceUsed(bytes32)", REFERENCE)
        assert await consumers.chain.ask(question, "bool") == (False,)
    block_hash, _ = await consumers.head()
    answer = await consumers.answer(kind, block_hash)
    assert (answer.contract, answer.reference_is_used) == (None, None)
    assert answer.implementation == (consumers.by_kind["once"] if kind == "proxy" else None)
    assert (answer.code_hash is None) is (kind == "nobody")


async def test_an_endpoint_that_does_not_answer_or_does_not_know_the_block_is_named_without_its_url(
    consumers: Consumers,
) -> None:
    block_hash, _ = await consumers.head()
    found = await consumers.ask("once", block_hash, consumers.url, UNREACHABLE)
    assert [name for name, _ in found.answers] == ["0"]
    ((name, why),) = found.failures
    assert (name, UNREACHABLE in why) == ("1", False)
    unknown = await consumers.ask("once", bytes(32))
    assert (unknown.answers, [name for name, _ in unknown.failures]) == ((), ["0"])


async def test_nothing_is_asked_about_a_block_that_the_index_does_not_hold() -> None:
    asked = Evidence(block_number=7, block_hash=None, consumer=CONSUMER, reference=REFERENCE)
    assert await evidence.ask(settings(UNREACHABLE), asked) == asked


# -- the command ------------------------------------------------------------------------------------------------------
async def failed_long_ago(dsn: str, indexer: Pool, invocator: Pool, consumers: Consumers, kind: str) -> int:
    """A request that was sent to that consumer and not delivered; the number of a final block of the real chain."""
    consumer = consumers.by_kind[kind]
    rows = await Chain.pinned(indexer, invocator)
    one = rows.next()
    asked = request("DEP-1", one, consumer=consumer)
    await rows.grow(baskets=(basket(one)._replace(consumer=consumer),), requests=(asked,))
    await rows.grow(final=1, trigger=1)
    await rows.send("accepted")
    block_hash, timestamp = await consumers.head()
    number = rows.tip.number + 1
    final = Block(number=number, hash=block_hash, parent_hash=rows.tip.hash, timestamp=timestamp)
    await rows.commit(batch(final, on=rows.tip, final=number))
    owner = await asyncpg.connect(dsn)
    await owner.execute("SET session_replication_role = replica")
    await owner.execute("UPDATE attempt SET started_at = started_at - interval '1 day'")
    await owner.execute("UPDATE frozen_request SET receiver = $1", consumer)
    await owner.execute("UPDATE mint_request SET state = 'failed', state_reason = 'not_delivered', deadline_at = NULL")
    await owner.execute("UPDATE chain SET secret_check = $1", secret_check_value(SECRET))
    await owner.close()
    return number


async def new_generation(dsn: str, number: int, *urls: str, **environment: str) -> Answer:
    return await bskt(
        dsn,
        *("--output", "json", "requests", "retry", "1", "--new-generation", "--evidence-block", str(number)),
        *("--operator", "alice", "--reason", "ticket 7", "--yes"),
        BSKT_RPC_URL=",".join(urls),
        BSKT_TRIGGER_FINALITY="finalized",
        BSKT_INSTANCE_SECRET=SECRET.hex(),
        **environment,
    )


async def test_a_sent_request_gets_a_new_id_where_the_chain_shows_that_the_consumer_refuses_used_references(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, consumers: Consumers
) -> None:
    number = await failed_long_ago(dsn, indexer_pool, invocator_pool, consumers, "once")
    done = await new_generation(dsn, number, consumers.url, consumers.url)
    assert (done.code, done.json["outcome"], done.json["after"]["generation"]) == (Exit.DONE, "done", 1)
    kept = json.loads(await indexer_pool.fetchval("SELECT evidence FROM operator_action"))
    block_hash, _ = await consumers.head()
    assert (kept["block_hash"], kept["consumer"]) == (f"0x{block_hash.hex()}", hex_of(consumers, "once"))
    assert [(name, kept["answers"][name]["contract"]) for name in kept["answers"]] == [
        ("0", "MintingConsumerOnce"),
        ("1", "MintingConsumerOnce"),
    ]


@pytest.mark.parametrize(
    ("kind", "unproven"),
    [
        ("plain", Unproven.CONSUMER_UNKNOWN),
        ("liar", Unproven.CONSUMER_UNKNOWN),
        ("nobody", Unproven.CONSUMER_UNKNOWN),
        ("proxy", Unproven.CONSUMER_UPGRADEABLE),
    ],
)
async def test_a_sent_request_gets_no_new_id_at_any_other_consumer(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, consumers: Consumers, kind: str, unproven: Unproven
) -> None:
    number = await failed_long_ago(dsn, indexer_pool, invocator_pool, consumers, kind)
    refused = await new_generation(dsn, number, consumers.url)
    assert (refused.code, refused.json["unproven"]) == (Exit.ERROR, unproven)
    assert await indexer_pool.fetchval("SELECT count(*) FROM operator_action") == 0


async def test_a_used_reference_a_silent_second_endpoint_and_a_later_deadline_are_refusals(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool, consumers: Consumers
) -> None:
    assert await mint(consumers, 1)  # which the index missed
    number = await failed_long_ago(dsn, indexer_pool, invocator_pool, consumers, "once")
    told = [
        await new_generation(dsn, number, consumers.url),
        await new_generation(dsn, number, consumers.url, UNREACHABLE),
        await new_generation(dsn, number, consumers.url, BSKT_COMPLETION_DEADLINE_SECONDS="86400"),
        await new_generation(dsn, number + 1, consumers.url),
    ]
    assert [(each.code, each.json["unproven"]) for each in told] == [
        (Exit.ERROR, Unproven.REFERENCE_USED),
        (Exit.ERROR, Unproven.TOO_FEW_ENDPOINTS),
        (Exit.ERROR, Unproven.BLOCK_TOO_EARLY),
        (Exit.ERROR, Unproven.BLOCK_NOT_HELD),
    ]
