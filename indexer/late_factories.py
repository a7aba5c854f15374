"""Read the history of a factory that was added to the settings later, then let it be live (hard case 40)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from datastore import factories, following
from datastore.connection import Pool
from datastore.errors import CursorMoved, FinalityViolated
from datastore.factories import Pending
from datastore.following import Position, Rules
from datastore.rows import Batch, Block, Finality
from indexer.backfill import HELD_REASON
from indexer.final_zone import FinalZone
from indexer.follower import BLOCKS_A_COMMIT, FinalityRule, Reached, report
from indexer.forks import denial
from indexer.observation import Observation, Sources
from indexer.standstill import Standstill
from node.blocks import Log
from node.errors import BlockUnknown, EndpointChanged
from node.node import Node

log = structlog.get_logger(__name__)

BLOCKS_A_TICK: Final = 2 * BLOCKS_A_COMMIT
"""Above the finalized block, where each block is asked for by its hash; what was read is kept from tick to tick."""


class LateFactories:
    """One part of the history of one factory a ``tick``; nothing to do while all are live."""

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
        reached: Reached = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin; nothing is asked yet.  The arguments are those of ``Follower``."""
        self._pool = pool
        self._node = node
        self._sources = sources
        self._rules = rules
        self._trigger = trigger_finality
        self._complete = complete_finality
        self._zone = FinalZone(max_range_blocks=max_range_blocks)
        self._reached = reached
        self._standstill = Standstill("late factories", clock=clock)
        # By hash: a reorg takes nothing away from it.  No more blocks than the follower holds above finality.
        self._logs_above: dict[bytes, tuple[Log, ...]] = {}

    async def tick(self) -> bool:
        """Read the next final range of a factory that is not live, or admit it; ``True`` if there is more to do.

        Raises:
            NodeUnavailable: Nothing was written; call again.
            DatastoreUnavailable: Nothing is known to be written; call again.
            FinalityViolated: Nothing was written; do not call again.
        """
        late = await factories.pending(self._pool, self._sources.chain_id)
        if late is None:
            self._standstill.moved()
            self._logs_above.clear()
            return False
        position = await following.position(self._pool, self._sources.chain_id)
        try:
            is_more = await (self._fill if late.filled_up_to < position.finalized else self._admit)(late, position)
        except EndpointChanged as error:
            self._standstill.waits(late.filled_up_to, str(error))
            log.debug("factory.tick_repeated", reason=str(error))
            return True
        except (BlockUnknown, CursorMoved) as error:
            self._standstill.waits(late.filled_up_to, str(error))
            log.debug("factory.tick_repeated", reason=str(error))
            return False
        self._standstill.moved()
        return is_more

    def troubles(self) -> tuple[str, ...]:
        """That a factory does not become live though the node answers; a sentence, or none."""
        return self._standstill.troubles()

    async def _fill(self, late: Pending, position: Position) -> bool:
        sources, observation = await self._observation(late, up_to=late.filled_up_to)
        async with self._node.session(reaching=position.finalized, from_block=late.filled_up_to + 1) as session:
            read = await self._zone.read(
                session.node,
                sources,
                late.filled_up_to,
                position.finalized,
                head=session.head,
                consumer_by_token=observation.consumer_by_token,
            )
            observation.read(read.logs, read.timestamp_by_block())
            try:
                await self._commit(
                    late, position, read.blocks, observation, filled_up_to=read.blocks[-1].number, admit=False
                )
            except FinalityViolated as error:
                raise await denial(
                    self._pool, self._sources.chain_id, session.node, up_to=position.finalized
                ) from error
        return True

    async def _admit(self, late: Pending, position: Position) -> bool:
        """Read what is above finality, a part a tick; with the last part, let the factory be live."""
        held = await following.held_blocks(self._pool, self._sources.chain_id, lowest=position.finalized + 1)
        kept = self._logs_above
        self._logs_above = {block.hash: kept[block.hash] for block in held if block.hash in kept}
        left = BLOCKS_A_TICK
        sources, observation = await self._observation(late, up_to=position.finalized)
        async with self._node.session(reaching=position.cursor.number, from_block=position.finalized + 1) as session:
            for block in held:
                if block.hash not in self._logs_above:
                    if not left:
                        return True
                    left -= 1
                    self._logs_above[block.hash] = await session.node.logs_in_block(
                        block.hash, sources.filters(), by_address=sources.by_address(observation.consumer_by_token)
                    )
                observation.read(self._logs_above[block.hash], {block.number: block.timestamp})
        await self._commit(late, position, held, observation, filled_up_to=position.finalized, admit=True)
        log.info("factory.admitted", factory="0x" + late.address.hex(), cursor=position.cursor.number)
        return True

    async def _observation(self, late: Pending, *, up_to: int) -> tuple[Sources, Observation]:
        """What this factory says beside those that are live; what is recorded already stays as it is."""
        chain_id = self._sources.chain_id
        believed = await factories.live(self._pool, chain_id) | {late.address}
        known = await following.known_baskets(self._pool, chain_id, up_to=up_to)
        sources = replace(self._sources, more_factories=believed)
        return sources, Observation(sources, dict(known))

    async def _commit(
        self,
        late: Pending,
        position: Position,
        blocks: Sequence[Block],
        observation: Observation,
        *,
        filled_up_to: int,
        admit: bool,
    ) -> None:
        final, tip = position.finalized, position.cursor.number
        observed = observation.observed
        told = {entry.block_number for entry in observed.logs}
        batch = Batch(
            expected=position.cursor,
            ancestor=position.cursor,
            blocks=tuple(block for block in blocks if block.number in told),
            head_number=position.head,
            # What is above the final blocks is the follower's to judge.
            finality=Finality(
                finalized=final,
                safe=final,
                trigger=min(final, self._trigger.height(tip=tip, finalized=final, safe=position.safe)),
                complete=min(final, self._complete.height(tip=tip, finalized=final, safe=position.safe)),
            ),
            logs=tuple(observed.logs),
            baskets=tuple(observed.baskets),
            requests=tuple(observed.requests),
            mints=tuple(observed.mints),
            reports=tuple(observed.reports),
            role_changes=tuple(observed.role_changes),
        )
        self._reached("factory.before_commit")
        committed = await factories.fill(
            self._pool,
            self._sources.chain_id,
            late.address,
            batch,
            self._rules,
            filled_up_to=filled_up_to,
            hold_reason=HELD_REASON,
            admit=admit,
        )
        self._reached("factory.after_commit")
        report(committed, undecodable=observed.undecodable)
