"""``python -m tests.mutants [MODULE…]``: change one thing at a time, and see which change no test notices.

See docs/mutation-testing.md.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tests.mutants.mutants import Mutant, mutants
from tests.mutants.reach import Reach
from tests.mutants.trials import CHECKOUT, Outcome, Suite, one_postgres

# Each module, and the quick tests that are to notice a change of it.
SUITES: Final = {
    "lifecycle": ("datastore/lifecycle.py", ("tests/datastore/test_lifecycle.py",)),
    "classification": ("invocator/classification.py", ("tests/invocator/test_classification.py",)),
    "claims": (
        "datastore/claims.py",
        (
            "tests/datastore/test_claims_rows.py",
            "tests/datastore/test_claims.py",
            "tests/datastore/test_claims_races.py",
            "tests/datastore/test_claims_plans.py",
            "tests/invocator/test_preflight.py",
        ),
    ),
    "breakers": (
        "datastore/breakers.py",
        (
            "tests/invocator/test_faults.py",
            "tests/datastore/test_claims.py",
            "tests/datastore/test_claims_rows.py",
            "tests/service/test_status_command.py",
        ),
    ),
}
EXPLAINED: Final = CHECKOUT / "docs" / "mutation-testing.md"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def title(mutant: Mutant, module: Path) -> str:
    """A mutant, as docs/mutation-testing.md names those that survive."""
    return f"{module.name} {Reach(module.read_text()).definition(mutant.line)}\n{mutant.diff}"


def is_explained(mutant: Mutant, module: Path) -> bool:
    def flat(text: str) -> str:
        return "\n".join(" ".join(line.split()) for line in text.splitlines())

    return flat(title(mutant, module)) in flat(EXPLAINED.read_text())


def tried(name: str, asked: argparse.Namespace, postgres: str) -> list[Outcome]:
    module, tests = SUITES[name]
    chosen = mutants(CHECKOUT / module)
    if asked.only:
        chosen = [mutant for mutant in chosen if mutant.number in asked.only]
    elif asked.sample and asked.sample < len(chosen):
        chosen = random.Random(asked.seed).sample(chosen, asked.sample)  # noqa: S311 - a sample, no secret
    suite = Suite(module, tests, postgres=postgres)
    say(f"{name}: {len(chosen)} mutants; the tests take {suite.seconds:.0f} s without any")
    outcomes = []
    for outcome in suite.outcomes(chosen, jobs=asked.jobs):
        outcomes.append(outcome)
        mutant = outcome.mutant
        if asked.verbose:
            say(f"{name} {mutant.number} {mutant.operator} {outcome.seconds:.1f} s {outcome.killed_by or 'SURVIVED'}")
        if outcome.killed_by is None:
            mark = "survived, explained" if is_explained(mutant, CHECKOUT / module) else "SURVIVED"
            say(f"\n{mark}: {name} --only {mutant.number} ({mutant.operator})\n{title(mutant, CHECKOUT / module)}")
    return outcomes


def summed_up(name: str, outcomes: list[Outcome]) -> str:
    """One row of the table."""
    module = CHECKOUT / SUITES[name][0]
    by = Counter(outcome.killed_by or "" for outcome in outcomes)
    explained = sum(is_explained(outcome.mutant, module) for outcome in outcomes if outcome.killed_by is None)
    killed = len(outcomes) - by[""]
    return (
        f"| {name} | {len(outcomes)} | {killed} | {by['']} | {explained} | {killed / max(1, len(outcomes)):.1%} "
        f"| {sum(outcome.seconds for outcome in outcomes):.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[[], *SUITES], metavar="MODULE", help=", ".join(SUITES))
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these mutants of one module")
    parser.add_argument("--sample", type=int, metavar="COUNT", help="so many of each module, drawn by --seed")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--verbose", action="store_true", help="a line for each mutant")
    asked = parser.parse_args()
    if asked.sample:
        say(f"seed {asked.seed}")
    started_at = time.monotonic()
    with one_postgres() as postgres:
        outcomes = {name: tried(name, asked, postgres) for name in asked.modules or SUITES}
    say("\n| module | mutants | killed | survived | explained | killed, % | s |")
    say("| --- | --- | --- | --- | --- | --- | --- |")
    for name, of_module in outcomes.items():
        say(summed_up(name, of_module))
    say(f"{time.monotonic() - started_at:.0f} s")
    unexplained = [
        outcome
        for name, of_module in outcomes.items()
        for outcome in of_module
        if outcome.killed_by is None and not is_explained(outcome.mutant, CHECKOUT / SUITES[name][0])
    ]
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
