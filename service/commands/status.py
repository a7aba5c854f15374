"""``bskt status``: how the daemon is, and what needs a person."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from service.console import Command, Console, Exit, Json, asynchronous, member, plain, screen, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from datastore.connection import Pool
    from datastore.status import Attention, Snapshot
    from service.endpoints import Endpoint
    from service.supervision import Stop

SILENT_SECONDS = 300.0
"""Where no node can be asked for its head, an index that is older than this counts as not ready."""

VERIFIER_WAITS_SECONDS = 1_800.0
"""A verifier that has not got on for longer stands still; finality that comes in steps explains less."""


@click.command(
    cls=Command,
    epilog="Exit codes: 0 all is well, 3 lagging, not ready or unable to send, 5 paused, in quarantine or halted.",
)
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option(
    "--interval",
    "interval_seconds",
    type=click.FloatRange(0.2, 3600),
    default=2,
    show_default=True,
    help="Seconds between two looks of --watch.",
)
@asynchronous
async def status(console: Console, *, watch: bool, interval_seconds: float) -> Exit:
    """Show the chain, the lag, the queue, the slots, alarms of the last day, and what needs a person."""
    from datastore.connection import Role
    from service.supervision import Stop

    # A server of our own would keep the daemon that is waited for from starting.
    async with console.opened(Role.READER, start=not watch) as pool:
        chain_id = await console.chain_id(pool)
        if not watch:
            looked = await _look(console, pool, chain_id)
            _write(console, looked)
            return looked.code
        stop = Stop()
        with stop.on_signals():
            return await _watch(console, pool, chain_id, stop, interval_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    shape: dict[str, Json]
    verdict: str
    code: Exit


async def _look(console: Console, pool: Pool, chain_id: int) -> _Look:
    from importlib.metadata import version

    from datastore import status as rows
    from datastore.errors import DatastoreUnavailable
    from service import endpoints, shapes

    settings = console.settings
    snapshot = await rows.snapshot(pool, chain_id)
    if snapshot is None:
        raise DatastoreUnavailable("the chain is not pinned yet")
    attention = await rows.attention(pool, chain_id)
    nodes = await endpoints.ask(settings, chain_id)
    # The rows know the head of the latest commit; a node knows the head of now, also while the daemon is down.
    heads = [node.head for node in nodes if node.head is not None]
    snapshot = replace(snapshot, head=max([snapshot.head, *heads]))
    listed = [{"name": node.name, "state": node.state, "head": node.head, "reason": node.reason} for node in nodes]
    shape = shapes.status(snapshot, attention, version=version("bskt"), endpoints=listed)
    verdict, code = judge(snapshot, attention, nodes)
    return _Look(shape=plain(shape), verdict=verdict, code=code)


def judge(  # noqa: PLR0911 - one return a verdict reads best
    snapshot: Snapshot, attention: Attention, nodes: Sequence[Endpoint]
) -> tuple[str, Exit]:
    """How the whole is, in words and as an exit code; the gravest first."""
    from service.explanation import counted, is_lagging, span

    if snapshot.halted is not None:
        return f"HALTED: {snapshot.halted}", Exit.PAUSED
    if snapshot.quarantined is not None:
        return "IN QUARANTINE: nothing is triggered", Exit.PAUSED
    if not snapshot.is_home:
        return "ANOTHER SERVER: restored or failed over, nothing is triggered before `bskt run` sees it", Exit.PAUSED
    if snapshot.paused is not None:
        return "PAUSED: nothing is triggered", Exit.PAUSED
    if is_lagging(snapshot):
        behind = f"{counted(snapshot.lag_blocks, 'block')}, {span(snapshot.lag_seconds)}"
        return f"LAGGING: the index is {behind} behind the head; is `bskt run` running?", Exit.NOT_READY
    if nodes and all(node.head is None for node in nodes):
        return "NOT READY: no node answers", Exit.NOT_READY
    silent_seconds = (snapshot.read_at - snapshot.indexed_at).total_seconds()
    if not nodes and silent_seconds > SILENT_SECONDS:
        return f"NOT READY: nothing was indexed for {span(silent_seconds)}; is `bskt run` running?", Exit.NOT_READY
    if attention.sends_fail is not None:
        return (
            "NOT SENDING: the latest attempts all failed for a fault of this instance, or could not connect",
            Exit.NOT_READY,
        )
    if attention.refused_workflows:
        refused = counted(len(attention.refused_workflows), "workflow")
        return f"NOT SENDING to {refused}: `bskt workflows list` says why", Exit.NOT_READY
    return "following; some requests need a person" if attention.groups else "following", Exit.DONE


def _write(console: Console, looked: _Look) -> None:
    if console.output == "table":
        screen().print(_rendered(looked))
    else:
        console.record(looked.shape)


async def _watch(console: Console, pool: Pool, chain_id: int, stop: Stop, interval_seconds: float) -> Exit:
    from rich.live import Live

    from datastore.errors import DatastoreUnavailable
    from service.supervision import wait

    terminal = screen()
    is_live = console.output == "table" and terminal.is_terminal
    live = Live(console=terminal, auto_refresh=False, screen=True) if is_live else None
    code = Exit.NOT_READY
    if live is not None:
        live.start()
    try:
        while not stop.asked.is_set():
            try:
                looked = await _look(console, pool, chain_id)
            except DatastoreUnavailable as error:
                code = Exit.NOT_READY
                console.message(f"not ready: {error}")
            else:
                code = looked.code
                if live is not None:
                    live.update(_rendered(looked), refresh=True)
                else:
                    _write(console, looked)
            await wait(stop.asked, interval_seconds)
    finally:
        if live is not None:
            live.stop()
    return code


# ---------------------------------------------------------------------------------------------------------------------
# For people
# ---------------------------------------------------------------------------------------------------------------------
def _rendered(looked: _Look) -> RenderableType:
    from rich.console import Group as Renderables
    from rich.text import Text

    shape = looked.shape
    style = {Exit.DONE: "green", Exit.NOT_READY: "yellow"}.get(looked.code, "red")
    parts: list[RenderableType] = [
        Text(f"bskt {shape['version']}, chain {member(shape, 'chain.chain_id')}: {looked.verdict}", style=style),
        _facts(shape),
    ]
    if groups := _dicts(shape["for_a_person"]):
        columns = {
            "requests": "requests",
            "state": "state",
            "why": "why",
            "since": "since",
            "look": "command",
        }
        parts.append(table(groups, columns, title="Needs a person"))
    if alarms := _dicts(shape["alarms"]):
        columns = {"alarm": "kind", "served": "served", "last": "last_at", "request": "request_id", "what": "sentence"}
        parts.append(table([_with_the_others(alarm) for alarm in alarms], columns, title="Alarms of the last day"))
    return Renderables(*parts)


def _with_the_others(alarm: Mapping[str, Json]) -> dict[str, Json]:
    """An alarm whose sentence says how many more there were of its kind."""
    times = alarm["times"]
    more = f"  (and {times - 1:,} more)" if isinstance(times, int) and times > 1 else ""
    return {**alarm, "sentence": f"{alarm['sentence']}{more}"}


def _facts(shape: Mapping[str, Json]) -> RenderableType:
    from service.explanation import counted, span

    def at(path: str) -> Json:
        return member(shape, path)

    counts = shape["requests"]
    states = [f"{count} {state}" for state, count in counts.items() if count] if isinstance(counts, dict) else []
    lag = counted(behind, "block") if isinstance(behind := at("chain.lag_blocks"), int) else ""
    if isinstance(seconds := at("chain.lag_seconds"), float) and seconds:
        lag += f", {span(seconds)}"
    waiting = f"{at('queue.waiting')} waiting"
    if isinstance(oldest := at("queue.oldest_seconds"), float) and oldest:
        waiting += f", the oldest for {span(oldest)}"
    verified = f"block {at('chain.verified')} at {at('chain.verified_at')}"
    if isinstance(seconds := at("chain.verifier_lag_seconds"), float) and seconds > VERIFIER_WAITS_SECONDS:
        verified += f", stands still for {span(seconds)}"
    reorg = at("chain.last_reorg")
    lines: dict[str, Json] = {
        "indexed": f"block {at('chain.indexed')} at {at('chain.indexed_at')}",
        "head": f"block {at('chain.head')}, lag {lag}",
        "finalized": f"block {at('chain.finalized')}, safe {at('chain.safe')}",
        "verified": verified,
        "last reorg": f"{at('chain.last_reorg.orphaned_blocks')} blocks above {at('chain.last_reorg.ancestor')} at "
        f"{at('chain.last_reorg.at')}"
        if reorg
        else "none",
        "nodes": [
            f"{node['name']}: {node['state']}"
            + (f", head {node['head']}" if node["head"] is not None else "")
            + (f" ({node['reason']})" if node["reason"] else "")
            for node in _dicts(at("chain.endpoints"))
        ],
        "requests": ", ".join(states) or "none",
        "queue": waiting,
        "in flight": at("queue.in_flight"),
        "slots": [f"{slot['workflow_id']}: {slot['next_at'] or 'free'}" for slot in _dicts(at("queue.slots"))],
        "paused": shape["paused"],
        "baskets paused": shape["baskets_paused"] or None,
        "quarantined": shape["quarantined"],
        "halted": shape["halted"],
        "sends fail": shape["sends_fail"],
        "refused workflows": [
            f"{each['workflow_id']}: {each['sentence']}" for each in _dicts(shape["refused_workflows"])
        ],
    }
    shown: list[dict[str, Json]] = [
        {"name": name, "value": value} for name, value in lines.items() if value not in (None, [])
    ]
    return table(shown, {"": "name", " ": "value"})


def _dicts(value: Json) -> list[dict[str, Json]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
