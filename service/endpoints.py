"""Ask each configured node how it is, once, for the commands that tell a person.  Never shows a URL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from node.endpoint import RpcEndpoint
from node.errors import NodeError
from node.health import EndpointState
from node.node import Node
from service.settings import Settings

TIMEOUT_SECONDS: Final = 5.0
_MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What one node said; ``name`` is its place in BSKT_RPC_URL, from 0 on; ``reason`` says why it is not alive."""

    name: str
    state: EndpointState
    head: int | None
    reason: str | None = None


def one_node(settings: Settings, number: int, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Node:
    """The node at one place of BSKT_RPC_URL, alone; the caller closes it."""
    endpoint = RpcEndpoint(
        str(number),
        settings.rpc_url[number].get_secret_value(),
        request_timeout_seconds=timeout_seconds,
        max_answer_bytes=_MAX_ANSWER_BYTES,
        observe=lambda *_: None,
    )
    return Node([endpoint])


async def ask(settings: Settings, chain_id: int) -> list[Endpoint]:
    """Every configured node, asked at the same time."""
    return list(
        await asyncio.gather(*(_ask_one(settings, number, chain_id) for number in range(len(settings.rpc_url))))
    )


async def _ask_one(settings: Settings, number: int, chain_id: int) -> Endpoint:
    node = one_node(settings, number)
    try:
        found = await node.chain_id()
        if found != chain_id:
            return Endpoint(
                name=str(number), state=EndpointState.WRONG_CHAIN, head=None, reason=f"it serves chain {found}"
            )
        return Endpoint(name=str(number), state=EndpointState.ALIVE, head=(await node.head()).number)
    except NodeError as error:
        return Endpoint(name=str(number), state=EndpointState.UNREACHABLE, head=None, reason=str(error))
    finally:
        await node.close()
