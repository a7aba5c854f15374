"""The embedded Postgres on real server programs, and what it does after every way to die."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from service import embedded_postgres
from service.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresUnusable, ServerBinaries, find_server_binaries

CHILD_DAEMON = """
import asyncio, sys
from pathlib import Path
from service.embedded_postgres import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1]), durable=False) as postgres:
        print(postgres.dsn, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path: as root that lies below a directory that only root may enter.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve() / "data"


async def fetchval(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def await_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 30)[0], f"pid {pid} still runs"
    finally:
        os.close(descriptor)


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def server_process(data_dir: Path) -> Path:
    return Path(f"/proc/{server_pid(data_dir)}")


def server_program(data_dir: Path) -> Path:
    return (server_process(data_dir) / "exe").readlink()


def processes_naming(data_dir: Path) -> list[bytes]:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we looked
            found.append(command.read_bytes())
    return [words for words in found if bytes(data_dir) in words]


def lay_down_version(data_dir: Path, place: str, major: str) -> Path:
    cluster = data_dir / place
    cluster.mkdir(parents=True)
    data_dir.chmod(0o711)
    (cluster / "PG_VERSION").write_text(f"{major}\n")
    return cluster


def link_privately(binaries: ServerBinaries, directory: Path) -> Path:
    directory.chmod(0o700)
    for folder in binaries.postgres.parents[3].glob("embedded_postgres*"):
        (directory / folder.name).symlink_to(folder)
    return directory / "embedded_postgres" / "pginstall" / "bin"


def run_a_daemon_and_kill_it(data_dir: Path) -> int:
    """The pid of the server that it had."""
    daemon = subprocess.Popen([sys.executable, "-c", CHILD_DAEMON, data_dir], stdout=subprocess.PIPE)  # noqa: S603 - our own text
    assert daemon.stdout
    with daemon.stdout:
        assert daemon.stdout.readline().startswith(b"postgresql://")
    pid = server_pid(data_dir)
    daemon.kill()
    daemon.wait()
    return pid


def start_a_stranger() -> subprocess.Popen[bytes]:
    """A process of the server's own user that is no server; it ends at a line on its standard input."""
    uid = embedded_postgres._server_account().uid
    return subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE, user=uid)


async def test_a_first_start_makes_a_durable_cluster_that_only_its_password_opens(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir) as postgres:
        wanted = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "data_checksums": "on"}
        wanted |= {"server_encoding": "UTF8", "listen_addresses": "127.0.0.1", "TimeZone": "UTC"}
        wanted |= {"unix_socket_directories": ""}
        assert wanted == {name: await fetchval(postgres.dsn, f"SHOW {name}") for name in wanted}
        with pytest.raises(asyncpg.InvalidPasswordError):
            await fetchval(postgres.dsn.replace("bskt:", "bskt:wrong"), "SELECT 1")
        assert str(data_dir) in postgres.sentence
        assert "BSKT_DATABASE_URL" in postgres.sentence
    assert not postgres.is_running
    assert (data_dir / "postgres" / "bskt.password").stat().st_mode & 0o777 == 0o600


async def test_rows_and_address_survive_a_restart_and_a_crash(data_dir: Path) -> None:
    """Hard case 56, the database's half: a lost server costs connections, never a committed row."""
    postgres = EmbeddedPostgres(data_dir, durable=False, options={"max_connections": "20"})
    await postgres.start()
    try:
        first_dsn = postgres.dsn
        await fetchval(first_dsn, "CREATE TABLE kept (n int)")
        await postgres.restart()
        await fetchval(postgres.dsn, "INSERT INTO kept VALUES (1)")
        await postgres.kill_immediate()
        assert not postgres.is_running
        await postgres.start()
        assert await fetchval(postgres.dsn, "SELECT n FROM kept") == 1
        assert await fetchval(postgres.dsn, "SHOW max_connections") == "20"
        assert postgres.dsn == first_dsn
    finally:
        await postgres.stop()


async def test_a_second_daemon_on_the_directory_is_told_who_has_it(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir, durable=False) as postgres:
        with pytest.raises(EmbeddedPostgresUnusable, match=rf"Another bskt \(pid {os.getpid()}\)"):
            await EmbeddedPostgres(data_dir).start()
        assert await fetchval(postgres.dsn, "SELECT 1") == 1


async def test_the_server_of_a_killed_daemon_ends_and_the_next_daemon_takes_over(data_dir: Path) -> None:
    pid = run_a_daemon_and_kill_it(data_dir)
    async with EmbeddedPostgres(data_dir, durable=False) as postgres:
        await_end(pid)
        assert server_pid(data_dir) != pid
        assert await fetchval(postgres.dsn, "SELECT 1") == 1


async def test_a_pid_file_whose_pid_belongs_to_another_process_is_not_a_server(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, durable=False)
    await postgres.start()
    await postgres.kill_immediate()
    stranger = start_a_stranger()
    try:
        lines = [str(stranger.pid), str(data_dir / "postgres"), "0", "1", "", "", "", "ready"]
        (data_dir / "postgres" / "postmaster.pid").write_text("\n".join(lines) + "\n")
        await postgres.start()
        assert await fetchval(postgres.dsn, "SELECT 1") == 1
    finally:
        await postgres.stop()
        stranger.communicate(b"\n")


async def test_a_foreign_server_on_the_cluster_is_named_and_left_alone(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_postgres, "TAKEOVER_SECONDS", 0.05)
    async with EmbeddedPostgres(data_dir, durable=False) as postgres:
        (data_dir / "lock").unlink()  # as if somebody had started the server by hand: nobody holds the lock
        with pytest.raises(EmbeddedPostgresUnusable, match=rf"pid {server_pid(data_dir)}\) that this daemon did not"):
            await EmbeddedPostgres(data_dir).start()
        assert await fetchval(postgres.dsn, "SELECT 1") == 1


async def test_the_rest_of_an_interrupted_initdb_is_made_anew(data_dir: Path) -> None:
    partial = lay_down_version(data_dir, "initdb.partial/cluster", "18")
    async with EmbeddedPostgres(data_dir, durable=False) as postgres:
        assert await fetchval(postgres.dsn, "SELECT 1") == 1
    assert not partial.parent.exists()


async def test_a_cluster_of_another_major_is_refused_with_the_steps_to_move_it(data_dir: Path) -> None:
    lay_down_version(data_dir, "postgres", "14")
    with pytest.raises(EmbeddedPostgresUnusable, match="was made by Postgres 14") as refusal:
        await EmbeddedPostgres(data_dir).start()
    assert "pg_dumpall" in str(refusal.value)
    assert "bskt quarantine" in str(refusal.value)


async def test_a_taken_port_is_replaced_by_a_free_one(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, durable=False)
    await postgres.start()
    port = int((data_dir / "postgres" / "bskt.port").read_text())
    await postgres.stop()
    intruder = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    async with intruder, postgres:
        assert f":{port}/" not in postgres.dsn
        assert await fetchval(postgres.dsn, "SELECT 1") == 1


async def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresUnusable, match="unrecognized configuration parameter"):
        await EmbeddedPostgres(data_dir, durable=False, options={"no_such_setting": "1"}).start()
    async with EmbeddedPostgres(data_dir, durable=False) as postgres:
        assert postgres.is_running


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir, durable=False):
        assert os.getpgid(server_pid(data_dir)) != os.getpgid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops root")
async def test_root_without_a_reachable_data_directory_is_told_what_to_do(data_dir: Path) -> None:
    data_dir.parent.chmod(0o700)
    with pytest.raises(EmbeddedPostgresUnusable, match="/var/lib/bskt"):
        await EmbeddedPostgres(data_dir / "deeper").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops root")
async def test_root_runs_the_server_as_somebody_else(data_dir: Path) -> None:
    async with EmbeddedPostgres(data_dir, durable=False):
        assert server_process(data_dir).stat().st_uid == embedded_postgres._server_account().uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops root")
async def test_server_programs_in_a_private_place_of_root_are_copied(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = find_server_binaries()
    if binaries.source != "embedded extra":
        pytest.skip("without the embedded extra the programs are the machine's")
    private = link_privately(binaries, tmp_path)
    monkeypatch.setattr(embedded_postgres, "_places_to_look", lambda: [(private, "embedded extra")])
    async with EmbeddedPostgres(data_dir, durable=False) as postgres:
        assert await fetchval(postgres.dsn, "SELECT 1") == 1
        assert server_program(data_dir).is_relative_to(data_dir)


def test_an_old_server_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(embedded_postgres, "_places_to_look", lambda: [(tmp_path, "test")])
    with pytest.raises(EmbeddedPostgresUnusable, match="is of major 14"):
        find_server_binaries()


def test_a_cancelled_start_leaves_no_server_behind(data_dir: Path) -> None:
    async def start_and_cancel() -> None:
        starting = asyncio.ensure_future(EmbeddedPostgres(data_dir, durable=False).start())  # noqa: TID251 - the test is the supervisor
        await asyncio.wait([starting], timeout=0.1)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()

    asyncio.run(start_and_cancel())
    # The lock is free again and the directory is usable.
    asyncio.run(start_and_cancel())
    assert not processes_naming(data_dir)


def test_it_starts_in_one_event_loop_and_stops_in_another(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, durable=False)
    asyncio.run(postgres.start())
    assert asyncio.run(fetchval(postgres.dsn, "SELECT 1")) == 1
    pid = server_pid(data_dir)
    asyncio.run(postgres.stop())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)
