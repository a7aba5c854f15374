"""``bskt run``: the daemon."""

from __future__ import annotations

import click

from service.console import Command, Console, Exit, asynchronous


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
        secret_files=secret_files(console.env_file),
    )
    return Exit(code)
