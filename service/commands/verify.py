"""``bskt verify``: compare the rows of final blocks with the chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import click

from service.commands.parameters import YES, consent
from service.console import Command, Console, Exit, Refused, asynchronous

if TYPE_CHECKING:
    from indexer.sweep import Examined
    from service.settings import Settings

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many blocks were compared, of how many."""


@dataclass(slots=True, kw_only=True)
class Verified:
    """What a verification found; ``rows`` has a line for each difference, as people and programs see it.

    ``unsettled`` are sentences about those that no one may repair.
    """

    first: int
    last: int
    rows: list[dict[str, object]] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether the rows are what the chain says, now."""
        return all(row["outcome"] == "repaired" for row in self.rows)


@click.command(cls=Command)
@click.option("--blocks", required=True, metavar="A:B", help="For example 16M:17M, -1000:, 15M:+1000 or :finalized.")
@click.option("--repair", is_flag=True, help="Make the rows what the chain says, where two readings agree about it.")
@YES
@asynchronous
async def verify(console: Console, *, blocks: str, repair: bool, yes: bool) -> Exit:
    """Compare the rows of the blocks A:B with the chain, up to the last block that is both indexed and final.

    Prints each difference: missing (the chain has it, the rows do not), extra (the rows have it, the chain does not),
    different, or mistimed (a request has another time than its block).  A row is taken away only if every endpoint
    proves that it is not on the chain; one that cannot prove what it leaves out is named.  Exit code 4 if any
    difference is left, 0 if the rows are what the chain says.
    """
    from datastore.errors import FinalityViolated
    from indexer.sweep import SourcesUnsettled
    from node.errors import NodeError
    from service.block_range import BlockRangeUnreadable

    if repair:
        consent(console, [f"The rows of the blocks {blocks} become what two readings of the chain say."], yes=yes)
    try:
        async with console.database() as dsn:
            with _bar() as progress:
                found = await run(console.settings, dsn, blocks=blocks, repair=repair, progress=progress)
    except BlockRangeUnreadable as error:
        raise Refused(f"--blocks {blocks}: {error}", Exit.USAGE) from error
    except FinalityViolated as error:
        raise Refused(str(error)) from error
    except SourcesUnsettled as error:
        raise Refused(f"not ready: {error}; verify when it is live", Exit.NOT_READY) from error
    except NodeError as error:
        raise Refused(f"not ready: {error}; run the same command again", Exit.NOT_READY) from error
    columns = ("outcome", "kind", "event", "block_number", "log_index", "block_hash")
    console.rows(found.rows, {name: name for name in columns})
    for sentence in dict.fromkeys(found.unsettled):
        console.message(sentence)
    console.message(
        f"blocks {found.first} to {found.last}: "
        + (f"{len(found.rows)} differences" if found.rows else "the rows are what the chain says")
    )
    return Exit.DONE if found.is_equal else Exit.FINDINGS


async def run(
    settings: Settings, dsn: str, *, blocks: str, repair: bool, progress: Progress = lambda _done, _total: None
) -> Verified:
    """Verify, and say what was found.

    Args:
        settings: Checked here for what is needed.
        dsn: The database.
        blocks: As people write ranges.
        repair: Whether to write.
        progress: Called after each part of the range.
    """
    from datastore import following, sweeping
    from node.errors import EndpointChanged
    from service import block_range, wiring

    async with wiring.indexing(settings, dsn) as indexing:
        chain_id = indexing.sources.chain_id
        position = await following.position(indexing.pool, chain_id)
        final = max(0, position.finalized)
        heads: dict[block_range.Tag, int] = {
            "latest": position.cursor.number,
            "safe": max(0, position.safe),
            "finalized": final,
        }
        wanted = block_range.parse(blocks, heads)
        if wanted.first > final:
            raise block_range.BlockRangeUnreadable(blocks, f"block {final} is the last that is both indexed and final")
        found = Verified(first=wanted.first, last=min(wanted.last, final))
        examiner = wiring.examiner(settings, indexing)
        done = found.first - 1
        while done < found.last:
            try:
                examined = await examiner.examine(done, found.last, by_hand=True)
            except EndpointChanged:
                continue  # another endpoint is at hand
            if repair and examined.repair is not None:
                await sweeping.conclude(
                    indexing.pool,
                    chain_id,
                    swept=None,
                    differences=examined.differences,
                    repair=examined.repair,
                    rules=indexing.rules,
                    sentence=examined.sentence,
                )
            found.rows += _rows(examined, repair=repair)
            if examined.differences and examined.repair is None:
                found.unsettled.append(examined.sentence)
            done = examined.last
            progress(done - found.first + 1, found.last - found.first + 1)
    return found


def _rows(examined: Examined, *, repair: bool) -> list[dict[str, object]]:
    from indexer.differences import Word

    outcome = "repaired" if repair else "confirmed"
    if examined.repair is None:
        outcome = "not proven" if examined.saying(Word.PROVES_NOTHING) else "endpoints disagree"
    return [
        {
            "outcome": outcome,
            "kind": difference.kind.value,
            "event": difference.event,
            "block_number": difference.block_number,
            "block_hash": difference.block_hash,
            "log_index": difference.log_index,
        }
        for difference in examined.differences
    ]


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar, only for a person at a terminal: stderr may be a file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    terminal = Console(stderr=True)
    columns = (TextColumn("blocks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as bar:
        task = bar.add_task("blocks", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
