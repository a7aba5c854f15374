"""Ask the chain what the invocator wants to know before a first send: a basket's contracts, and the request itself."""

from __future__ import annotations

from typing import Final

from eth_hash.auto import keccak

from datastore.rows import LogRow
from invocator.preflight import Contracts
from node.blocks import Receipt
from node.errors import BlockUnknown, CallReverted, EndpointChanged, HistoryPruned, NodeUnavailable
from node.node import Node

_WORD_BYTES: Final = 32
_ADDRESS_BYTES: Final = 20
_MOST_DECIMALS: Final = 255  # a uint8, whatever a token says


async def read_contracts(node: Node, *, token: bytes, consumer: bytes) -> Contracts | None:
    """What the contracts say at the node's head; ``None`` if the node does not answer."""
    try:
        is_minter = _number(await _asked(node, token, "isMinter(address)", consumer))
        stablecoin = _number(await _asked(node, consumer, "getStablecoin()"))
        decimals = _number(await _asked(node, token, "decimals()"))
    except (NodeUnavailable, BlockUnknown):
        return None
    return Contracts(
        is_minter=None if is_minter is None else is_minter != 0,
        stablecoin=None if stablecoin is None else stablecoin.to_bytes(_WORD_BYTES, "big")[-_ADDRESS_BYTES:],
        decimals=None if decimals is None else min(decimals, _MOST_DECIMALS),
    )


async def is_witnessed(node: Node, request: LogRow) -> bool | None:
    """Whether the receipt of its transaction holds the request, by two endpoints where so many answer (hard case 20).

    One of them may be the one that the row is from; both are not.  ``None`` while nobody can say.
    """
    asked, witnesses, number = None, 0, request.block_number
    for _ in range(2):
        try:
            async with node.second_opinion(than=asked, reaching=number, from_block=number) as session:
                if session.node.endpoint_name == asked:
                    break
                asked = session.node.endpoint_name
                receipt = await session.node.transaction_receipt(request.tx_hash)
        except HistoryPruned:
            continue
        except (NodeUnavailable, EndpointChanged, BlockUnknown):
            return None
        if receipt is None or not _holds(receipt, request):
            return False
        witnesses += 1
    return True if witnesses else None


def _holds(receipt: Receipt, request: LogRow) -> bool:
    wanted = (request.block_hash, request.log_index, request.address, request.topics, request.data)
    return any(
        (log.block_hash, log.log_index, log.address, b"".join(log.topics), log.data) == wanted for log in receipt.logs
    )


async def _asked(node: Node, contract: bytes, signature: str, argument: bytes = b"") -> bytes:
    """What a view function returns; empty where the contract has none of this name (it reverts, or says nothing)."""
    data = keccak(signature.encode())[:4] + (argument.rjust(_WORD_BYTES, b"\0") if argument else b"")
    try:
        return await node.call(contract, data)
    except CallReverted:
        return b""


def _number(answer: bytes) -> int | None:
    return int.from_bytes(answer, "big") if len(answer) == _WORD_BYTES else None
