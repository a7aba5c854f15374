"""What it costs to know that a crowded block near the head has no log of ours: ``python -m bench.bloom``.

Blocks of strangers' logs, from a seed, each with a true bloom, and an honest endpoint that has nothing of ours.  The one rule
is the daemon's; the other is as it was before: receipts for any filter that the bloom admits and the answer lacks.  Pure
computation: what is counted are the questions that each rule asks.  Exit code 1: the share of blocks whose receipts are asked
for is above the bound.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from indexer.abi_files import load_abis
from indexer.decoding import EventCatalog
from indexer.observation import Sources
from node.blocks import Log
from node.bloom import BLOCKS_A_FALSE_HIT, MOST_FALSE_HITS, BloomTrust, bloom_admits, bloom_of

LOGS: Final = (100, 300, 500)
BASKETS: Final = (1, 10, 100)
BLOCKS_A_WORLD: Final = 20


def crowded(rnd: random.Random, logs: int) -> bytes:
    """The bloom of a block: four logs an emitter, 40 events, up to three topics, half of them addresses of the block."""
    emitters = [rnd.randbytes(20) for _ in range(logs // 4)]
    events = [rnd.randbytes(32) for _ in range(40)]

    def indexed() -> bytes:
        return rnd.choice((rnd.randbytes(32), bytes(12) + rnd.choice(emitters)))

    return bloom_of(
        Log(
            block_number=1,
            tx_index=0,
            block_hash=b"",
            tx_hash=b"",
            log_index=index,
            address=rnd.choice(emitters),
            topics=(rnd.choice(events), *(indexed() for _ in range(rnd.choice((0, 1, 2, 2))))),
            data=b"",
            block_timestamp=None,
        )
        for index in range(logs)
    )


def sources(rnd: random.Random) -> Sources:
    """Those of a chain on which nothing happens."""
    return Sources(
        chain_id=1,
        factory=rnd.randbytes(20),
        forwarder=rnd.randbytes(20),
        catalog=EventCatalog(load_abis(Path(__file__).parents[1] / "abi")),
        secret=bytes(32),
    )


def questions(rnd: random.Random, blooms: list[bytes], baskets: int) -> Counter[str]:
    """How many blocks ask for logs, and for receipts: before, by the guesses alone, and with what false hits may cost."""
    asked: Counter[str] = Counter()
    trust = BloomTrust()
    for place, bloom in enumerate(blooms):
        if place % BLOCKS_A_WORLD == 0:  # so that no luck of one address decides
            ours, known = sources(rnd), {rnd.randbytes(20): rnd.randbytes(20) for _ in range(baskets)}
            believed, guesses = ours.believed(known), ours.guesses(known)
        trust = trust.read_block()
        if not any(bloom_admits(bloom, each) for each in believed):
            continue
        asked["logs"] += 1  # and no log explains what was admitted
        if any(each.is_open(bloom, ()) for each in guesses):
            asked["guessed"] += 1
            if trust.is_worth_receipts:
                asked["receipts"] += 1
                trust = trust.was_wrong()
    return asked


def run(given: argparse.Namespace) -> int:
    """Print the table; the exit code."""
    rnd = random.Random(given.seed)  # noqa: S311 - nothing is kept secret
    most = given.blocks / BLOCKS_A_FALSE_HIT + MOST_FALSE_HITS
    worst = 0
    print(
        f"{'logs':>5} {'full':>5} {'baskets':>8} {'before':>8} {'guessed':>8} {'receipts':>8} {'calls before':>13} {'calls':>6}"
    )
    for logs in LOGS:
        blooms = [crowded(rnd, logs) for _ in range(given.blocks)]
        full = sum(int.from_bytes(bloom).bit_count() for bloom in blooms) / given.blocks / 2048
        for baskets in BASKETS:
            asked = questions(rnd, blooms, baskets)
            worst = max(worst, asked["receipts"])
            before, guessed, receipts = (asked[each] / given.blocks for each in ("logs", "guessed", "receipts"))
            asks_logs = 1 + before  # beside the header
            print(
                f"{logs:5} {full:5.0%} {baskets:8} {before:8.1%} {guessed:8.1%} {receipts:8.1%} {asks_logs + before:13.2f} {asks_logs + receipts:6.2f}",
                flush=True,
            )
    return 1 if worst > most else 0


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
