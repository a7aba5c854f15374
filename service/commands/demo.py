"""``bskt demo``: the whole path on one machine."""

from __future__ import annotations

import sys

import click

from service.console import Command


@click.command(cls=Command)
@click.option("--keep", is_flag=True, help="Stay up afterwards, and say where to look.")
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False),
    default=".cache",
    show_default=True,
    help="Where anvil and Node are kept if this machine has none.",
)
def demo(*, keep: bool, cache_dir: str) -> None:
    """Watch mints complete on a chain, a database and a CRE stand-in of its own."""
    import asyncio
    from pathlib import Path

    from service.demo import scenario

    sys.exit(asyncio.run(scenario.run(keep=keep, cache_dir=Path(cache_dir).absolute())))
