import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import click
import pytest
from click.testing import CliRunner, Result

from datastore import schema
from datastore.connection import Role
from service.cli import main
from service.console import Command, Console, Exit, Group, Refused, asynchronous
from service.embedded_postgres import EmbeddedPostgres

HOSTILE = "[bold]x[/bold]\x1b[2J\r"


@click.group(cls=Group, outermost=True, context_settings={"auto_envvar_prefix": "BSKT"})
def program() -> None:
    """A program of its own, so that the test shows what any command gets."""


@program.command()
@asynchronous
async def show(console: Console) -> None:
    console.rows(
        [
            {
                "id": UUID(int=1),
                "name": HOSTILE,
                "owner": bytes.fromhex("5FbDB2315678afecb367f032d93F642f64180aa3"),
                "hash": b"\x01" * 32,
                "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
                "amount": str(2**256 - 1),
            }
        ],
        {"id": "id", "name": "name", "hash": "hash", "short": lambda row: str(row["hash"])[:6]},
    )


@program.group()
def deeper() -> None:
    """Global options must reach this far."""


@deeper.command()
@asynchronous
async def levels(console: Console) -> None:
    console.record({"output": console.output, "level": console.log_level})


@program.command(cls=Command)
@asynchronous
async def refuse(_console: Console) -> None:
    raise Refused("because \x1b[31m", Exit.PAUSED)


@program.command(cls=Command)
@asynchronous
async def count(console: Console) -> None:
    async with console.opened(Role.READER) as pool:
        console.record({"requests": await pool.fetchval("SELECT count(*) FROM mint_request")})


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(program, arguments, env=environment, catch_exceptions=False)


def test_json_names_every_member_and_cuts_nothing() -> None:
    expected = {
        "id": "00000000-0000-0000-0000-000000000001",
        "name": HOSTILE,
        "owner": "0x5FbDB2315678afecb367f032d93F642f64180aa3",
        "hash": "0x" + "01" * 32,
        "at": "2026-01-02T03:04:05Z",
        "amount": str(2**256 - 1),
    }
    assert json.loads(run("--output", "json", "show").stdout) == [expected]
    assert [json.loads(line) for line in run("--output", "jsonl", "show").stdout.splitlines()] == [expected]


def test_a_table_shows_a_hostile_name_as_text_and_cuts_nothing_in_a_pipe() -> None:
    text = run("show").stdout
    assert "[bold]x[/bold]\\x1b[2J\\r" in text
    assert "\x1b" not in text
    assert "0x" + "01" * 32 in text
    assert "0x0101 " in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--output", "json", "deeper", "levels"),
        ("deeper", "--output", "json", "levels"),
        ("deeper", "levels", "--output", "json"),
        ("--output", "jsonl", "deeper", "levels", "--output", "json"),
    ],
)
def test_a_global_option_may_stand_anywhere_and_beats_the_environment(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, BSKT_OUTPUT="table", BSKT_LOG_LEVEL="debug")
    assert json.loads(result.stdout) == {"output": "json", "level": "debug"}


def test_the_environment_beats_the_env_file_which_beats_the_default(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("BSKT_OUTPUT=json\nBSKT_LOG_LEVEL=error\n")
    result = run("deeper", "levels", "--env-file", str(env_file), BSKT_LOG_LEVEL="warning")
    assert json.loads(result.stdout) == {"output": "json", "level": "warning"}


@program.command("run")
@asynchronous
async def like_the_daemon(console: Console) -> None:
    console.record({"level": console.log_level})


def test_the_daemon_logs_what_it_does_and_a_command_only_what_is_wrong() -> None:
    assert json.loads(run("run", "--output", "json").stdout) == {"level": "info"}
    assert json.loads(run("deeper", "levels", "--output", "json").stdout)["level"] == "error"


def test_a_wrong_value_is_a_usage_error_wherever_it_stands(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("BSKT_OUTPUT=xml\n")
    for result in (
        run("--output", "xml", "show"),
        run("show", BSKT_OUTPUT="xml"),
        run("show", BSKT_ENV_FILE=str(env_file)),
        run("count", BSKT_CHAIN_ID="x"),
    ):
        assert (result.exit_code, result.stdout) == (Exit.USAGE, "")


def test_a_refusal_goes_to_stderr_with_its_exit_code() -> None:
    result = run("refuse")
    assert (result.exit_code, result.stdout, result.stderr) == (Exit.PAUSED, "", "bskt: because \\x1b[31m\n")


def test_a_command_works_on_the_configured_database(dsn: str) -> None:
    assert json.loads(run("count", "--output", "json", BSKT_DATABASE_URL=dsn).stdout) == {"requests": 0}


def test_a_database_without_tables_is_an_error_with_its_remedy(empty_dsn: str) -> None:
    result = run("count", BSKT_DATABASE_URL=empty_dsn)
    assert result.exit_code == Exit.ERROR
    assert "run `bskt schema apply`" in result.stderr


def test_a_database_that_does_not_answer_is_not_ready() -> None:
    result = run("count", BSKT_DATABASE_URL="postgresql://bskt:open-sesame@127.0.0.1:1/bskt")
    assert result.exit_code == Exit.NOT_READY
    assert "open-sesame" not in result.stderr


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not pytest's own folder: as root its parents are closed to the user that the embedded server runs as.
    folder = Path(tempfile.mkdtemp(prefix="bskt-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_command_attaches_to_the_embedded_database_of_a_daemon_and_starts_it_when_none_runs(data_dir: Path) -> None:
    missing = run("count", BSKT_DATA_DIR=str(data_dir))
    assert (missing.exit_code, list(data_dir.iterdir())) == (Exit.ERROR, [])
    assert "Run `bskt run` first" in missing.stderr
    daemon = EmbeddedPostgres(data_dir / "postgres", durable=False)
    asyncio.run(daemon.start())
    try:
        asyncio.run(schema.apply(daemon.dsn))
        attached = run("count", "--output", "json", BSKT_DATA_DIR=str(data_dir))
        assert (attached.exit_code, daemon.is_running) == (Exit.DONE, True)
    finally:
        asyncio.run(daemon.stop())
    started = run("count", "--output", "json", BSKT_DATA_DIR=str(data_dir))
    assert (started.exit_code, started.stdout) == (Exit.DONE, attached.stdout)
    # The command has left the directory to the next daemon.
    asyncio.run(daemon.start())
    asyncio.run(daemon.stop())


def test_the_help_of_the_whole_program_names_every_command() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert all(name in text for name in main.commands)


def test_what_costs_time_is_imported_only_by_the_command_that_needs_it() -> None:
    """`bskt --help` must answer at once; ./check measures it."""
    code = "import sys, service.cli; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    heavy = {"aiohttp", "asyncio", "asyncpg", "eth_account", "eth_utils", "orjson", "pydantic", "rich", "web3"}
    assert heavy & set(answer.stdout.split()) == set()
