from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from service.demo.anvil import Anvil
from service.demo.contracts import Basket, DevChain, System, create_basket, deploy_system


@pytest.fixture
async def chain(anvil_binary: Path) -> AsyncIterator[DevChain]:
    async with await Anvil.start(anvil_binary) as anvil, aiohttp.ClientSession() as session:
        yield DevChain(session=session, url=anvil.url)


@pytest.fixture
async def system(chain: DevChain) -> System:
    return await deploy_system(chain)


@pytest.fixture
async def basket(chain: DevChain, system: System) -> Basket:
    return await create_basket(chain, system.factory, name="Australian Dollar Token", symbol="AUDT")
