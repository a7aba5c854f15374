"""Ask the chain whether a consumer refuses a used bank reference for ever, for a person's second id or second request.

No call can show what a contract will do in every state to come; its code can.  So the code is compared, byte for byte,
with the code of contracts that are known to mint a reference once: no admin, no proxy and no upgrade is in it.  Only
the places of its immutables differ between deployments (which token, whose policy), and nothing that decides about a
reference reads them.  A consumer that answers as such a contract would, and is none, proves nothing.

What is asked of one block's state is asked by the block's hash, of each configured endpoint by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from eth_hash.auto import keccak

from datastore.instructions import ConsumerAnswer, Evidence
from node.errors import CallReverted, NodeError
from node.node import Node
from service.endpoints import one_node
from service.settings import Settings

_WORD_BYTES: Final = 32
_ADDRESS_BYTES: Final = 20
_IMPLEMENTATION_SLOT: Final = (int.from_bytes(keccak(b"eip1967.proxy.implementation"), "big") - 1).to_bytes(32, "big")
_IS_REFERENCE_USED: Final = keccak(b"isReferenceUsed(bytes32)")[:4]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCode:
    """Code that mints a reference once, for ever.

    ``code_hash``: keccak of the ``code_bytes`` deployed bytes, with zeros for the immutables: 32 bytes at each of
    ``immutables_at``.
    """

    contract: str
    code_bytes: int
    code_hash: bytes
    immutables_at: Sequence[int]


KNOWN_CODES: Final = (
    KnownCode(
        contract="MintingConsumerOnce",
        code_bytes=2110,
        code_hash=bytes.fromhex("46f9ac7bc9bcfe919a1a34f889e5baaf737dee581f4fea7b7797186f09d53b98"),
        immutables_at=(265, 345, 746, 1028, 1295),
    ),
)


def known_contract(code: bytes) -> str | None:
    """The contract whose code it is, of those that refuse a used reference for ever."""
    return next((known.contract for known in KNOWN_CODES if _is(known, code)), None)


def _is(known: KnownCode, code: bytes) -> bool:
    blank = bytearray(code)
    for at in known.immutables_at:
        blank[at : at + _WORD_BYTES] = bytes(_WORD_BYTES)
    return len(code) == known.code_bytes and keccak(bytes(blank)) == known.code_hash


async def ask(settings: Settings, evidence: Evidence) -> Evidence:
    """The evidence with what each endpoint of BSKT_RPC_URL answers; none is asked of a block that the index lacks."""
    block_hash = evidence.block_hash
    if block_hash is None:
        return evidence
    asked = await asyncio.gather(
        *(_ask_one(settings, number, evidence, block_hash) for number in range(len(settings.rpc_url)))
    )
    return replace(
        evidence,
        answers=tuple(
            (str(number), answer) for number, answer in enumerate(asked) if isinstance(answer, ConsumerAnswer)
        ),
        failures=tuple((str(number), answer) for number, answer in enumerate(asked) if isinstance(answer, str)),
    )


async def _ask_one(settings: Settings, number: int, evidence: Evidence, block_hash: bytes) -> ConsumerAnswer | str:
    """Its answer, or why there is none."""
    node = one_node(settings, number)
    try:
        return await look_at(node, evidence.consumer, evidence.reference, block_hash)
    except (NodeError, UnreadableAnswer) as error:
        return str(error)
    finally:
        await node.close()


class UnreadableAnswer(Exception):
    """A contract whose code is known answered what that code cannot: take nothing from the endpoint."""


async def look_at(node: Node, consumer: bytes, reference: bytes, block: bytes) -> ConsumerAnswer:
    """What the consumer is by the state after ``block``, and what it says of ``reference``.

    Raises:
        NodeError, UnreadableAnswer: There is no answer of this node.
    """
    code = await node.code(consumer, block)
    implementation = await node.storage(consumer, _IMPLEMENTATION_SLOT, block)
    contract = known_contract(code)
    return ConsumerAnswer(
        code_hash=keccak(code) if code else None,
        implementation=implementation[-_ADDRESS_BYTES:] if any(implementation) else None,
        contract=contract,
        reference_is_used=None if contract is None else await _is_used(node, consumer, reference, block),
    )


async def _is_used(node: Node, consumer: bytes, reference: bytes, block: bytes) -> bool:
    try:
        answer = await node.call(consumer, _IS_REFERENCE_USED + reference, block)
    except CallReverted as error:
        raise UnreadableAnswer(str(error)) from error
    if len(answer) != _WORD_BYTES or int.from_bytes(answer, "big") not in {0, 1}:
        raise UnreadableAnswer(f"isReferenceUsed answered 0x{answer[:_WORD_BYTES].hex()}")
    return answer[-1] == 1
