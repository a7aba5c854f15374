"""``bskt schema``: the tables in Postgres."""

from __future__ import annotations

import click

from service.console import Console, Group, asynchronous


@click.group(cls=Group)
def schema() -> None:
    """The tables in Postgres."""


@schema.command()
@asynchronous
async def apply(console: Console) -> None:
    """Create the tables if the database has none; safe with many starters at once."""
    from datastore import schema as tables

    async with console.database() as dsn:
        made = await tables.apply(dsn)
    console.message("schema applied" if made else "the schema is already there")


@schema.command()
@asynchronous
async def check(console: Console) -> None:
    """Say whether the database has the schema that this program needs."""
    from datastore import schema as tables

    async with console.database() as dsn:
        await tables.check(dsn)
    console.message("the schema is the one that this program needs")


@schema.command()
def sql() -> None:
    """Print the schema."""
    from datastore import schema as tables

    click.echo(tables.sql(), nl=False)
