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

import functools
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, TypeAlias, cast

import click

if TYPE_CHECKING:
    from rich.console import Console as Screen
    from rich.table import Table

    from datastore.connection import Pool, Role
    from service.settings import Settings, SettingsError

P = ParamSpec("P")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Row: TypeAlias = Mapping[str, object]
"""One thing to show, by the names of its JSON members; a ``uint256`` must already be text."""

Cell: TypeAlias = "str | Callable[[Mapping[str, Json]], Json]"
"""What a table shows of a row: a member (``chain.block_number`` lies deeper), or what is made of the whole row."""

Output: TypeAlias = Literal["table", "json", "jsonl"]
LogFormat: TypeAlias = Literal["text", "json"]

_TIME: Final = re.compile(r"\b(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?Z\b", re.ASCII)
_META: Final = "bskt.given"
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
# A command that looks says in its answer what its parts would log; the daemon has nothing but its log.
_DEFAULTS: Final = {"output": "table", "log_level": "error", "log_format": "text"}
DAEMON_LOG_LEVEL: Final = "info"
_HELP: Final = {
    "output": "How data is written to stdout.",
    "log_level": f"The least level that is logged to stderr; of `bskt run`, {DAEMON_LOG_LEVEL} by default.",
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

    read: Settings | SettingsError
    output: Output
    log_level: str
    log_format: LogFormat
    env_file: Path | None

    @property
    def settings(self) -> Settings:
        """Every setting.

        Raises:
            SettingsError: One of them cannot be used.
        """
        if isinstance(self.read, Exception):
            raise self.read
        return self.read

    @classmethod
    def given(cls, context: click.Context) -> Console:
        """From the flags, the environment, the env file and the defaults, in this order.

        Raises:
            SettingsError: The env file cannot be read.
            Refused: An option's value in it cannot be used.
        """
        from service import settings

        flags: dict[str, str] = context.meta.get(_META, {})
        env_file = Path(flags["env_file"]) if "env_file" in flags else None
        in_file = settings.env_file_texts(env_file)
        chosen = {}
        for name, choices in _CHOICES.items():
            variable = settings.PREFIX + name.upper()
            default = DAEMON_LOG_LEVEL if name == "log_level" and context.info_name == "run" else _DEFAULTS[name]
            chosen[name] = flags.get(name) or (in_file.get(variable) or "").strip() or default
            if chosen[name] not in choices:
                raise Refused(f"{variable}: expected {' or '.join(choices)}", Exit.USAGE)
        read: Settings | SettingsError
        try:
            read = settings.load({}, env_file)
        except settings.SettingsError as error:
            read = error
        return cls(
            read=read,
            env_file=env_file,
            output=cast("Output", chosen["output"]),
            log_level=chosen["log_level"],
            log_format=cast("LogFormat", chosen["log_format"]),
        )

    @asynccontextmanager
    async def database(self, *, start: bool = True) -> AsyncIterator[str]:
        """How to connect, for as long as the command runs.

        Without ``BSKT_DATABASE_URL`` it is the embedded database: the server of the daemon that runs now, or else, if
        ``start``, one that runs for this command only, during which no daemon can start on the same directory.

        Raises:
            EmbeddedPostgresUnusable: There is none to work with; the message has the remedy.
        """
        from service import embedded_postgres

        if self.settings.database_url is not None:
            yield self.settings.database_url.get_secret_value()
        else:
            async with embedded_postgres.of_a_command(self.settings.data_dir / "postgres", start=start) as dsn:
                yield dsn

    @asynccontextmanager
    async def opened(self, role: Role, *, start: bool = True) -> AsyncIterator[Pool]:
        """A pool under ``role``, on a database whose schema was checked.

        Raises:
            DatastoreUnsuitable, EmbeddedPostgresUnusable: The message has the remedy.
            DatastoreUnavailable: Not now.
        """
        from datastore import schema
        from datastore.connection import open_pool

        async with self.database(start=start) as dsn:
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
        from service.shapes import as_json

        written = [plain(row) for row in rows]
        if self.output == "json":
            click.echo(as_json(written, indent=True))
        elif self.output == "jsonl":
            for line in written:
                click.echo(as_json(line))
        else:
            _write(written, columns, title)

    def record(self, row: Row, lines: Mapping[str, Cell] | None = None, *, title: str | None = None) -> None:
        """Write one thing to stdout: one JSON object, or a table with a line for each member or for each of ``lines``.

        A line without a value is left out.
        """
        from service.shapes import as_json

        members = plain(row)
        if self.output != "table":
            click.echo(as_json(members, indent=self.output == "json"))
            return
        cells = lines or {name: name for name in members}
        shown: list[dict[str, Json]] = [{"name": name, "value": _shown(members, cell)} for name, cell in cells.items()]
        _write([line for line in shown if line["value"] not in (None, "", [])], {"": "name", " ": "value"}, title)

    def message(self, text: str) -> None:
        """Say something to the person, on stderr."""
        click.echo(printable(text), err=True)


def table(rows: Sequence[Mapping[str, Json]], columns: Mapping[str, Cell], *, title: str | None = None) -> Table:
    """Rows as a table for a terminal: ``columns`` by heading, whatever strangers wrote shown as plain text."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=None if title is None else Text(printable(title)),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_header=any(heading.strip() for heading in columns),
    )
    for heading in columns:
        made.add_column(Text(heading), overflow="fold")
    for row in rows:
        made.add_row(*(Text(_text(_shown(row, cell))) for cell in columns.values()))
    return made


def _shown(row: Mapping[str, Json], cell: Cell) -> Json:
    return member(row, cell) if isinstance(cell, str) else cell(row)


def member(row: Mapping[str, Json], path: str) -> Json:
    """A member of a row as JSON says it, by the dotted names that lead to it; ``None`` if the way ends before."""
    value: Json = dict(row)
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _write(rows: Sequence[Mapping[str, Json]], columns: Mapping[str, Cell], title: str | None) -> None:
    screen().print(table(rows, columns, title=title))


def screen() -> Screen:
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
        import asyncio

        from datastore.errors import DatastoreUnavailable, DatastoreUnsuitable
        from node.errors import ChainMismatch, NodeUnavailable
        from service import logs
        from service.embedded_postgres import EmbeddedPostgresUnusable
        from service.settings import SettingsError

        context = click.get_current_context()
        try:
            console = Console.given(context)
            secrets = () if isinstance(console.read, SettingsError) else console.read.secret_texts()
            logs.configure(level=console.log_level, fmt=console.log_format, secrets=secrets)
            code = asyncio.run(work(console, *args, **kwargs))
        except SettingsError as error:
            raise Refused("\n".join(error.problems), Exit.USAGE) from error
        except (DatastoreUnsuitable, ChainMismatch, EmbeddedPostgresUnusable) as error:
            raise Refused(str(error), Exit.ERROR) from error
        except (DatastoreUnavailable, NodeUnavailable) as error:
            raise Refused(f"not ready: {error}", Exit.NOT_READY) from error
        context.exit(Exit.DONE if code is None else code)

    return callback


def plain(row: Row) -> dict[str, Json]:
    """A row as JSON says it: addresses with their checksum, hashes as 0x hex, times ISO 8601 in UTC."""
    import orjson

    from service.shapes import as_json

    return cast("dict[str, Json]", orjson.loads(as_json(row)))


def _text(value: Json) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_text(item)}" for name, item in value.items())
    # A time is written to the second where people read it.
    return printable(_TIME.sub(r"\1 \2Z", str(value)))


def printable(text: str) -> str:
    """The text without what could move a cursor or pretend to be another line, except its own line ends."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode() for each in text
    )
