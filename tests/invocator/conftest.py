"""An invocator over real rows; what CRE answers and the contracts say is planned."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from datastore import claims, following
from datastore.connection import Pool
from datastore.rows import Block
from invocator.invocation import Invocator, Terms
from tests.datastore.builders import (
    CHAIN,
    RULES,
    batch,
    block,
    pin_chain,
)
from tests.datastore.workers import ahead
from tests.invocator.staging import SIGNER, TERMS, Chain, Cre, Make, announced, asked_for


@pytest.fixture
def cre() -> Cre:
    return Cre()


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def make(invocator_pool: Pool, cre: Cre, chain: Chain) -> Make:
    def made(terms: Terms = TERMS, *, clock: Callable[[], float] = lambda: 1_700_000_000.0) -> Invocator:
        return Invocator(
            pool=invocator_pool,
            chain_id=CHAIN,
            gateway=cre,
            signer=None if terms.mode == claims.SIMULATE else SIGNER,
            terms=terms,
            clock=clock,
            look_at=chain.look_at,
        )

    return made


@pytest.fixture
def ask(indexer_pool: Pool) -> Callable[..., Awaitable[Block]]:
    """Record a basket and requests, all confirmed; the tip."""

    async def asked(*names: str) -> Block:
        genesis, one = await pin_chain(indexer_pool), block(1)
        requests = tuple(asked_for(name, one, number) for number, name in enumerate(names))
        made = replace(batch(ahead(one), on=genesis, requests=requests, final=1), baskets=(announced(one),))
        await following.commit(indexer_pool, CHAIN, made, RULES)
        return one

    return asked
