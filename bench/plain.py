"""The yardstick: the plain web3.py way into the very same tables, as a tutorial would write it.

``eth.get_logs`` range by range, ``process_log`` for each log, ``executemany`` for each table, one transaction a range.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import orjson
from web3 import AsyncHTTPProvider, AsyncWeb3

from bench.chain import ROOT
from datastore.identity import derive_nonce, request_identity
from datastore.mint_amount import amount_text, predicted_wei
from datastore.reference import expected_reference
from indexer.observation import Sources

CHAIN_ID: Final = 31337
RANGE_BLOCKS: Final = 2_000

_BLOCK: Final = "INSERT INTO block (chain_id, hash, number, timestamp) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
_LOG: Final = """
INSERT INTO log (chain_id, block_hash, log_index, block_number, tx_hash, tx_index, address, topics, data, event)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING
"""
_BASKET: Final = """
INSERT INTO basket (
    chain_id, block_hash, log_index, block_number, stablecoin, consumer, creator, admin, name_raw, symbol_raw, name, symbol
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING
"""
_REQUEST: Final = """
INSERT INTO mint_request (
    chain_id, identity, nonce, emitter, tx_hash, block_hash, block_number, block_timestamp, log_index, stablecoin, consumer,
    requester, beneficiary, amount, predicted_amount, bank_reference, expected_reference
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) ON CONFLICT DO NOTHING
"""
_CONFIRM: Final = """
UPDATE mint_request SET
    state = 'confirmed', state_reason = 'allowed', holds_reference = true, chain_status = 'finalized', state_changed_at = $2
WHERE identity = $1
"""


async def follow(url: str, dsn: str, sources: Sources) -> None:
    """Index everything from block 1 to the finalized block."""
    w3 = AsyncWeb3(AsyncHTTPProvider(url))
    abis = {
        name: orjson.loads((ROOT / "abi" / f"{name}.json").read_bytes())
        for name in ("BasketFactory", "StablecoinERC20")
    }
    created = w3.eth.contract(abi=_entries(abis["BasketFactory"])).events.BasketCreated()
    requested = w3.eth.contract(abi=_entries(abis["StablecoinERC20"])).events.MintRequested()
    topics = [[sources.catalog.basket_created_topic0, *sources.catalog.mint_requested_topics0]]
    consumers: dict[str, str] = {}
    connection = await asyncpg.connect(dsn, server_settings={"role": "bskt_indexer"})
    last = (await w3.eth.get_block("finalized"))["number"]
    start = await w3.eth.get_block(1)
    await connection.execute(
        "INSERT INTO chain VALUES ($1, $2, $3, $2, $4, 1, $2, 0, $5)",
        CHAIN_ID,
        bytes(start["hash"]),
        sources.factory,
        sources.forwarder,
        b"check",
    )
    for first in range(1, last + 1, RANGE_BLOCKS):
        logs = await w3.eth.get_logs(
            {"fromBlock": first, "toBlock": min(last, first + RANGE_BLOCKS - 1), "topics": [list(map(_hex, topics[0]))]}
        )
        blocks: dict[bytes, tuple[object, ...]] = {}
        raw, baskets, requests = [], [], []
        for log in logs:
            place = (CHAIN_ID, bytes(log["blockHash"]), log["logIndex"], log["blockNumber"])
            blocks[place[1]] = (CHAIN_ID, place[1], place[3], int(str(log["blockTimestamp"]), 16))  # type: ignore[typeddict-item]
            joined = b"".join(map(bytes, log["topics"]))
            address, tx_hash, data = _octets(log["address"]), bytes(log["transactionHash"]), bytes(log["data"])
            if bytes(log["topics"][0]) == sources.catalog.basket_created_topic0:
                event, said = "BasketCreated", created.process_log(log)["args"]
                consumers[said["stablecoin"]] = said["mintingConsumer"]
                names = said["name"], said["symbol"]
                baskets.append(
                    (
                        *place,
                        *(_octets(said[name]) for name in ("stablecoin", "mintingConsumer", "creator", "admin")),
                        *(name.encode() for name in names),
                        *names,
                    )
                )
            else:
                event, said = "MintRequested", requested.process_log(log)["args"]
                identity = request_identity(
                    chain_id=CHAIN_ID,
                    emitter=address,
                    tx_hash=tx_hash,
                    topic0=joined[:32],
                    topics=joined,
                    data=data,
                    rank=0,
                )
                nonce = derive_nonce(sources.secret, identity, 0)
                requests.append(
                    (
                        *(
                            CHAIN_ID,
                            identity,
                            nonce,
                            address,
                            tx_hash,
                            place[1],
                            place[3],
                            blocks[place[1]][3],
                            place[2],
                        ),
                        *(address, _octets(consumers[log["address"]]), _octets(said["requester"])),
                        *(_octets(said["beneficiary"]), said["amount"], predicted_wei(amount_text(said["amount"]))),
                        *(said["bankReference"], expected_reference(said["bankReference"], nonce)),
                    )
                )
            raw.append((*place, tx_hash, log["transactionIndex"], address, joined, data, event))
        async with connection.transaction():
            await connection.executemany(_BLOCK, blocks.values())
            await connection.executemany(_LOG, raw)
            await connection.executemany(_BASKET, baskets)
            await connection.executemany(_REQUEST, requests)
            now = datetime.now(UTC)
            await connection.executemany(_CONFIRM, [(request[1], now) for request in requests])
    await connection.close()
    await w3.provider.disconnect()


def _entries(content: Any) -> Any:
    return content["abi"] if isinstance(content, dict) else content


def _octets(address: str) -> bytes:
    return bytes.fromhex(address[2:])


def _hex(topic: bytes) -> str:
    return "0x" + topic.hex()
