"""What every command shares: the global options, the database, how rows are shown, and what the exit code says.

stdout carries data and nothing else; messages and progress go to stderr.  Only click is imported at the top, for
``bskt --help`` must answer at once.

A command is a coroutine function::

    @main.command()
    @asynchronous
    async def head(console: Console) -> Exit | None:
        async with console.opened(Role.READER) as pool:
            console.rows([...])
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, TypeAlias, cast

import click

if TYPE_CHECKING:
    from datastore.connection import Pool, Role
    from service.settings import Settings

P = ParamSpec("P")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Row: TypeAlias = Mapping[str, object]
"""One thing to show, by the names of its JSON members; a ``uint256`` must already be text."""

Cell: TypeAlias = "str | Callable[[Mapping[str, Json]], Json]"
"""What a table shows of a row: a member, or what is made of the row as JSON says it."""

Output: TypeAlias = Literal["table", "json", "jsonl"]
LogFormat: TypeAlias = Literal["text", "json"]

_META: Final = "bskt.given"
_ADDRESS_BYTES: Final = 20
# A pipe has no width: nothing may be cut or wrapped in it.
_PIPE_COLUMNS: Final = 10_000


class Exit(IntEnum):
    """What the exit code says; a promise to scripts."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    NOT_READY = 3
    FINDINGS = 4
    PAUSED = 5


class Refused(click.ClickException):
    """The command does not do it: the message says why and what to do."""

    def __init__(self, message: str, exit_code: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: Any = None) -> None:
        """To stderr, under the program's name."""
        click.echo(f"bskt: {printable(self.message)}", err=True, file=file)


# ---------------------------------------------------------------------------------------------------------------------
# Global options: before the subcommand or after it; the innermost flag wins
# ---------------------------------------------------------------------------------------------------------------------
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "output": ("table", "json", "jsonl"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
}
_DEFAULTS: Final = {"output": "table", "log_level": "info", "log_format": "text"}
_HELP: Final = {
    "output": "How data is written to stdout.",
    "log_level": "The least level that is logged to stderr.",
    "log_format": "How log lines are written.",
}


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and parameter.name is not None:
        context.meta.setdefault(_META, {})[parameter.name] = value


def _global_options(*, outermost: bool) -> list[click.Option]:
    # Inside a subcommand the environment must not win over a flag that stood before it.
    shared: dict[str, Any] = {
        "callback": _remember,
        "expose_value": False,
        "is_eager": True,
        "hidden": not outermost,
        "allow_from_autoenv": outermost,
        "show_envvar": outermost,
    }
    options = [
        click.Option(
            [f"--{name.replace('_', '-')}"],
            type=click.Choice(choices),
            help=f"{_HELP[name]}  Default: {_DEFAULTS[name]}.",
            **shared,
        )
        for name, choices in _CHOICES.items()
    ]
    path = click.Path(exists=True, dir_okay=False)
    options.append(click.Option(["--env-file"], type=path, help="Settings, one NAME=VALUE a line.", **shared))
    return options


class Command(click.Command):
    """A command that also takes the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_global_options(outermost=False))


class Group(click.Group):
    """A group whose commands also take the global options."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, outermost: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_global_options(outermost=outermost))


# ---------------------------------------------------------------------------------------------------------------------
# The console
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """Where a command reads its settings, finds its database and writes its answer."""

    settings: Settings
    output: Output
    log_level: str
    log_format: LogFormat

    @classmethod
    def given(cls, context: click.Context) -> Console:
        """From the flags, the environment, the env file and the defaults, in this order.

        Raises:
            SettingsError: A setting cannot be used.
            Refused: An option's value in the env file cannot.
        """
        from service import settings

        flags: dict[str, str] = context.meta.get(_META, {})
        env_file = Path(flags["env_file"]) if "env_file" in flags else None
        in_file = settings.env_file_texts(env_file)
        chosen = {}
        for name, choices in _CHOICES.items():
            variable = settings.PREFIX + name.upper()
            chosen[name] = flags.get(name) or (in_file.get(variable) or "").strip() or _DEFAULTS[name]
            if chosen[name] not in choices:
                raise Refused(f"{variable}: expected {' or '.join(choices)}", Exit.USAGE)
        return cls(
            settings=settings.load({}, env_file),
            output=cast("Output", chosen["output"]),
            log_level=chosen["log_level"],
            log_format=cast("LogFormat", chosen["log_format"]),
        )

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """How to connect, for as long as the command runs.

        Without ``BSKT_DATABASE_URL`` it is the embedded database: the server of the daemon that runs now, or else one
        that runs for this command only, during which no daemon can start on the same directory.

        Raises:
            EmbeddedPostgresUnusable: There is none yet, or it may not be read by this user.
        """
        from service.embedded_postgres import (
            EmbeddedPostgres,
            EmbeddedPostgresBusy,
            EmbeddedPostgresUnusable,
            running_dsn,
        )

        if self.settings.database_url is not None:
            yield self.settings.database_url.get_secret_value()
            return
        directory = self.settings.data_dir / "postgres"
        server = EmbeddedPostgres(directory)
        try:
            if not server.exists():
                raise EmbeddedPostgresUnusable(
                    f"there is no embedded database in {directory} yet: run `bskt run` first, or set BSKT_DATABASE_URL "
                    "or BSKT_DATA_DIR"
                )
            try:
                await server.start()
                dsn = server.dsn
            except EmbeddedPostgresBusy:
                dsn = running_dsn(directory)
        except PermissionError as error:
            raise EmbeddedPostgresUnusable(
                f"the embedded database in {directory} belongs to another user ({error.filename}): run this command "
                "as the user of the daemon"
            ) from error
        try:
            yield dsn
        finally:
            await server.stop()

    @asynccontextmanager
    async def opened(self, role: Role) -> AsyncIterator[Pool]:
        """A pool under ``role``, on a database whose schema was checked.

        Raises:
            DatastoreUnsuitable, EmbeddedPostgresUnusable: The message has the remedy.
            DatastoreUnavailable: Not now.
        """
        from datastore import schema
        from datastore.connection import open_pool

        async with self.database() as dsn:
            await schema.check(dsn)
            async with await open_pool(dsn, role, max_size=2) as pool:
                yield pool

    async def chain_id(self, pool: Pool) -> int:
        """The chain that the command is about: ``BSKT_CHAIN_ID``, or the only one in the database.

        Raises:
            Refused: It is not there, or there are several.
        """
        from datastore import inspection

        known = await inspection.chain_ids(pool)
        wanted = self.settings.chain_id
        if wanted is None and len(known) == 1:
            return known[0]
        if wanted in known:
            return wanted
        if not known:
            raise Refused("the database holds no chain yet: `bskt run` writes it at its first start", Exit.NOT_READY)
        listed = ", ".join(map(str, known))
        if wanted is None:
            raise Refused(f"the database holds several chains ({listed}): set BSKT_CHAIN_ID", Exit.USAGE)
        raise Refused(f"the database does not hold chain {wanted}, only {listed}: check BSKT_CHAIN_ID")

    def rows(self, rows: Sequence[Row], columns: Mapping[str, Cell], *, title: str | None = None) -> None:
        """Write rows to stdout: every member as JSON, or a table of ``columns`` by heading."""
        plain = [_plain(row) for row in rows]
        if self.output == "json":
            click.echo(_json(plain, indent=True))
        elif self.output == "jsonl":
            for row in plain:
                click.echo(_json(row))
        else:
            _table(plain, columns, title)

    def record(self, row: Row, *, title: str | None = None) -> None:
        """Write one thing to stdout: one JSON object, or a table with a line for each member."""
        plain = _plain(row)
        if self.output == "table":
            lines: list[dict[str, Json]] = [{"name": name, "value": value} for name, value in plain.items()]
            _table(lines, {"": "name", " ": "value"}, title)
        else:
            click.echo(_json(plain, indent=self.output == "json"))

    def message(self, text: str) -> None:
        """Say something to the person, on stderr."""
        click.echo(printable(text), err=True)


def _table(rows: Sequence[Mapping[str, Json]], columns: Mapping[str, Cell], title: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=any(heading.strip() for heading in columns))
    for heading in columns:
        table.add_column(Text(heading), overflow="fold")
    for row in rows:
        # Text, not markup: a token's name may hold brackets.
        cells = (row.get(shown) if isinstance(shown, str) else shown(row) for shown in columns.values())
        table.add_row(*(Text(_text(value)) for value in cells))
    screen().print(table)


def screen() -> Any:  # rich.console.Console: rich is not imported at the top
    """What renders tables to stdout."""
    import sys

    from rich.console import Console as Screen

    terminal = Screen(file=sys.stdout)
    return terminal if terminal.is_terminal else Screen(file=sys.stdout, width=_PIPE_COLUMNS)


def asynchronous(
    work: Callable[Concatenate[Console, P], Coroutine[object, object, Exit | None]],
) -> Callable[P, None]:
    """Make a click callback of a coroutine function: give it the console, turn what it raises into an exit code."""

    @functools.wraps(work)
    def callback(*args: P.args, **kwargs: P.kwargs) -> None:
        from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable
        from node.errors import ChainMismatch, NodeUnavailable
        from service import logs
        from service.embedded_postgres import EmbeddedPostgresUnusable
        from service.settings import SettingsError

        context = click.get_current_context()
        try:
            console = Console.given(context)
            logs.configure(level=console.log_level, fmt=console.log_format, secrets=console.settings.secret_texts())
            code = asyncio.run(work(console, *args, **kwargs))
        except SettingsError as error:
            raise Refused("\n".join(error.problems), Exit.USAGE) from error
        except (DatastoreUnsuitable, ChainMismatch, EmbeddedPostgresUnusable) as error:
            raise Refused(str(error), Exit.ERROR) from error
        except (DatastoreUnavailable, NodeUnavailable) as error:
            raise Refused(f"not ready: {error}", Exit.NOT_READY) from error
        context.exit(Exit.DONE if code is None else code)

    return callback


def _plain(row: Row) -> dict[str, Json]:
    """A row as JSON says it: addresses with their checksum, hashes as 0x hex, times ISO 8601 in UTC."""
    import orjson

    # Raises for an integer of more than 64 bits: a uint256 must be text already.
    return cast("dict[str, Json]", orjson.loads(orjson.dumps(row, default=_octets, option=orjson.OPT_UTC_Z)))


def _octets(value: object) -> str:
    if isinstance(value, bytes):
        return address(value) if len(value) == _ADDRESS_BYTES else "0x" + value.hex()
    raise TypeError(f"no JSON for {type(value).__name__}")


def _json(value: object, *, indent: bool = False) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0).decode()


def address(octets: bytes) -> str:
    """An address with its checksum (EIP-55)."""
    from eth_utils.address import to_checksum_address

    return str(to_checksum_address(octets))


def _text(value: Json) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_text(item)}" for name, item in value.items())
    return printable(str(value))


def printable(text: str) -> str:
    """The text without what could move a cursor or pretend to be another line, except its own line ends."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode() for each in text
    )
