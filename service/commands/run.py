"""``bskt run``: the daemon."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from service.console import Command, Console, Exit, asynchronous

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(cls=Command)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["indexer", "invocator"]),
    help="Run only this part; may be given several times.  Default: all.",
)
@asynchronous
async def run(console: Console, parts: tuple[str, ...]) -> Exit:
    """Run the daemon: follow the chain, record every request, trigger each one once."""
    from service import wiring
    from service.settings import secret_files
    from service.supervision import Stop

    code = await wiring.run(
        console.settings,
        parts=parts or wiring.PARTS,
        stop=Stop(),
        log_level=console.log_level,
        log_format=console.log_format,
        starts_without=_starts_without,
        secret_files=secret_files(console.env_file),
    )
    return Exit(code)


def _starts_without(caps: Sequence[str]) -> bool:
    """Whether a first start may go on without these caps: a person at a terminal says so, elsewhere the log does."""
    return not sys.stdin.isatty() or click.confirm(
        f"{' and '.join(caps)} not set: whatever amount is asked for on chain is sent.  Start without?", err=True
    )
