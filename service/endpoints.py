"""Ask each configured node how it is, once, for the commands that tell a person.  Never shows a URL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from node.capabilities import Feature
from node.endpoint import Observe, RpcEndpoint
from node.errors import NodeError, NodeRefused
from node.health import EndpointState
from node.node import Node
from node.pool import EndpointPool
from node.refusals import Refusal
from service.settings import Settings

TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What one node said; ``name`` is its place in BSKT_RPC_URL, from 0 on; ``reason`` says why it is not alive."""

    name: str
    state: EndpointState
    head: int | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What one node can do, as it showed when it was tried: so much and not more was asked of it.

    ``range_blocks`` is 0 where it gives no logs by range.
    """

    batch_size: int
    range_blocks: int
    lacks: tuple[Feature, ...]


def rpc_endpoint(settings: Settings, number: int, *, timeout_seconds: float, observe: Observe) -> RpcEndpoint:
    """The node at one place of BSKT_RPC_URL, with the headers that are for it."""
    return RpcEndpoint(
        str(number),
        settings.rpc_url[number].get_secret_value(),
        request_timeout_seconds=timeout_seconds,
        max_answer_bytes=settings.rpc_max_answer_bytes,
        observe=observe,
        headers={
            header.name: header.value.get_secret_value()
            for header in settings.rpc_headers
            if header.endpoint in {None, number}
        },
    )


def one_node(settings: Settings, number: int, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Node:
    """The node at one place of BSKT_RPC_URL, alone; the caller closes it."""
    endpoint = rpc_endpoint(settings, number, timeout_seconds=timeout_seconds, observe=lambda *_: None)
    return Node(EndpointPool([endpoint]), max_logs=settings.rpc_max_logs)


async def tried(settings: Settings, node: Node) -> Abilities:
    """Let one node that answers show what it can do.

    Raises:
        NodeError: It does not answer.
    """
    range_blocks = await node.show_all(settings.max_log_range_blocks)
    (report,) = node.reports()
    return Abilities(batch_size=report.batch_size, range_blocks=range_blocks, lacks=report.lacks)


async def try_all(settings: Settings, chain_id: int) -> list[tuple[Endpoint, Abilities | None]]:
    """Every configured node, and what it can do where it answers."""

    async def one(number: int) -> tuple[Endpoint, Abilities | None]:
        found = await _ask_one(settings, number, chain_id)
        if found.state is not EndpointState.ALIVE:
            return found, None
        node = one_node(settings, number)
        try:
            return found, await tried(settings, node)
        except NodeError as error:
            is_limited = isinstance(error, NodeRefused) and error.refusal is Refusal.RATE_LIMITED
            state = EndpointState.RATE_LIMITED if is_limited else EndpointState.UNREACHABLE
            return replace(found, state=state, reason=str(error)), None
        finally:
            await node.close()

    return list(await asyncio.gather(*map(one, range(len(settings.rpc_url)))))


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
