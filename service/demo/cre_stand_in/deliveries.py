"""Signed reports on their way to the chain, each watched until it is too deep for a reorg (cre.md §5).

The ledger holds the deliveries; the chain is authoritative for where each one stands.  Every look starts from the
chain, so a delivery that a reorg took is simply one that is not there: the same report goes out again in a new
transaction.
"""

import asyncio
from dataclasses import replace

import structlog

from service.demo.cre_stand_in.chain import Chain, ChainRefused, ChainUnavailable, Receipt
from service.demo.cre_stand_in.ledger import Delivery, DeliveryState, Ledger

SETTLED = frozenset({"delivered", "rejected", "reverted", "prior_transmission"})

log = structlog.get_logger()


class Deliveries:
    """Transmit reports one after another, and again where the chain lost them; `final_depth_blocks` ends the watch."""

    def __init__(self, *, chain: Chain, ledger: Ledger, final_depth_blocks: int) -> None:
        self._chain = chain
        self._ledger = ledger
        self._final_depth_blocks = final_depth_blocks
        self._held = False
        # Also the lock that keeps two looks from sending one report twice.
        self._changed = asyncio.Condition()

    def hold(self) -> None:
        """Send nothing more until `release`: reports wait, and so do the runs that wrote them."""
        self._held = True

    async def release(self) -> None:
        """Send what waited, at once."""
        self._held = False
        await self.check()

    async def deliver(self, delivery: Delivery) -> None:
        """Transmit a new report; return when a look, this one or a later one, saw its first outcome on chain."""
        async with self._changed:
            place = self._ledger.record_delivery(delivery)
            await self._look(place)
            await self._changed.wait_for(lambda: self._ledger.deliveries[place].state in SETTLED)

    async def check(self) -> None:
        """Look at every delivery that is not final, and send again what vanished."""
        async with self._changed:
            try:
                head_number = await self._chain.head_number()
            except ChainUnavailable as error:
                log.warning("delivery.postponed", reason=str(error))
                return
            for place, delivery in enumerate(self._ledger.deliveries):
                if not self._is_final(delivery, head_number):
                    await self._look(place)
            self._changed.notify_all()

    def _is_final(self, delivery: Delivery, head_number: int) -> bool:
        depth_blocks = head_number - delivery.block_number if delivery.block_number is not None else 0
        return delivery.state in SETTLED and depth_blocks >= self._final_depth_blocks

    async def _look(self, place: int) -> None:
        try:
            await self._follow(place)
        except (ChainUnavailable, ChainRefused) as error:  # the next look starts from the chain again
            log.warning("delivery.postponed", request_id=self._ledger.deliveries[place].request_id, reason=str(error))

    async def _follow(self, place: int) -> None:
        delivery = self._ledger.deliveries[place]
        receipts = [await self._chain.receipt(tx_hash) for tx_hash in delivery.transactions]
        mined = [receipt for receipt in receipts if receipt is not None]
        succeeded = next((receipt for receipt in mined if receipt.succeeded), None)
        if succeeded is not None:
            self._ledger.update_delivery(place, _outcome(delivery, succeeded))
        elif receipts and receipts[-1] is not None:
            # Lost a race for the same report: AlreadyAttempted is normal noise, anything else a failure.
            lost_race = await self._is_on_chain(delivery)
            state: DeliveryState = "prior_transmission" if lost_race else "reverted"
            self._ledger.update_delivery(place, replace(delivery, state=state, block_number=receipts[-1].block_number))
        elif delivery.transactions and await self._chain.knows(delivery.transactions[-1]):
            self._ledger.update_delivery(place, replace(delivery, state="sent", block_number=None))
        else:
            await self._transmit(place)

    async def _transmit(self, place: int) -> None:
        delivery = replace(self._ledger.deliveries[place], state="waiting", block_number=None)
        self._ledger.update_delivery(place, delivery)
        if self._held:
            return
        if await self._is_on_chain(delivery):
            head_number = await self._chain.head_number()
            self._ledger.update_delivery(place, replace(delivery, state="prior_transmission", block_number=head_number))
            return
        tx_hash = await self._chain.send_report(
            receiver=delivery.consumer, raw_report=delivery.raw_report, attempt=len(delivery.transactions)
        )
        delivery = replace(delivery, state="sent", transactions=(*delivery.transactions, tx_hash))
        self._ledger.update_delivery(place, delivery)
        if (receipt := await self._chain.receipt(tx_hash)) is not None:
            self._ledger.update_delivery(place, _outcome(delivery, receipt))

    async def _is_on_chain(self, delivery: Delivery) -> bool:
        return await self._chain.already_attempted(receiver=delivery.consumer, raw_report=delivery.raw_report)


def _outcome(delivery: Delivery, receipt: Receipt) -> Delivery:
    if not receipt.succeeded:
        return replace(delivery, state="reverted", block_number=receipt.block_number)
    minted = receipt.report_results.get(delivery.execution_id, False)
    return replace(delivery, state="delivered" if minted else "rejected", block_number=receipt.block_number)
