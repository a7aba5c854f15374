"""``python -m tests.chain_model --sequences 20000 --steps 50 --seed N``: draw histories, and report what they found."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time

from tests.chain_model.exploration import explored
from tests.chain_model.machine import Tally
from tests.chain_model.profiles import ETHEREUM, PROFILES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chain_model", description=__doc__)
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--profile", choices=PROFILES, default=ETHEREUM.name, help="how the chain makes its blocks")
    asked = parser.parse_args()
    profile = PROFILES[asked.profile]
    started, total, code = time.monotonic(), Tally(), 0
    histories = explored(
        sequences=asked.sequences, steps=asked.steps, first_seed=asked.seed, jobs=asked.jobs, profile=profile
    )
    for part in histories:
        total.add(part.tally)
        seconds = time.monotonic() - started
        print(f"seed {part.seed}: {summary(total)}, {seconds:.0f} s", flush=True)  # noqa: T201
        if part.failure is not None:
            again = f"python -m tests.chain_model --sequences {part.sequences} --steps {asked.steps} --seed {part.seed}"
            again += f" --profile {profile.name}"
            print(f"{part.failure}\nagain: {again}", flush=True)  # noqa: T201
            code = 1
    print(report(total), flush=True)  # noqa: T201 - the command's output
    return code


def summary(tally: Tally) -> str:
    """A tally in a line: what was drawn so far, should the run not come to its end."""
    return (
        f"{tally.sequences} sequences, {tally.operations.total()} operations, {tally.faults.total()} faults, "
        f"{reorgs(tally)} reorgs, {tally.wrong_rows} wrong rows"
    )


def reorgs(tally: Tally) -> int:
    """How often the chain went another way."""
    return tally.operations["reorganise"] + tally.operations["flip"] + tally.operations["overtake"]


def report(tally: Tally) -> str:
    """A tally, for people."""
    lines = [
        f"sequences {tally.sequences}",
        f"operations {tally.operations.total()}",
        f"blocks {tally.blocks}",
        f"requests {tally.requests}",
        f"paused baskets resumed {tally.resumed}",
        f"reorgs {reorgs(tally)}",
        f"faults injected {tally.faults.total()}",
        *(f"  {name:30} {count:8}" for name, count in sorted(tally.faults.items())),
        *(f"killed: {name:24} {count:8}" for name, count in sorted(tally.kills.items())),
        *(f"trouble: {name:23} {count:8}" for name, count in sorted(tally.troubles.items())),
        *(f"sweep: {name:25} {count:8}" for name, count in sorted(tally.differences.items())),
        *(f"looks at all rows: {name:13} {count:8}" for name, count in sorted(tally.looks.items())),
        f"wrong rows {tally.wrong_rows}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
