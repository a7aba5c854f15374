"""Read the ABI files that ``decoding`` works from."""

from __future__ import annotations

from pathlib import Path

import orjson

from indexer.decoding import Abis, AbiUnsuitable


def load_abis(directory: Path) -> Abis:
    """Read every ``*.json`` of a directory: a contract's ABI, or a compiler's artifact with its ``abi`` member.

    Raises:
        AbiUnsuitable: There is no such file, or one is not an ABI.
    """
    files = sorted(directory.glob("*.json"))
    if not files:
        raise AbiUnsuitable(f"{directory} has no ABI files")
    return {file.name: _entries(file) for file in files}


def _entries(file: Path) -> list[dict[str, object]]:
    try:
        content = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise AbiUnsuitable(f"{file.name} cannot be read as JSON: {error}") from error
    entries = content.get("abi") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AbiUnsuitable(f"{file.name} is not an ABI: a list of objects is expected")
    return entries
