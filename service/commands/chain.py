"""``bskt chain``: where the chain and the index stand."""

from __future__ import annotations

import click

from service.console import Console, Exit, Group, Refused, asynchronous


@click.group(cls=Group)
def chain() -> None:
    """The chain as indexed."""


@chain.command()
@asynchronous
async def head(console: Console) -> None:
    """Show the heads of the index and of each node, and what is final."""
    from datastore import status
    from datastore.connection import Role
    from service import endpoints

    async with console.opened(Role.READER) as pool:
        chain_id = await console.chain_id(pool)
        snapshot = await status.snapshot(pool, chain_id)
    if snapshot is None:
        raise Refused("the chain is not pinned yet", Exit.NOT_READY)
    nodes = await endpoints.ask(console.settings, chain_id)
    console.record(
        {
            "chain_id": chain_id,
            "indexed": snapshot.indexed,
            "indexed_hash": snapshot.indexed_hash,
            "indexed_at": snapshot.indexed_at,
            "head": max([snapshot.head, *(node.head for node in nodes if node.head is not None)]),
            "safe": snapshot.safe,
            "finalized": snapshot.finalized,
            "endpoints": [{"name": node.name, "state": node.state, "head": node.head} for node in nodes],
        },
        {
            "indexed": lambda row: f"{row['indexed']} {row['indexed_hash']}, at {row['indexed_at']}",
            "head": "head",
            "safe": "safe",
            "finalized": "finalized",
            "nodes": lambda _: [
                f"{node.name}: {node.state}" + ("" if node.head is None else f", head {node.head}") for node in nodes
            ],
        },
        title=f"Chain {chain_id}",
    )


@chain.command(name="endpoints")
@asynchronous
async def endpoints_command(console: Console) -> None:
    """Show what each node can do, as it shows when it is tried."""
    from datastore.connection import Role
    from service import endpoints

    async with console.opened(Role.READER) as pool:
        chain_id = await console.chain_id(pool)
    tried = await endpoints.try_all(console.settings, chain_id)
    console.rows(
        [
            {
                "name": node.name,
                "state": node.state,
                "head": node.head,
                "reason": node.reason,
                "batch_size": None if can is None else can.batch_size,
                "range_blocks": None if can is None else can.range_blocks,
                "lacks": None if can is None else list(can.lacks),
            }
            for node, can in tried
        ],
        {
            "node": "name",
            "state": lambda row: row["state"] if row["reason"] is None else f"{row['state']}: {row['reason']}",
            "head": "head",
            "questions at once": "batch_size",
            "blocks at once": "range_blocks",
            "lacks": "lacks",
        },
    )


@chain.command()
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="The newest so many.")
@asynchronous
async def reorgs(console: Console, *, limit: int) -> None:
    """List the reorgs, newest first."""
    from datastore import inspection
    from datastore.connection import Role
    from service import shapes

    async with console.opened(Role.READER) as pool:
        found = await inspection.reorgs(pool, await console.chain_id(pool), limit=limit)
    console.rows(
        [shapes.reorg(each) for each in found],
        {
            "time": "at",
            "ancestor": "ancestor_number",
            "left tip": lambda row: f"{row['old_tip_number']} {row['old_tip_hash']}",
            "blocks": "orphaned_blocks",
            "requests": "orphaned_requests",
        },
    )
