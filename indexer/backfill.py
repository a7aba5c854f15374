"""(Re)index a range of final blocks, beside the follower and without its cursor.

Nothing remembers how far a backfill came.  Every insert is idempotent by the key that the chain gives, so a backfill
that was killed at any line is simply run again: what is there costs a read and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from datastore import following
from datastore.connection import Pool
from datastore.errors import BlockMisplaced, FinalityViolated
from datastore.following import Rules
from datastore.rows import Batch, Block, Finality
from indexer.final_zone import FinalZone, ObservedRange, contradiction, overlapped
from indexer.follower import FinalityRule, Reached, report
from indexer.forks import denial
from indexer.observation import Observed, Sources
from node.node import Node

HELD_REASON: Final = "backfill"
"""``held_reason`` of what a backfill finds, unless it was told to trigger."""


RANGES_A_TICK: Final = 4
"""Few, so that whoever waits sees how far it came."""


class NotFinal(Exception):
    """The range begins above what is both indexed and final; let the daemon index it."""

    def __init__(self, first: int, final: int) -> None:
        super().__init__(
            f"block {first} is above {final}, the last block that is both indexed and final; "
            "`bskt run` indexes what follows"
        )


@dataclass(slots=True, kw_only=True)
class Found:
    """What was found so far; ``baskets``, ``mints`` and ``reports`` count new and known ones alike."""

    blocks: int = 0
    logs: int = 0
    baskets: int = 0
    requests_new: int = 0
    requests_known: int = 0
    mints: int = 0
    reports: int = 0
    undecodable: int = 0


class Backfill:
    """Reads one range of blocks, some node ranges a ``tick``.

    ``last`` is known after the first tick: a backfill ends at the last block that is both indexed and final.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        node: Node,
        sources: Sources,
        rules: Rules,
        trigger_finality: FinalityRule,
        complete_finality: FinalityRule,
        max_range_blocks: int,
        first: int,
        last: int,
        hold: bool = True,
        dry_run: bool = False,
        reached: Reached = lambda _: None,
    ) -> None:
        """Begin; nothing is asked yet.

        Args:
            pool: The indexer's.
            node: The chain.
            sources: Who is believed.
            rules: What the settings say about recording and judging.
            trigger_finality: From where on a request may be sent.
            complete_finality: From where on a mint completes its request.
            max_range_blocks: The largest range to ask for at once.
            first: The first block's number.
            last: The last block's number, at least ``first``.
            hold: Whether new requests wait for ``bskt requests release``.
            dry_run: Write nothing, only count.
            reached: Told each boundary around a commit.
        """
        self._pool = pool
        self._node = node
        self._zone = FinalZone(max_range_blocks=max_range_blocks)
        self._sources = sources
        # Who says --trigger has decided about these blocks: the first start's line is not drawn again.
        self._rules = rules if hold else replace(rules, first_trigger_block_number=0)
        self._trigger = trigger_finality
        self._complete = complete_finality
        self._hold_reason = HELD_REASON if hold else None
        self._dry_run = dry_run
        self._reached = reached
        self._consumer_by_token: dict[bytes, bytes] | None = None
        self._done = first - 1
        self.first = first
        self.last = last
        self.found = Found()

    async def tick(self) -> bool:
        """Index the next part of the range; ``True`` if there is more to do at once.

        Raises:
            NotFinal: Nothing was written; nothing of the range may be.
            NodeUnavailable: Nothing was written; call again.
            BlockUnknown: Nothing was written; call again.
            DatastoreUnavailable: Nothing is known to be written; call again.
            FinalityViolated: Nothing was written; do not call again.
        """
        chain_id = self._sources.chain_id
        position = await following.position(self._pool, chain_id)
        # Recorded finality is never above the cursor, and monotone.
        final = position.finalized
        self.last = min(self.last, final)
        if self.first > self.last:
            raise NotFinal(self.first, final)
        if self._consumer_by_token is None:
            self._consumer_by_token = dict(await following.known_baskets(self._pool, chain_id, up_to=self.first - 1))
        known = self._consumer_by_token
        async with (
            self._node.session(reaching=self.last, from_block=self._done + 1) as session,
            self._zone.reading(
                session.node, self._sources, self._done, self.last, head=session.head, consumer_by_token=known
            ) as next_range,
        ):

            async def commit(read: ObservedRange) -> None:
                observed, last = read.observation.observed, read.read.last.number
                new = await self._record(session.node, position, read.read.blocks, observed)
                self._count(observed, blocks=last - self._done, new=new)
                self._done, self._consumer_by_token = last, read.observation.consumer_by_token

            await overlapped(next_range, commit, turns=RANGES_A_TICK)
        return self._done < self.last

    async def _record(
        self, node: Node, position: following.Position, blocks: Sequence[Block], observed: Observed
    ) -> int:
        """Write what was found, unless nothing shall be written; how many requests were, or would be, new."""
        if self._dry_run:
            identities = {request.identity for request in observed.requests}
            return len(identities) - await following.recorded_requests(self._pool, list(identities))
        final = position.finalized
        batch = Batch(
            expected=position.cursor,
            ancestor=position.cursor,
            blocks=blocks,
            head_number=position.head,
            # What is above the final blocks is the follower's to judge: this position may be old by now.
            finality=Finality(
                finalized=final,
                safe=final,
                trigger=min(final, self._height(self._trigger, position)),
                complete=min(final, self._height(self._complete, position)),
            ),
            logs=observed.logs,
            baskets=observed.baskets,
            requests=observed.requests,
            mints=observed.mints,
            reports=observed.reports,
            role_changes=observed.role_changes,
        )
        self._reached("backfill.before_commit")
        try:
            committed = await following.record_range(
                self._pool, self._sources.chain_id, batch, self._rules, hold_reason=self._hold_reason
            )
        except BlockMisplaced as error:
            raise contradiction(node, str(error)) from error
        except FinalityViolated as error:
            raise await denial(self._pool, self._sources.chain_id, node, up_to=final) from error
        self._reached("backfill.after_commit")
        report(committed, undecodable=observed.undecodable)
        return committed.recorded_requests

    def _count(self, observed: Observed, *, blocks: int, new: int) -> None:
        found = self.found
        found.blocks += blocks
        found.logs += len(observed.logs)
        found.baskets += len(observed.baskets)
        found.requests_new += new
        found.requests_known += len(observed.requests) - new
        found.mints += len(observed.mints)
        found.reports += len(observed.reports)
        found.undecodable += observed.undecodable

    @staticmethod
    def _height(rule: FinalityRule, position: following.Position) -> int:
        return rule.height(tip=position.cursor.number, finalized=position.finalized, safe=position.safe)
