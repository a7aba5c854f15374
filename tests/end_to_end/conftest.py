import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from datastore.connection import Pool
from tests.end_to_end.world import World, open_world


@pytest.fixture
async def world(anvil_binary: Path, indexer_pool: Pool, invocator_pool: Pool) -> AsyncIterator[World]:
    async with open_world(anvil_binary=anvil_binary, indexer_pool=indexer_pool, invocator_pool=invocator_pool) as world:
        yield world


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not pytest's own folder: as root its parents are closed to the user that the embedded server runs as.
    folder = Path(tempfile.mkdtemp(prefix="bskt-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
