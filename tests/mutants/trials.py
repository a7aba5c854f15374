"""Run tests against a module as it is and against its mutants, each in a process forked from this one.

A mutant is never written to disk: the process that tries it imports it in place of the module.  One Postgres serves
all of them.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import hypothesis
import pytest

from tests.mutants.mutants import Mutant
from tests.mutants.reach import Reach

CHECKOUT: Final = Path(__file__).parents[2]

# What the tests import that is not ours: once, for all processes.
_FOREIGN: Final = ("aiohttp", "anyio.pytest_plugin", "asyncpg", "eth_abi", "orjson", "pydantic", "structlog")

_FORK: Final = multiprocessing.get_context("fork")
_SLOWEST_START_SECONDS: Final = 20


@dataclass(kw_only=True)
class Seen:
    """What a run of tests came to: whether all passed, which failed first, how long each took and what it called."""

    passed: bool = False
    failed: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    called: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a mutant: the test that killed it, or what else did, or nothing."""

    mutant: Mutant
    killed_by: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    mutant: Mutant
    process: BaseProcess
    answers: Connection
    started_at: float
    ends_at: float

    def outcome(self) -> Outcome | None:
        """What is known by now, or ``None`` if the tests still run."""
        now = time.monotonic()
        if self.answers.poll():
            try:
                seen: Seen = self.answers.recv()
                killed_by = None if seen.passed else seen.failed or "import"
            except EOFError:
                killed_by = "crash"
        elif now < self.ends_at:
            return None
        else:
            killed_by = "time-out"
            self.process.kill()
        self.process.join()
        return Outcome(mutant=self.mutant, killed_by=killed_by, seconds=now - self.started_at)


class Suite:
    """A module and the tests that are to kill its mutants."""

    def __init__(self, module: str, tests: Sequence[str], *, postgres: str) -> None:
        """Run all the tests once without any mutant, which has to succeed."""
        self._module = module
        self._postgres = postgres
        for name in _FOREIGN:
            importlib.import_module(name)
        process, answers = self._forked(None, tests, watched=True)
        self._before: Seen = answers.recv()
        process.join()
        if not self._before.passed:
            raise SystemExit(f"fails without any mutant: {self._before.failed}")
        self._reach = Reach((CHECKOUT / module).read_text())
        self._kills: Counter[tuple[str, str | None]] = Counter()

    @property
    def seconds(self) -> float:
        """How long all the tests take."""
        return sum(self._before.seconds.values())

    def outcomes(self, mutants: Sequence[Mutant], *, jobs: int) -> Iterator[Outcome]:
        """Try mutants, ``jobs`` at a time; in the order in which they are done."""
        waiting, running = deque(mutants), list[_Trial]()
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(self._begun(waiting.popleft()))
            soonest = min(trial.ends_at for trial in running)
            wait([trial.answers for trial in running], timeout=max(0, soonest - time.monotonic()))
            for trial in [*running]:
                if (outcome := trial.outcome()) is not None:
                    running.remove(trial)
                    self._kills[self._reach.definition(outcome.mutant.line), outcome.killed_by] += 1
                    self._kills["", outcome.killed_by] += 1
                    yield outcome

    def _begun(self, mutant: Mutant) -> _Trial:
        tests = self._chosen(mutant.line)
        process, answers = self._forked(mutant.source, tests, watched=False)
        now = time.monotonic()
        ends_at = now + _SLOWEST_START_SECONDS + 3 * sum(self._before.seconds[test] for test in tests)
        return _Trial(mutant=mutant, process=process, answers=answers, started_at=now, ends_at=ends_at)

    def _chosen(self, line: int) -> list[str]:
        """The tests that can see a change of a line: first those that killed most near it, then the quick ones.

        What calls nothing of the module uses its constants.
        """
        functions = self._reach.functions(line)
        seeing = [
            test
            for test, called in self._before.called.items()
            if functions is None or not called or not functions.isdisjoint(called)
        ]
        near = self._reach.definition(line)
        return sorted(
            seeing, key=lambda test: (-self._kills[near, test], -self._kills["", test], self._before.seconds[test])
        )

    def _forked(self, source: str | None, tests: Sequence[str], *, watched: bool) -> tuple[BaseProcess, Connection]:
        receiver, sender = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=self._try, args=(source, tests, watched, sender), daemon=True)
        process.start()
        sender.close()
        return process, receiver

    def _try(self, source: str | None, tests: Sequence[str], watched: bool, answers: Connection) -> None:
        """In a process of its own."""
        if not watched:
            with tempfile.TemporaryFile() as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
        path = CHECKOUT / self._module
        if source is not None:
            sys.meta_path.insert(0, _Instead(self._module.removesuffix(".py").replace("/", "."), path, source))
        # The same examples each time, none kept for the next mutant; and a busy machine kills nobody.
        hypothesis.settings.register_profile(
            "mutants",
            database=None,
            deadline=None,
            derandomize=True,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        hypothesis.settings.load_profile("mutants")
        witness = _Witness(str(path) if watched else None)
        options = [
            "-x",
            "-q",
            "--assert=plain",
            "-p",
            "no:cacheprovider",
            "--timeout=30",
            f"--postgres={self._postgres}",
        ]
        code = pytest.main([*options, *tests], plugins=[witness])
        if code is pytest.ExitCode.NO_TESTS_COLLECTED:
            raise AssertionError(f"no test for a mutant of {self._module}")
        witness.seen.passed = code is pytest.ExitCode.OK
        answers.send(witness.seen)


class _Instead:
    """Imports a mutant under the name of the module."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        return spec_from_file_location(name, self._path, loader=_Mutated(name, str(self._path), self._source))


class _Mutated(SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, _fullname: str) -> CodeType:
        code: CodeType = compile(self._source, self.path, "exec", dont_inherit=True)
        return code


class _Witness:
    """A plugin of pytest that sees what a test does; with a ``path``, also which functions there it calls."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self.seen = Seen()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, bool, bool]:
        called = self.seen.called.setdefault(item.nodeid, set())

        def trace(frame: FrameType, _event: str, _argument: object) -> None:
            if frame.f_code.co_filename == self._path:
                called.add(frame.f_code.co_qualname.partition(".")[0])

        if self._path is not None:
            sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seen.seconds[report.nodeid] = self.seen.seconds.get(report.nodeid, 0) + report.duration
        if report.failed and self.seen.failed is None:
            self.seen.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.seen.failed = f"import of {report.nodeid}"


@contextmanager
def one_postgres() -> Iterator[str]:
    """A server for all processes, in a process of its own: this one imports nothing of ours, which may be mutated."""
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_serve, args=(theirs, ours))
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join()


def _serve(client: Connection, clients_own: Connection) -> None:
    clients_own.close()
    from tests.conftest import running_postgres  # noqa: PLC0415 - in this process only

    with running_postgres() as dsn:
        client.send(dsn)
        client.poll(None)  # until the other end is closed
