"""``bskt requests``: every request, why it is where it is, and its story."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from datastore.lifecycle import State
from service.commands.parameters import NAMES, Address, Since, request_id
from service.console import Console, Exit, Group, Json, Refused, asynchronous, member

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from datastore.connection import Pool
    from datastore.inspection import Request
    from service.explanation import Standing

MOST_LISTED = 100_000


@click.group(cls=Group)
def requests() -> None:
    """Mint requests: list them, explain one, tell its story."""


@requests.command("list")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Only this state; may be given several times.",
)
@click.option("--basket", help="Only this basket: its token's or consumer's address, or its symbol.")
@click.option("--requester", type=Address(), help="Only requests by this account.")
@click.option("--reference", help="Only this bank reference: its text, or 0x and 64 hex digits.")
@click.option("--since", type=Since(), help="Only requests recorded since then: an ISO time, or an age like 2h or 1d.")
@click.option("--held", is_flag=True, help="Only requests that are held.")
@click.option("--reason", help="Only this reason code of the state, or with --held of the hold.")
@click.option("--limit", type=click.IntRange(1, MOST_LISTED), default=50, show_default=True, help="The newest so many.")
@asynchronous
async def list_(
    console: Console,
    *,
    states: Sequence[str],
    basket: str | None,
    requester: bytes | None,
    reference: str | None,
    since: datetime | None,
    held: bool,
    reason: str | None,
    limit: int,
) -> None:
    """List requests, newest first."""
    from datastore import inspection
    from datastore.connection import Role
    from service import shapes

    async with console.opened(Role.READER) as pool:
        chain_id = await console.chain_id(pool)
        wanted = inspection.Wanted(
            states=[State(state) for state in states] or None,
            stablecoins=None if basket is None else await _stablecoins(pool, chain_id, basket),
            requester=requester,
            bank_reference=None if reference is None else _reference(reference),
            since=since,
            held=held,
            reason=reason,
            limit=limit,
        )
        found = await inspection.requests(pool, chain_id, wanted)
        standing = await _standing(console, pool, chain_id, found)
    console.rows(
        [shapes.request(each, standing) for each in found],
        {
            "id": "id",
            "state": "label",
            "amount": _amount,
            "reference": _reference_text,
            "block": "chain.block_number",
            "attempts": "attempts",
            "since": "since",
            "why": lambda row: row["reason"] if row["held"] is None else f"held: {member(row, 'held.reason')}",
        },
    )
    if len(found) == limit:
        console.message(f"The newest {limit}; --limit shows more.")


@requests.command(epilog=f"NAME is {NAMES}.")
@click.argument("name")
@asynchronous
async def show(console: Console, *, name: str) -> None:
    """Explain one request: why it is where it is, what happens next, what a person can do."""
    from datastore import inspection
    from datastore.connection import Role
    from service import shapes

    async with console.opened(Role.READER) as pool:
        chain_id = await console.chain_id(pool)
        found = await _one(pool, chain_id, await request_id(pool, chain_id, name))
        history = await inspection.history(pool, found.id)
        standing = await _standing(console, pool, chain_id, [found])
    shape = shapes.request_with_history(found, history, standing)
    console.record(
        shape,
        {
            "why": "why",
            "next": "next",
            "you can": "commands",
            "state": lambda row: f"{row['state']} since {row['since']}",
            "held": "held",
            "queue": "queue",
            "amount": lambda row: f"{_amount(row)} ({row['amount']} wei)",
            "reference": _reference_text,
            "requester": "requester",
            "beneficiary": "beneficiary",
            "token": "basket.stablecoin",
            "consumer": "basket.consumer",
            "on chain": "chain",
            "nonce": "nonce",
            "identity": "identity",
            "workflow": "workflow_id",
            "signer": "signer",
            "execution ids": lambda row: _lines(row["execution_ids"], "{execution_id} ({source})"),
            "attempts": lambda row: _lines(row["calls"], "{attempt_no}: {started_at} {outcome} {sentence}"),
            "mint": "mint",
        },
        title=f"Request {found.id}: {shape['label']}",
    )


@requests.command(epilog=f"NAME is {NAMES}.")
@click.argument("name")
@asynchronous
async def timeline(console: Console, *, name: str) -> None:
    """Tell the story of one request, line by line."""
    from datastore import inspection
    from datastore.connection import Role
    from service import shapes
    from service.explanation import explain
    from service.story import story

    async with console.opened(Role.READER) as pool:
        chain_id = await console.chain_id(pool)
        found = await _one(pool, chain_id, await request_id(pool, chain_id, name))
        history = await inspection.history(pool, found.id)
        standing = await _standing(console, pool, chain_id, [found])
    explanation = explain(found, standing)
    console.rows(
        [shapes.happening(each) for each in story(found, history)],
        {"time": "at", "who": "source", "what": "sentence"},
        title=f"Request {found.id}: {explanation.label}",
    )
    if console.output == "table":
        console.message(f"Now: {explanation.why}\nNext: {explanation.next}")


async def _one(pool: Pool, chain_id: int, wanted: int) -> Request:
    from datastore import inspection

    found = await inspection.requests(pool, chain_id, inspection.Wanted(ids=[wanted]))
    if not found:
        raise Refused(f"request {wanted} is gone")
    return found[0]


async def _standing(console: Console, pool: Pool, chain_id: int, found: Sequence[Request]) -> Standing:
    from datastore import inspection, status
    from service.commands.operate import horizon_of
    from service.explanation import standing

    snapshot = await status.snapshot(pool, chain_id)
    if snapshot is None:
        raise Refused("the chain is not pinned yet", Exit.NOT_READY)
    attention = await status.attention(pool, chain_id)
    waiting = [each.id for each in found if each.state is State.CONFIRMED]
    positions = {}
    if waiting:
        positions = await inspection.queue_positions(
            pool, chain_id, waiting, only_allowed=console.settings.only_allowed
        )
    for_a_person = [each.id for each in found if each.state in {State.REVIEW, State.FAILED}]
    horizon = horizon_of(console.settings, tip=snapshot.indexed, finalized=snapshot.finalized, safe=snapshot.safe)
    facts = await inspection.facts(pool, for_a_person, horizon) if for_a_person else {}
    return standing(console.settings, snapshot, attention, positions, facts)


async def _stablecoins(pool: Pool, chain_id: int, basket: str) -> list[bytes]:
    from service.commands.baskets import find

    return [view.stablecoin for view in await find(pool, chain_id, basket)]


def _reference(text: str) -> bytes:
    octets = text.encode()
    if text.startswith("0x"):
        try:
            octets = bytes.fromhex(text[2:])
        except ValueError:
            raise Refused(f"{text!r} is no hex", Exit.USAGE) from None
    if len(octets) > 32:  # noqa: PLR2004 - a bytes32
        raise Refused("a bank reference has at most 32 bytes", Exit.USAGE)
    return octets.ljust(32, b"\0")


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------
def _amount(row: Mapping[str, Json]) -> str:
    return f"{row['tokens']} {member(row, 'basket.symbol') or 'tokens'}"


def _reference_text(row: Mapping[str, Json]) -> Json:
    return member(row, "bank_reference.text") or member(row, "bank_reference.hex")


def _lines(rows: Json, template: str) -> list[Json]:
    """A line for each of ``rows``; what is null is left out."""
    if not isinstance(rows, list):
        return []
    known = [
        {name: "" if value is None else value for name, value in row.items()} for row in rows if isinstance(row, dict)
    ]
    return [template.format_map(row).strip() for row in known]
