"""``bskt baskets``: the baskets of the factory.  What people do to them is in ``operate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from service.console import Console, Exit, Group, Json, Refused, asynchronous

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datastore.connection import Pool
    from datastore.inspection import BasketView


@click.group(cls=Group)
def baskets() -> None:
    """Baskets: who made them, and what was asked for and minted in them."""


@baskets.command("list")
@click.option("--orphaned", is_flag=True, help="Also baskets that a reorg took away.")
@asynchronous
async def list_(console: Console, *, orphaned: bool) -> None:
    """List the baskets, oldest first."""
    from datastore import inspection
    from datastore.connection import Role
    from service import shapes

    async with console.opened(Role.READER) as pool:
        found = await inspection.baskets(pool, await console.chain_id(pool), orphaned=orphaned)
    console.rows(
        [shapes.basket(each) for each in found],
        {
            "symbol": "symbol",
            "name": "name",
            "token": "stablecoin",
            "block": lambda row: row["block_number"] if row["canonical"] else f"{row['block_number']} (orphaned)",
            "paused": "paused.reason",
            "served": _served,
            "requests": lambda row: sum(count for _, count in _counts(row)),
            "minted": "minted_tokens",
        },
    )


@baskets.command()
@click.argument("basket")
@asynchronous
async def show(console: Console, *, basket: str) -> None:
    """Show one basket, by its token's or consumer's address or by its symbol."""
    from datastore.connection import Role
    from service import shapes

    async with console.opened(Role.READER) as pool:
        found = await find_one(pool, await console.chain_id(pool), basket)
    console.record(
        shapes.basket(found),
        {
            "symbol": "symbol",
            "name": "name",
            "token": "stablecoin",
            "consumer": "consumer",
            "creator": "creator",
            "admin": "admin",
            "decimals": lambda row: row["decimals"] if row["decimals"] is not None else "not read yet",
            "block": "block_number",
            "paused": lambda row: row["paused"] or "no",
            "served": _served,
            "requests": lambda row: [f"{count} {state}" for state, count in _counts(row)] or "none",
            "minted": "minted_tokens",
        },
    )


async def find(pool: Pool, chain_id: int, name: str) -> list[BasketView]:
    """The baskets that go by an address or a symbol; at least one.

    Raises:
        Refused: None does.
    """
    from datastore import inspection
    from service.settings import parse_address

    try:
        address = parse_address(name) if name.startswith("0x") else None
    except ValueError as error:
        raise Refused(f"{name!r}: {error}", Exit.USAGE) from error
    found = await inspection.baskets(pool, chain_id, address=address, symbol=None if address else name)
    if not found:
        raise Refused(f"no basket of chain {chain_id} goes by {name!r}")
    return found


async def find_one(pool: Pool, chain_id: int, name: str) -> BasketView:
    """The basket that goes by an address or a symbol.

    Raises:
        Refused: None does, or several do.
    """
    found = await find(pool, chain_id, name)
    if len(found) > 1:
        addresses = ", ".join(f"0x{each.stablecoin.hex()}" for each in found)
        raise Refused(f"{len(found)} baskets have the symbol {name!r}: {addresses}; name one by address", Exit.USAGE)
    return found[0]


def _served(row: Mapping[str, Json]) -> str:
    """Whether a basket is served, and why."""
    ruled = row["allowed"]
    if isinstance(ruled, dict):
        return f"{'yes, allowed' if ruled['allowed'] else 'no, disallowed'} ({ruled['reason']})"
    return f"yes, a mint completed at {row['completed_at']}" if row["served"] else "no, no mint completed yet"


def _counts(row: Mapping[str, Json]) -> list[tuple[str, int]]:
    counts = row["requests"]
    return (
        [(state, count) for state, count in counts.items() if isinstance(count, int)]
        if isinstance(counts, dict)
        else []
    )
