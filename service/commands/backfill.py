"""``bskt backfill``: (re)index a range of blocks that are final and indexed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, TypeAlias

import click

if TYPE_CHECKING:
    from indexer.backfill import Backfill
    from service.settings import Settings

Reached: TypeAlias = Callable[[str], None]
Progress: TypeAlias = "Callable[[Backfill], None]"

_EXIT_ERROR: Final = 1
_EXIT_USAGE: Final = 2
_EXIT_NOT_READY: Final = 3


@click.command()
@click.option("--blocks", required=True, metavar="A:B", help="For example 16M:17M, -1000:, 15M:+1000 or :finalized.")
@click.option("--trigger", is_flag=True, help="Let new requests be sent to CRE.  Without it they are held.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be found.")
@click.option("--output", type=click.Choice(["table", "json", "jsonl"]), default="table")
@click.option("--env-file", type=click.Path(exists=True, dir_okay=False), help="Settings, one NAME=VALUE a line.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
def backfill(
    *,
    blocks: str,
    trigger: bool,
    dry_run: bool,
    output: str,
    env_file: str | None,
    log_level: str,
    log_format: Literal["text", "json"],
) -> None:
    """(Re)index the blocks A:B.

    It ends at the last block that is both indexed and final.  What is there already stays as it is, so that a backfill
    that was interrupted is simply run again.  New requests are held until `bskt requests release`, unless --trigger.
    """
    import asyncio

    from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable, FinalityViolated
    from indexer.backfill import NotFinal
    from node.errors import ChainMismatch, NodeError
    from service import logs, settings
    from service.block_range import BlockRangeUnreadable
    from service.embedded_postgres import EmbeddedPostgresUnusable

    if trigger and dry_run:
        _fail("--trigger has no meaning with --dry-run, which writes nothing", _EXIT_USAGE)
    try:
        configured = settings.load({}, Path(env_file) if env_file else None)
        logs.configure(level=log_level, fmt=log_format, secrets=configured.secret_texts())
        with _bar() as progress:
            work = run(configured, blocks=blocks, hold=not trigger, dry_run=dry_run, progress=progress)
            result = asyncio.run(work)
    except settings.SettingsError as error:
        _fail("\n".join(error.problems), _EXIT_USAGE)
    except BlockRangeUnreadable as error:
        _fail(f"--blocks {error}", _EXIT_USAGE)
    except NotFinal as error:
        _fail(f"--blocks {blocks}: {error}", _EXIT_USAGE)
    except (DatastoreUnsuitable, ChainMismatch, EmbeddedPostgresUnusable, FinalityViolated) as error:
        _fail(str(error), _EXIT_ERROR)
    except (DatastoreUnavailable, NodeError) as error:
        _fail(f"not ready: {error}; run the same command again, it writes nothing twice", _EXIT_NOT_READY)
    if output == "table":
        _table(result)
    else:
        click.echo(json.dumps(result, indent=2 if output == "json" else None))


async def run(
    settings: Settings,
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
        blocks: As people write ranges.
        hold: Whether new requests wait for a person.
        dry_run: Whether to write nothing.
        progress: Called after each part of the range.
        reached: Told each boundary around a commit.
    """
    from dataclasses import asdict

    from datastore import following
    from indexer.backfill import Backfill
    from service import block_range, wiring

    async with wiring.indexing(settings) as indexing:
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
        while await work.tick():
            progress(work)
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


def _table(result: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in result.items():
        table.add_row(name, str(value))
    Console(file=sys.stdout).print(table)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"bskt: {message}", err=True)
    sys.exit(code)
