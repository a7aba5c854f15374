"""What the commands take: addresses, times, a request by any of its names, and a yes."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

import click

from service.console import Exit, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datastore.connection import Pool
    from service.console import Console

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LARGEST_ID: Final = 2**63 - 1
_NONCE_DIGITS: Final = 32
_LEAST_PREFIX: Final = 4
_MOST_PREFIX: Final = 64


YES: Final = click.option("--yes", is_flag=True, help="Do not ask; needed where no terminal is there to ask at.")


def consent(console: Console, lines: Iterable[str], *, yes: bool) -> None:
    """Show what will be done, and ask the person at the terminal, unless the answer was given already.

    Raises:
        Refused: It is no, or there is no terminal to ask at.
    """
    if yes:
        return
    console.message("\n".join(lines))
    if not sys.stdin.isatty():
        raise Refused("nothing was done: there is no terminal to ask at, so `--yes` is needed", Exit.USAGE)
    if not click.confirm("Do it?", err=True):
        raise Refused("nothing was done")


class Address(click.ParamType[bytes]):
    """20 bytes as 0x and 40 hex digits; a checksum, where there is one, must be right."""

    name = "address"

    def convert(self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """From text."""
        from service.settings import parse_address

        if isinstance(value, bytes):
            return value
        try:
            return parse_address(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


class Since(click.ParamType[datetime]):
    """A moment: ISO 8601 (UTC if it names no zone), or how long ago: 90s, 15m, 2h, 1d, 1w."""

    name = "time"

    def convert(self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """From text."""
        if isinstance(value, datetime):
            return value
        try:
            if (ago := re.fullmatch(r"([0-9]{1,9})([smhdw])", value)) is not None:
                return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a time like 2026-01-31T12:00 nor an age like 15m, 2h or 1d", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


async def request_id(pool: Pool, chain_id: int, name: str) -> int:
    """The id of the one request that goes by ``name``: see ``NAMES``.

    Raises:
        Refused: None does, or several do.
    """
    from datastore import inspection

    text = name.strip().lower()
    digits = text.removeprefix("0x")
    nonce = _nonce(text)
    row_id = int(text) if text.isascii() and text.isdigit() and nonce is None else None
    is_hash = text.startswith("0x") or len(digits) == _MOST_PREFIX
    is_hash = is_hash and re.fullmatch(rf"[0-9a-f]{{{_LEAST_PREFIX},{_MOST_PREFIX}}}", digits) is not None
    if row_id is None and nonce is None and not is_hash:
        raise Refused(f"{name!r} names no request: expected {NAMES}", Exit.USAGE)
    found = await inspection.find(
        pool,
        chain_id,
        request_id=row_id if row_id is not None and row_id <= _LARGEST_ID else None,
        nonce=nonce,
        hash_prefix=digits if is_hash else "",
    )
    if not found:
        raise Refused(f"no request of chain {chain_id} goes by {name!r}")
    if len(found) > 1:
        raise Refused(f"several requests go by {name!r}: {', '.join(map(str, found))}", Exit.USAGE)
    return found[0]


NAMES: Final = (
    "a row id, a nonce, or the beginning (0x and 4 digits or more) of its identity, of its transaction's hash, of an "
    "execution id or of its mint's transaction"
)


def _nonce(text: str) -> UUID | None:
    if len(text.replace("-", "")) != _NONCE_DIGITS or text.startswith("0x"):
        return None
    try:
        return UUID(text)
    except ValueError:
        return None
