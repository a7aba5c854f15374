"""Which chain an endpoint must serve, and how it shows that (hard cases 14, 27)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from eth_hash.auto import keccak

from node.blocks import Header, parse_header, parse_octets, parse_quantity, to_hex
from node.errors import ChainMismatch, EndpointLags

T = TypeVar("T")


class Asker(Protocol):
    """Who asks an endpoint: one URL, or one URL as a member of a pool."""

    @property
    def name(self) -> str:
        """For people, and a metric's label."""

    async def call(self, method: str, params: Sequence[object], parse: Callable[[object], T]) -> T:
        """See ``RpcEndpoint.call``."""

    async def batch(self, method: str, questions: Sequence[Sequence[object]], parse: Callable[[object], T]) -> list[T]:
        """See ``RpcEndpoint.batch``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainIdentity:
    """What must be the same wherever the chain is asked; ``None`` is not known yet, and not checked."""

    chain_id: int
    genesis_hash: bytes | None = None
    factory_address: bytes | None = None
    factory_code_hash: bytes | None = None


async def require_identity(asker: Asker, identity: ChainIdentity) -> None:
    """Check that an endpoint serves that chain: its id, block 0, and the code of the factory.

    Raises:
        ChainMismatch: It serves another one.
        EndpointLags: It has no code at the factory's address: it is not as far as the factory's deployment.
        NodeUnavailable: Not known; ask again.
    """
    found_id = await asker.call("eth_chainId", [], parse_quantity)
    if found_id != identity.chain_id:
        raise ChainMismatch(asker.name, what="chain id", expected=str(identity.chain_id), found=str(found_id))
    if identity.genesis_hash is not None:
        genesis: Header = await asker.call("eth_getBlockByNumber", [hex(0), False], parse_header)
        if genesis.hash != identity.genesis_hash:
            raise ChainMismatch(
                asker.name, what="genesis hash", expected=to_hex(identity.genesis_hash), found=to_hex(genesis.hash)
            )
    if identity.factory_address is not None and identity.factory_code_hash is not None:
        code = await asker.call("eth_getCode", [to_hex(identity.factory_address), "latest"], parse_octets)
        if not code:
            raise EndpointLags(asker.name, "eth_getCode", "it has no factory yet")
        if (found := keccak(code)) != identity.factory_code_hash:
            raise ChainMismatch(
                asker.name,
                what="factory's code hash",
                expected=to_hex(identity.factory_code_hash),
                found=to_hex(found),
            )
