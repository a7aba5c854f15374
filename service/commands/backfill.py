"""``bskt backfill``: (re)index a range of blocks that are final and indexed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import click

from service.commands.parameters import YES, consent
from service.console import Command, Console, Exit, Refused, asynchronous

if TYPE_CHECKING:
    from indexer.backfill import Backfill
    from service.settings import Settings

Reached: TypeAlias = Callable[[str], None]
Progress: TypeAlias = "Callable[[Backfill], None]"


@click.command(cls=Command)
@click.option("--blocks", required=True, metavar="A:B", help="For example 16M:17M, -1000:, 15M:+1000 or :finalized.")
@click.option("--trigger", is_flag=True, help="Let new requests be sent to CRE.  Without it they are held.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be found.")
@YES
@asynchronous
async def backfill(console: Console, *, blocks: str, trigger: bool, dry_run: bool, yes: bool) -> None:
    """(Re)index the blocks A:B.

    It ends at the last block that is both indexed and final.  What is there already stays as it is, so that a backfill
    that was interrupted is simply run again.  New requests are held until `bskt requests release`, unless --trigger.
    """
    from datastore.errors import FinalityViolated
    from indexer.backfill import NotFinal
    from node.errors import NodeError
    from service.block_range import BlockRangeUnreadable

    if trigger and dry_run:
        raise Refused("--trigger has no meaning with --dry-run, which writes nothing", Exit.USAGE)
    if trigger:
        consent(console, [f"What is new in the blocks {blocks} will be sent to CRE, and mint."], yes=yes)
    try:
        async with console.database() as dsn:
            with _bar() as progress:
                result = await run(
                    console.settings, dsn, blocks=blocks, hold=not trigger, dry_run=dry_run, progress=progress
                )
    except (BlockRangeUnreadable, NotFinal) as error:
        raise Refused(f"--blocks {blocks}: {error}", Exit.USAGE) from error
    except FinalityViolated as error:
        raise Refused(str(error)) from error
    except NodeError as error:
        raise Refused(
            f"not ready: {error}; run the same command again, it writes nothing twice", Exit.NOT_READY
        ) from error
    console.record(result)


async def run(
    settings: Settings,
    dsn: str,
    *,
    blocks: str,
    hold: bool,
    dry_run: bool,
    progress: Progress = lambda _: None,
    reached: Reached = lambda _: None,
) -> dict[str, object]:
    """Backfill, and say what was found.

    Args:
        settings: Checked here for what is needed.
        dsn: The database.
        blocks: As people write ranges.
        hold: Whether new requests wait for a person.
        dry_run: Whether to write nothing.
        progress: Called after each part of the range.
        reached: Told each boundary around a commit.
    """
    from dataclasses import asdict

    from datastore import following
    from indexer.backfill import Backfill
    from node.errors import EndpointChanged
    from service import block_range, wiring

    async with wiring.indexing(settings, dsn) as indexing:
        position = await following.position(indexing.pool, indexing.sources.chain_id)
        head = await indexing.node.head()
        # The tags mean what is indexed, for a backfill ends there; only the head is the node's.
        wanted = block_range.parse(
            blocks,
            {
                "latest": max(head.number, position.cursor.number),
                "safe": max(0, position.safe),
                "finalized": max(0, position.finalized),
            },
        )
        work = Backfill(
            pool=indexing.pool,
            node=indexing.node,
            sources=indexing.sources,
            rules=indexing.rules,
            trigger_finality=indexing.trigger_finality,
            complete_finality=indexing.complete_finality,
            max_range_blocks=settings.max_log_range_blocks,
            first=wanted.first,
            last=wanted.last,
            hold=hold,
            dry_run=dry_run,
            reached=reached,
        )
        is_more = True
        while is_more:
            try:
                is_more = await work.tick()
            except EndpointChanged:
                continue  # another endpoint is at hand, and what was written is not read again
            progress(work)
    if work.last < wanted.last:
        click.echo(f"bskt: ended at block {work.last}, the last one that is both indexed and final", err=True)
    if work.found.baskets and not dry_run:
        click.echo(
            f"bskt: {work.found.baskets} baskets are in this range; if one was unknown before, later blocks may hold "
            f"requests of it: bskt backfill --blocks {work.last + 1}:finalized",
            err=True,
        )
    return {"first": work.first, "last": work.last, "dry_run": dry_run, "held": hold, **asdict(work.found)}


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar, only for a person at a terminal: stderr may be a file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = Console(stderr=True)
    columns = (TextColumn("blocks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as bar:
        task = bar.add_task("blocks", total=None)

        def show(work: Backfill) -> None:
            bar.update(task, completed=work.found.blocks, total=work.last - work.first + 1)

        yield show
