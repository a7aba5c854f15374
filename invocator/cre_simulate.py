"""Trigger a mint through ``cre workflow simulate --broadcast`` (cre.md §3): send once, believe only the chain.

The command has no idempotency at all: each run has a random execution id, and its mock forwarder refuses nothing.  It
also exits with 0 after a time-out, an interruption, a business failure or a reverted mint.  So a run is either known
not to have started, or names a transaction whose receipt is then the proof, or its outcome is unknown.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, cast

from invocator.classification import Broadcast, NeverConnected, NoAnswer, Reply, one_line
from invocator.payload import workflow_input

DEFAULT_TIMEOUT_SECONDS: Final = 600
"""Compiling, then the five minutes that the command itself waits for the workflow, then the broadcast."""

_MARKER: Final = re.compile(r"^[^\S\n]*✓ Workflow Simulation Result:[^\S\n]*$", re.MULTILINE)
_TX_HASH: Final = re.compile(r"0x([0-9a-fA-F]{64})", re.ASCII)
_NO_TX_HASH: Final = bytes(32)  # what a run without --broadcast returns
_STDOUT_BYTES_KEPT: Final = 1024 * 1024
_STDERR_BYTES_KEPT: Final = 16 * 1024
_READ_BYTES: Final = 64 * 1024
_KILL_SECONDS: Final = 5
# Python's own limit of recursion may be 1000 or, once eth-account is imported, more than the C stack holds.
_MAX_CONTAINERS: Final = 500
_CREDENTIAL_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class NoResult:
    """It may have broadcast something.  Never run it again for this request; a person must look at the chain."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStarted:
    """Proven: the command did not start, so nothing was sent."""

    reason: str


SimulationResult: TypeAlias = Broadcast | NoResult | NotStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class CreCommand:
    """How to run the ``cre`` command line.

    ``environment`` is the whole environment of the child, with its credentials (``CRE_API_KEY``,
    ``CRE_ETH_PRIVATE_KEY``) and without ours; it never shows up in argv, a repr or a reason.
    """

    executable: str
    project_root: Path
    workflow_folder: str
    target: str
    environment: Mapping[str, str] = field(repr=False)

    def argv(self, payload: Path) -> list[str]:
        """The command line for a payload file, whose path is absolute: CLIs disagree what a relative one is for."""
        return [
            self.executable, "workflow", "simulate", self.workflow_folder,
            "--non-interactive", "--trigger-index", "0",
            "--http-payload", str(payload.resolve()),
            "--project-root", str(self.project_root),
            "--target", self.target,
            "--broadcast",
        ]  # fmt: skip

    def redacted(self, text: str) -> str:
        """``text`` without any value of the environment that is long enough to be a credential."""
        for value in self.environment.values():
            if len(value) >= _CREDENTIAL_CHARACTERS:
                text = text.replace(value, "***")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class CreSimulation:
    """What stands in the gateway's place in mode ``simulate``: each call is one run."""

    command: CreCommand

    async def post(self, body: bytes, token: str, timeout_seconds: float) -> Reply:
        """Run the workflow on the input in ``body``, once.  There is nobody to show a ``token`` to.

        Cancelling ends the command; its outcome is then unknown, as after any `NoAnswer`.
        """
        del token
        match await simulate(self.command, workflow_input(body), timeout_seconds):
            case NotStarted(reason=reason):
                return NeverConnected(reason=reason)
            case NoResult(reason=reason):
                return NoAnswer(reason=reason)
            case Broadcast() as broadcast:
                return broadcast


async def simulate(
    command: CreCommand, payload_json: bytes, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> SimulationResult:
    """Run the workflow once and broadcast its report.

    Cancelling, like the time-out, ends the whole process group; the outcome is then unknown.

    Args:
        command: What to run.
        payload_json: The JSON object from `payload.workflow_input`.
        timeout_seconds: More than five minutes, which the command itself waits for the workflow.
    """
    with tempfile.NamedTemporaryFile(prefix="bskt-", suffix=".json") as payload:
        payload.write(payload_json)
        payload.flush()
        # A future of its own, so that a cancelled start is waited for: half-way through it, asyncio would end the
        # command without its children.
        starting = asyncio.gather(_started(command, Path(payload.name)))
        try:
            (process,) = await asyncio.shield(starting)
        except OSError as error:
            return NotStarted(reason=f"cre did not start: {type(error).__name__}")
        except asyncio.CancelledError:
            with suppress(OSError):  # it did not start, or (TimeoutError is one too) was ended
                (process,) = await starting
                await _outcome(process, timeout_seconds=0)
            raise
        try:
            stdout, stderr, returncode = await _outcome(process, timeout_seconds)
        except TimeoutError:
            return NoResult(reason=f"cre was ended after {timeout_seconds:g} s")
    return parse_simulation(returncode, stdout, command.redacted(stderr))


def parse_simulation(returncode: int, stdout: str, stderr: str) -> Broadcast | NoResult:
    """Judge a finished run.  Pure and total.

    A transaction is believed only where the workflow's decoded result names it: the logs before it hold other values
    of the same form.
    """
    if returncode != 0:
        last_line = stderr.strip().rpartition("\n")[2]
        return NoResult(reason=one_line(f"cre ended with {returncode}: {last_line}"))
    # A log of the workflow may contain the marker too, so the last one counts.
    markers = list(_MARKER.finditer(stdout))
    if not markers:
        return NoResult(reason="cre printed no result")
    result = _decoded(stdout[markers[-1].end() :])
    if isinstance(result, str):
        result = _decoded(result)  # the demo's workflow returns text on success, an object on failure
    if not isinstance(result, dict):
        return NoResult(reason="the result of the workflow is not an object")
    if result.get("success") is False:
        return NoResult(reason=one_line(f"the workflow returned a failure: {result.get('error')}"))
    match = _TX_HASH.fullmatch(str(result.get("mintTransaction", result.get("txHash"))))
    tx_hash = bytes.fromhex(match[1]) if match else _NO_TX_HASH
    return NoResult(reason="the result names no transaction") if tx_hash == _NO_TX_HASH else Broadcast(tx_hash=tx_hash)


def _decoded(text: str) -> object:
    """The JSON value at the beginning of ``text``; ``None`` where there is none."""
    # orjson, which bounds the depth, cannot stop where the value ends.
    if text.count("[") + text.count("{") > _MAX_CONTAINERS:
        return None
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except ValueError:
        return None


async def _started(command: CreCommand, payload: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command.argv(payload),
        cwd=command.project_root,
        env=command.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # so that its children end with it
    )


async def _outcome(process: asyncio.subprocess.Process, timeout_seconds: float) -> tuple[str, str, int]:
    # Both pipes are there, because both were asked for.
    reading = asyncio.gather(
        _tail(cast("asyncio.StreamReader", process.stdout), _STDOUT_BYTES_KEPT),
        _tail(cast("asyncio.StreamReader", process.stderr), _STDERR_BYTES_KEPT),
        process.wait(),
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            return await asyncio.shield(reading)
    finally:
        if not reading.done():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # The pipes end with the last process that holds them; one that left the group is not waited for.
            with suppress(TimeoutError):
                async with asyncio.timeout(_KILL_SECONDS):
                    await reading


async def _tail(stream: asyncio.StreamReader, kept_bytes: int) -> str:
    """Read to the end, so that the process never blocks on a full pipe; keep the last bytes, where the result is."""
    kept = bytearray()
    while chunk := await stream.read(_READ_BYTES):
        kept += chunk
        del kept[:-kept_bytes]
    return kept.decode("utf-8", "replace")
