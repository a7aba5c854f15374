"""Mode ``dry-run``: show each request that would be sent, once a process; write no row and open no socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import orjson
import structlog

from datastore import claims
from datastore.claims import Order
from datastore.connection import Pool
from invocator.invocation import mint_order
from invocator.payload import OrderRefused, request_body
from invocator.workflow_pool import workflow_of

log = structlog.get_logger(__name__)

SHOWN_AT_ONCE: Final = 500


class DryRun:
    """Reads what waits for a claim.  Give it a pool of the reader's role: then nothing can be written at all."""

    def __init__(
        self,
        *,
        pool: Pool,
        chain_id: int,
        workflow_ids: tuple[bytes, ...],
        currency: str,
        show: Callable[[str], None],
        only_allowed: bool = False,
    ) -> None:
        """Begin; ``show`` gets one line of JSON a request, with the very body that a gateway would get.

        With ``only_allowed``, only requests of baskets that a person allowed are shown.
        """
        self._pool = pool
        self._chain_id = chain_id
        self._workflow_ids = workflow_ids
        self._currency = currency
        self._show = show
        self._only_allowed = only_allowed
        self._shown: set[tuple[int, int]] = set()

    async def tick(self) -> bool:
        """Show what began to wait since the last tick; ``True`` if there is more.

        Raises:
            DatastoreUnavailable: Call again.
        """
        orders = await claims.waiting_orders(
            self._pool,
            self._chain_id,
            besides=self._shown,
            limit=SHOWN_AT_ONCE,
            only_allowed=self._only_allowed,
        )
        for order in orders:
            self._show(orjson.dumps(self._described(order)).decode())
            self._shown.add((order.request_id, order.generation))
            log.info("request.shown", request_id=order.request_id, nonce=str(order.nonce))
        return len(orders) == SHOWN_AT_ONCE

    def _described(self, order: Order) -> dict[str, object]:
        line: dict[str, object] = {"request_id": order.request_id, "nonce": str(order.nonce)}
        if order.frozen is not None:
            return line | {"body": orjson.Fragment(order.frozen.body)}
        try:
            body = request_body(mint_order(order, workflow_of(order.nonce, self._workflow_ids), self._currency))
        except OrderRefused as refused:
            return line | {"refused": refused.code, "sentence": refused.sentence}
        return line | {"body": orjson.Fragment(body)}
