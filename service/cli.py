"""The ``bskt`` command.

Imports that cost time stand inside the commands: ``bskt --help`` must answer at once.
"""

from __future__ import annotations

import sys
from typing import Final, Literal, NoReturn

import click

from service.commands.backfill import backfill

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_READY: Final = 3


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"bskt: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"auto_envvar_prefix": "BSKT"})
@click.version_option(package_name="bskt")
def main() -> None:
    """BSKT's mint daemon: every MintRequested recorded, each one minted at most once."""


main.add_command(backfill)


@main.command()
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["indexer", "invocator"]),
    help="Run only this part; may be given several times.  Default: all.",
)
@click.option("--env-file", type=click.Path(exists=True, dir_okay=False), help="Settings, NAME=VALUE a line.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
def run(parts: tuple[str, ...], env_file: str | None, log_level: str, log_format: Literal["text", "json"]) -> None:
    """Run the daemon: follow the chain, record every request, trigger each one once."""
    import asyncio  # noqa: PLC0415 - see the module's docstring
    from pathlib import Path  # noqa: PLC0415 - see above

    from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable  # noqa: PLC0415 - see above
    from node.errors import ChainMismatch, NodeUnavailable  # noqa: PLC0415 - see above
    from service import settings, wiring  # noqa: PLC0415 - see above
    from service.embedded_postgres import EmbeddedPostgresUnusable  # noqa: PLC0415 - see above
    from service.supervision import Stop  # noqa: PLC0415 - see above

    try:
        configured = settings.load({}, Path(env_file) if env_file else None)
        code = asyncio.run(
            wiring.run(
                configured,
                parts=parts or wiring.PARTS,
                stop=Stop(),
                log_level=log_level,
                log_format=log_format,
            )
        )
        sys.exit(code)
    except settings.SettingsError as error:
        _fail(str(error), EXIT_USAGE)
    except (DatastoreUnsuitable, ChainMismatch, EmbeddedPostgresUnusable) as error:
        _fail(str(error), EXIT_ERROR)
    except (DatastoreUnavailable, NodeUnavailable) as error:
        _fail(f"not ready: {error}", EXIT_NOT_READY)


@main.command()
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
    import asyncio  # noqa: PLC0415 - see the module's docstring
    from pathlib import Path  # noqa: PLC0415 - see above

    from service.demo import scenario  # noqa: PLC0415 - see above

    sys.exit(asyncio.run(scenario.run(keep=keep, cache_dir=Path(cache_dir).absolute())))


@main.group()
def schema() -> None:
    """The tables in Postgres."""


_database_url = click.option(
    "--database-url",
    envvar="BSKT_DATABASE_URL",
    help="postgresql://…; better given as BSKT_DATABASE_URL, for arguments are visible to other users.",
)


@schema.command("apply")
@_database_url
def schema_apply(database_url: str | None) -> None:
    """Create the tables if the database has none; safe with many starters at once."""
    _with_schema("apply", database_url)


@schema.command("check")
@_database_url
def schema_check(database_url: str | None) -> None:
    """Say whether the database has the schema that this program needs."""
    _with_schema("check", database_url)


@schema.command("sql")
def schema_sql() -> None:
    """Print the schema."""
    from datastore import schema as tables  # noqa: PLC0415 - see the module's docstring

    click.echo(tables.sql(), nl=False)


def _with_schema(command: str, database_url: str | None) -> None:
    import asyncio  # noqa: PLC0415 - see the module's docstring

    from datastore import schema as tables  # noqa: PLC0415 - see the module's docstring
    from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable  # noqa: PLC0415 - see above

    if not database_url:
        _fail("no database: set BSKT_DATABASE_URL", EXIT_USAGE)
    try:
        if command == "apply":
            made = asyncio.run(tables.apply(database_url))
            click.echo("schema applied" if made else "the schema is already there", err=True)
        else:
            asyncio.run(tables.check(database_url))
            click.echo("the schema is the one that this program needs", err=True)
    except DatastoreUnsuitable as error:
        _fail(str(error), EXIT_ERROR)
    except DatastoreUnavailable as error:
        _fail(f"the database cannot be used now: {error}", EXIT_NOT_READY)
