"""The committed bytes are what the committed sources and the pinned compiler give."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from service.demo.anvil import find_or_install_npm

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def npm() -> tuple[str, ...]:
    return find_or_install_npm(cache_dir=CHECKOUT / ".cache")


@pytest.fixture(scope="module")
def installed(npm: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of `contracts/` as a fresh clone has it, with the compiler from the lock file."""
    copy = tmp_path_factory.mktemp("clone") / "contracts"
    shutil.copytree(CHECKOUT / "contracts", copy, ignore=shutil.ignore_patterns("node_modules"))
    cache = str(CHECKOUT / ".cache/npm")
    subprocess.run(  # noqa: S603 - npm with our own lock file
        [*npm, "ci", "--prefix", str(copy), "--ignore-scripts", "--no-audit", "--no-fund", "--cache", cache],
        check=True,
        capture_output=True,
        timeout=100,
    )
    return copy


@pytest.fixture
def clone(installed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(installed, tmp_path / "contracts", symlinks=True))


def check(clone: Path, npm: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    # npm from PyPI comes with its node beside it; npm of the machine finds node on PATH.
    node = npm[0] if len(npm) > 1 else "node"
    return subprocess.run(  # noqa: S603 - node with our own script
        [node, "build.js", "--check"], cwd=clone, check=False, capture_output=True, text=True, timeout=60
    )


def test_a_rebuild_gives_the_committed_bytes(clone: Path, npm: tuple[str, ...]) -> None:
    done = check(clone, npm)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_artifact_with_other_bytes_is_found(clone: Path, npm: tuple[str, ...]) -> None:
    file = clone / "artifacts" / "Batch.json"
    artifact = json.loads(file.read_text())
    file.write_text(json.dumps({**artifact, "bytecode": artifact["bytecode"] + "00"}, indent=2) + "\n")
    done = check(clone, npm)
    assert done.returncode == 1
    assert "Batch.json: other bytes" in done.stderr


def test_an_artifact_without_a_contract_is_found(clone: Path, npm: tuple[str, ...]) -> None:
    (clone / "artifacts" / "Gone.json").write_text("{}\n")
    done = check(clone, npm)
    assert done.returncode == 1
    assert "Gone.json: no contract of this name" in done.stderr
