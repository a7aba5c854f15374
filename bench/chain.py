"""Chains to measure on: built once on a real anvil, kept as its own state file, the same bytes in every run."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import rlp  # type: ignore[import-untyped]
from eth_utils.crypto import keccak

from service.demo.anvil import Anvil, find_or_install_anvil
from service.demo.contracts import (
    Call,
    DevChain,
    System,
    batch_call,
    create_basket_call,
    deploy_system,
    request_mint_call,
)

ROOT: Final = Path(__file__).parents[1]
CACHE_DIR: Final = ROOT / ".cache"

_GENESIS_SECONDS: Final = 1_700_000_000
_BLOCK_GAS: Final = 1_000_000_000
_TRANSACTIONS_A_BATCH: Final = 50
_BASKETS_A_TRANSACTION: Final = 50
_FORMAT: Final = 1  # part of the cached file's name: raise it when a chain would be built otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a chain holds: ``events`` requests in each of ``full_blocks`` blocks, ``gap`` empty ones after each block."""

    name: str
    baskets: int
    full_blocks: int
    events: int
    gap: int = 0

    @property
    def requests(self) -> int:
        """How many requests there are in all."""
        return self.full_blocks * self.events


PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile(name="default", baskets=50, full_blocks=10_000, events=10),
        Profile(name="dense", baskets=50, full_blocks=2_000, events=200),
        Profile(name="sparse", baskets=2, full_blocks=1_000, events=1, gap=99),
        Profile(name="baskets", baskets=10_000, full_blocks=200, events=100),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltChain:
    """A running node that holds a profile's chain."""

    url: str
    factory: bytes
    forwarder: bytes
    pid: int


@asynccontextmanager
async def running(profile: Profile) -> AsyncIterator[BuiltChain]:
    """A real anvil with the profile's chain; built now, if this is the first time."""
    binary = await asyncio.to_thread(find_or_install_anvil, configured=None, cache_dir=CACHE_DIR)
    state = CACHE_DIR / "bench" / f"{profile.name}-{_FORMAT}.state"
    about = state.with_suffix(".json")
    if not about.exists():
        await _build(profile, binary, state, about)
    system = orjson.loads(about.read_bytes())
    async with await _anvil(binary, "--load-state", str(state)) as anvil:
        yield BuiltChain(
            url=anvil.url,
            factory=bytes.fromhex(system["factory"]),
            forwarder=bytes.fromhex(system["forwarder"]),
            pid=anvil._process.pid,  # noqa: SLF001 - its processor time is measured too
        )


async def _anvil(binary: Path, *options: str) -> Anvil:
    return await Anvil.start(
        binary,
        slots_in_an_epoch=1,
        extra_options=[
            "--prune-history",
            "--gas-limit",
            str(_BLOCK_GAS),
            "--timestamp",
            str(_GENESIS_SECONDS),
            *options,
        ],
    )


async def _build(profile: Profile, binary: Path, state: Path, about: Path) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    unfinished = state.with_suffix(".unfinished")
    print(f"building the chain {profile.name} (once) …", flush=True)
    async with await _anvil(binary) as anvil, aiohttp.ClientSession() as session:
        chain = DevChain(session=session, url=anvil.url)
        await chain.rpc("anvil_setBlockTimestampInterval", 12)
        system = await deploy_system(chain)
        tokens = await _create_baskets(chain, session, anvil.url, system, profile.baskets)
        await _make_requests(session, anvil.url, system, tokens, profile)
        await chain.mine(4)
        dumped = await chain.rpc("anvil_dumpState", False)
    await asyncio.to_thread(_write_state, unfinished, dumped, profile.gap)
    unfinished.rename(state)
    about.write_bytes(orjson.dumps({"factory": system.factory.hex(), "forwarder": system.forwarder.hex()}))


def _write_state(path: Path, dumped: str, gap: int) -> None:
    state = gzip.decompress(bytes.fromhex(dumped.removeprefix("0x")))
    path.write_bytes(orjson.dumps(_stretched(orjson.loads(state), gap)) if gap else state)


def _stretched(state: dict[str, Any], gap: int) -> dict[str, Any]:
    """The same chain with ``gap`` empty blocks after each of its blocks.

    anvil's own mining takes longer with each block: a hundred thousand would take it hours.
    """
    blocks = sorted(state["blocks"], key=lambda block: int(block["header"]["number"], 16))
    empty = next(block for block in blocks[1:] if not block["transactions"])
    moved: dict[str, tuple[str, int]] = {}
    chain: list[dict[str, Any]] = [blocks[0]]
    tip = _block_hash(blocks[0]["header"])
    for block, after in pairwise([*blocks, None]):
        if after is None:
            break
        if after["header"]["parentHash"] != _block_hash(block["header"]):
            raise AssertionError("the hash of a header is not what anvil says")
        for each in [after, *[empty] * gap]:
            header = each["header"] | {
                "parentHash": tip,
                "number": hex(len(chain)),
                "timestamp": hex(_GENESIS_SECONDS + 12 * len(chain)),
                "stateRoot": after["header"]["stateRoot"],
            }
            tip = _block_hash(header)
            if each is after:
                moved[_block_hash(after["header"])] = tip, len(chain)
            chain.append(each | {"header": header})
    for transaction in state["transactions"]:
        transaction["block_hash"], transaction["block_number"] = moved[transaction["block_hash"]]
    last = chain[-1]["header"]
    about = state["block"] | {"number": last["number"], "timestamp": last["timestamp"]}
    return state | {"blocks": chain, "best_block_number": len(chain) - 1, "block": about}


def _block_hash(header: dict[str, str]) -> str:
    """Of a header as anvil writes it, in the order of the Prague fork."""
    numbers = {
        "difficulty",
        "number",
        "gasLimit",
        "gasUsed",
        "timestamp",
        "baseFeePerGas",
        "blobGasUsed",
        "excessBlobGas",
    }
    fields = [
        int(value, 16).to_bytes(-(-int(value, 16).bit_length() // 8), "big")
        if name in numbers
        else bytes.fromhex(value[2:])
        for name, value in header.items()
    ]
    return "0x" + keccak(rlp.encode(fields)).hex()


async def _create_baskets(
    chain: DevChain, session: aiohttp.ClientSession, url: str, system: System, count: int
) -> Sequence[bytes]:
    calls = [create_basket_call(system.factory, name=f"Basket {n}", symbol=f"B{n}") for n in range(count)]
    transactions = [
        batch_call(system.batch, calls[start : start + _BASKETS_A_TRANSACTION])
        for start in range(0, count, _BASKETS_A_TRANSACTION)
    ]
    await _send(session, url, transactions)
    topic = "0x" + keccak(text="BasketCreated(address,address,address,address,string,string)").hex()
    logs = await chain.rpc(
        "eth_getLogs", {"fromBlock": "0x0", "address": "0x" + system.factory.hex(), "topics": [topic]}
    )
    return [bytes.fromhex(log["topics"][3][26:]) for log in logs]


async def _make_requests(
    session: aiohttp.ClientSession, url: str, system: System, tokens: Sequence[bytes], profile: Profile
) -> None:
    number = 0
    for start in range(0, profile.full_blocks, _TRANSACTIONS_A_BATCH):
        transactions = []
        for _ in range(start, min(profile.full_blocks, start + _TRANSACTIONS_A_BATCH)):
            calls = []
            for _ in range(profile.events):
                calls.append(
                    request_mint_call(
                        tokens[number % len(tokens)],
                        beneficiary=hashlib.sha256(b"beneficiary %d" % number).digest()[:20],
                        amount_wei=(number % 1_000 + 1) * 10**18 + 10**17 * (number % 10),
                        bank_reference=b"DEPOSIT-%d" % number + bytes(24 - len(b"%d" % number)),
                    )
                )
                number += 1
            transactions.append(batch_call(system.batch, calls))
        await _send(session, url, transactions)


async def _send(session: aiohttp.ClientSession, url: str, transactions: Sequence[Call]) -> None:
    """Mine each transaction in a block of its own."""
    sender = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    for start in range(0, len(transactions), _TRANSACTIONS_A_BATCH):
        requests: list[dict[str, Any]] = []
        for each in transactions[start : start + _TRANSACTIONS_A_BATCH]:
            assert each.to is not None
            transaction = {
                "from": sender,
                "to": "0x" + each.to.hex(),
                "data": "0x" + each.data.hex(),
                "gas": hex(_BLOCK_GAS // 5),
            }
            requests.append({"method": "eth_sendTransactionSync", "params": [transaction]})
        for request in [{"jsonrpc": "2.0", "id": n, **each} for n, each in enumerate(requests)]:
            async with session.post(url, json=request) as response:
                answer = orjson.loads(await response.read())
            if "error" in answer or (isinstance(answer["result"], dict) and answer["result"]["status"] != "0x1"):
                raise AssertionError(f"the chain could not be built: {answer}")
