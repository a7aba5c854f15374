"""What follows when an endpoint denies a block that is stored as final (ADR 13)."""

from __future__ import annotations

from datastore import pinning, sweeping
from datastore.connection import Pool
from datastore.errors import FinalityViolated
from node.errors import EndpointOnOtherFork
from node.node import Node


async def denial(pool: Pool, chain_id: int, node: Node, *, up_to: int) -> FinalityViolated | EndpointOnOtherFork:
    """The error to raise where a session's endpoint leaves our newest block at or below ``up_to``, which is final.

    One endpoint of several is on another fork until a second one shows the same block there: it is alarmed, and the
    session that the error leaves sets it aside.  Two of them, or the only one, speak for the chain: a person must look.

    Args:
        pool: The indexer's.
        chain_id: The chain.
        node: The session's.
        up_to: A final height, at or above the first stored block.

    Raises:
        NodeAnswerInvalid: The endpoint shows our block when it is asked for it: it contradicts itself.
        NodeUnavailable, BlockUnknown: Not known; call again.
        DatastoreUnavailable: Call again.
    """
    final = await sweeping.newest_block(pool, chain_id, up_to=up_to)
    if final is None:
        raise LookupError(f"no block is stored at or below block {up_to}")
    denied = await node.final_block_denied(final.number, final.hash)
    if not node.is_alone and len(denied.denied_by) == 1:
        await pinning.alarm_other_fork(pool, chain_id, f"{denied}.  It is left out until it shows our block.")
        return denied
    return FinalityViolated(f"{_sentence(denied)}; nothing was changed")


def _sentence(denied: EndpointOnOtherFork) -> str:
    names = " and ".join(denied.denied_by)
    subject = f"endpoint {names}, the only one, denies" if len(denied.denied_by) == 1 else f"endpoints {names} deny"
    return f"{subject} our final block {denied.number}, 0x{denied.expected.hex()}"
