from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from datastore.connection import Pool
from tests.end_to_end.world import World, open_world


@pytest.fixture
async def world(anvil_binary: Path, indexer_pool: Pool, invocator_pool: Pool) -> AsyncIterator[World]:
    async with open_world(anvil_binary=anvil_binary, indexer_pool=indexer_pool, invocator_pool=invocator_pool) as world:
        yield world
