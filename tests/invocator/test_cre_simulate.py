"""A run of the command line proves nothing by itself: exit codes lie, logs lie, and it may be asked only once."""

import asyncio
import json
import os
import select
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocator.classification import Broadcast
from invocator.cre_simulate import (
    CreCommand,
    NoResult,
    NotStarted,
    parse_simulation,
    simulate,
)

TX_HASH = "0x" + "ab" * 32
OTHER_HASH = "0x" + "cd" * 32
SECRET = "0x" + "5e" * 32
INPUT = b'{"amount":"1.5"}'
LOGS = f"""\
✓ Workflow compiled
2026-02-03T00:00:00Z [SIMULATION] Running trigger trigger=http-trigger@1.0.0-alpha
2026-02-03T00:00:00Z [USER LOG] bankReference {OTHER_HASH}
"""
MARKER = "✓ Workflow Simulation Result:"
SUCCESS = {"reportDelivered": True, "mintTransaction": TX_HASH}


def printed(
    result: object, *, before: str = LOGS, after: str = "\n2026-02-03T00:00:01Z [SIMULATION] Finished\n"
) -> str:
    return f"{before}\n{MARKER}\n{json.dumps(result, indent=2)}\n{after}"


def reason(result: object) -> str:
    assert isinstance(result, NoResult)
    return result.reason


@pytest.mark.parametrize(
    "stdout",
    [
        printed(SUCCESS),
        printed(json.dumps(SUCCESS)),
        printed({"success": True, "txHash": TX_HASH}),
        printed(SUCCESS, after=""),
        printed(SUCCESS, before=f"[USER LOG] hi\n{MARKER}\n" + json.dumps({"mintTransaction": OTHER_HASH})),
        f"{LOGS}  {MARKER}  \n\n{json.dumps(SUCCESS)}",
    ],
)
def test_the_transaction_comes_from_the_last_decoded_result(stdout: str) -> None:
    assert parse_simulation(0, stdout, "") == Broadcast(tx_hash=bytes.fromhex(TX_HASH[2:]))


@pytest.mark.parametrize(
    ("stdout", "why"),
    [
        ("", "no result"),
        (LOGS, "no result"),
        (LOGS + "Timeout waiting for execution to finish\n", "no result"),
        (f"{LOGS}[USER LOG] {MARKER}\n{json.dumps(SUCCESS)}", "no result"),
        (f"{MARKER}\n", "not an object"),
        (f"{MARKER}\nnot json", "not an object"),
        *[(f"{MARKER}\n" + "[" * depth, "not an object") for depth in (499, 500, 501, 999, 1000, 100_000)],
        (f"{MARKER}\n" + '{"mintTransaction":' * 499 + "0" + "}" * 499, "no transaction"),
        (f'{MARKER}\n{{"success":false,"error":{"[" * 499}{"]" * 499}}}', "failure"),
        (f'{MARKER}\n{{"mintTransaction":{"9" * 5000}}}', "not an object"),
        (printed(None), "not an object"),
        (printed([SUCCESS]), "not an object"),
        (printed(TX_HASH), "not an object"),
        (printed({"success": False, "error": "POR_INSUFFICIENT_RESERVES"}), "POR_INSUFFICIENT_RESERVES"),
        (printed({"success": False, "mintTransaction": TX_HASH}), "failure"),
        (printed({}), "no transaction"),
        (printed({"mintTransaction": None}), "no transaction"),
        (printed({"mintTransaction": 7}), "no transaction"),
        (printed({"mintTransaction": TX_HASH + "00"}), "no transaction"),
        (printed({"mintTransaction": "0x" + "00" * 32}), "no transaction"),
        (printed({"message": f"delivered in {TX_HASH}"}), "no transaction"),
    ],
)
def test_exit_code_0_is_no_success(stdout: str, why: str) -> None:
    """Hard case 77: whatever it was, it is not run again."""
    assert why in reason(parse_simulation(0, stdout, ""))


def test_exit_code_1_tells_its_last_line_cleanly() -> None:
    result = parse_simulation(1, printed(SUCCESS), "! a warning\n✗ workflow execution failed\x1b[0m\n")

    assert reason(result) == "cre ended with 1: ✗ workflow execution failed\ufffd[0m"


@given(st.integers(-15, 2), st.text(), st.text())
def test_nothing_raises_and_noise_is_no_broadcast(returncode: int, noise: str, stderr: str) -> None:
    for stdout in (noise, f"{LOGS}{MARKER}\n{noise}", printed(noise)):
        assert isinstance(parse_simulation(returncode, stdout, stderr), NoResult)


def command(folder: Path, script: str) -> CreCommand:
    """A ``cre`` of a few lines, which finds its own folder in ``$HERE``."""
    executable = folder / "cre"
    executable.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    executable.chmod(0o755)
    return CreCommand(
        executable=str(executable),
        project_root=folder,
        workflow_folder="bskt-workflow",
        target="staging-settings",
        environment={"PATH": os.defpath, "HERE": str(folder), "CRE_ETH_PRIVATE_KEY": SECRET},
    )


async def test_a_run_gets_the_payload_and_nothing_secret_on_its_command_line(tmp_path: Path) -> None:
    """Hard case 116."""
    (tmp_path / "answer").write_text(printed(SUCCESS), encoding="utf-8")
    cre = command(tmp_path, 'echo "$@" > argv; cat "$8" > payload; pwd > directory; env > environment; cat answer')

    result = await simulate(cre, INPUT)

    assert result == Broadcast(tx_hash=bytes.fromhex(TX_HASH[2:]))
    arguments = (tmp_path / "argv").read_text().split()
    payload_file = arguments[7]
    assert arguments == [
        *("workflow", "simulate", "bskt-workflow", "--non-interactive", "--trigger-index", "0"),
        *("--http-payload", payload_file),
        *("--project-root", str(tmp_path), "--target", "staging-settings", "--broadcast"),
    ]
    assert payload_file.startswith("/")
    assert not exists(payload_file)
    assert (tmp_path / "payload").read_bytes() == INPUT
    assert (tmp_path / "directory").read_text().strip() == str(tmp_path)
    environment = (tmp_path / "environment").read_text().splitlines()
    assert f"CRE_ETH_PRIVATE_KEY={SECRET}" in environment
    assert not [line for line in environment if line.startswith("PYTEST_")]


async def test_a_failed_run_says_why_without_the_key(tmp_path: Path) -> None:
    """Hard case 110."""
    result = await simulate(command(tmp_path, f'echo "✗ invalid private key {SECRET}" >&2; exit 1'), INPUT)

    assert reason(result) == "cre ended with 1: ✗ invalid private key ***"
    assert SECRET not in repr(command(tmp_path, ""))


async def test_a_missing_command_did_not_start(tmp_path: Path) -> None:
    cre = replace(command(tmp_path, ""), executable=str(tmp_path / "missing"))

    assert await simulate(cre, INPUT) == NotStarted(reason="cre did not start: FileNotFoundError")


async def test_endless_output_neither_blocks_nor_hides_the_result(tmp_path: Path) -> None:
    (tmp_path / "answer").write_text(printed(SUCCESS), encoding="utf-8")
    noise = "head -c 3000000 /dev/zero | tr '\\0' 'x'"
    cre = command(tmp_path, f"{noise} >&2; {noise}; echo; cat answer")

    assert isinstance(await simulate(cre, INPUT), Broadcast)


def exists(path: str) -> bool:
    return Path(path).exists()


def ends(pid: int) -> bool:
    """Whether a process has ended or, being killed, ends at once; its reaper does not matter."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 5)[0])
    finally:
        os.close(process)


def child_of(folder: Path) -> int:
    return int((folder / "child").read_text())


async def test_a_run_that_takes_too_long_ends_with_its_children_and_is_unknown(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    cre = command(tmp_path, "(read line < never) & echo $! > child; trap '' TERM; read line < never")

    result = await simulate(cre, INPUT, timeout_seconds=1)

    assert reason(result) == "cre was ended after 1 s"
    assert ends(child_of(tmp_path))


async def test_a_cancelled_run_ends_with_its_children(tmp_path: Path) -> None:
    """Hard case 102."""
    os.mkfifo(tmp_path / "started")
    os.mkfifo(tmp_path / "never")
    cre = command(tmp_path, "(read line < never) & echo $! > child; echo > started; read line < never")

    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(simulate(cre, INPUT))
        await asyncio.to_thread((tmp_path / "started").read_text)
        run.cancel()

    assert run.cancelled()
    assert ends(child_of(tmp_path))


async def test_a_run_that_is_cancelled_while_it_starts_ends_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard case 102."""
    os.mkfifo(tmp_path / "started")
    os.mkfifo(tmp_path / "never")
    cre = command(tmp_path, "(read line < never) & echo $! > child; echo > started; read line < never")
    start = asyncio.create_subprocess_exec
    runs, reported = asyncio.Event(), asyncio.Event()

    async def start_slowly(*argv: str, **how: Any) -> asyncio.subprocess.Process:
        process = await start(*argv, **how)
        await asyncio.to_thread((tmp_path / "started").read_text)
        runs.set()
        await reported.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_slowly)
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(simulate(cre, INPUT))
        await runs.wait()
        run.cancel()
        reported.set()

    assert run.cancelled()
    assert ends(child_of(tmp_path))


async def test_a_run_killed_from_outside_is_unknown(tmp_path: Path) -> None:
    """Hard case 103."""
    (tmp_path / "answer").write_text(printed(SUCCESS), encoding="utf-8")
    result = await simulate(command(tmp_path, f"cat answer; kill -{signal.SIGKILL.value} $$"), INPUT)

    assert reason(result).startswith("cre ended with -9")
