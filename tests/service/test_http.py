import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import pytest

from datastore.errors import DatastoreUnavailable
from datastore.status import Snapshot
from datastore.tally import Totals
from service.http import LONGEST_TURN_SECONDS, application, stuck_parts, unready_reasons
from service.metrics import counted, families

SNAPSHOT = Snapshot(
    head=12,
    safe=11,
    finalized=10,
    indexed=9,
    indexed_at=datetime(2026, 1, 1, tzinfo=UTC),
    last_reorg_at=None,
    requests={"seen": 1},
    waiting=0,
    oldest_seconds=0.0,
    paused=None,
    quarantined=None,
    halted=None,
)


Read: TypeAlias = Callable[[], Awaitable[Snapshot | None]]


async def answer(path: str, read: Read, halted: dict[str, str]) -> tuple[int, bytes]:
    """Ask the application as a server would, by its ASGI interface."""
    app = application(
        chain_id=31337, read=read, count=nothing, last_turn_at={"indexer": 0.0}, halted=halted, clock=lambda: 1.0
    )
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)  # type: ignore[arg-type]  # the plain dictionaries of the protocol
    status = sent[0]["status"]
    body = sent[1]["body"]
    assert isinstance(status, int)
    assert isinstance(body, bytes)
    return status, body


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(bskt_\w+)`", text, re.MULTILINE))
    exposed = [*families(SNAPSHOT, 31337), *counted(Totals(), 31337)]
    assert documented == {f"{family.name}_total" if family.type == "counter" else family.name for family in exposed}


async def nothing() -> Totals:
    return Totals()


async def healthy() -> Snapshot | None:
    return SNAPSHOT


async def unpinned() -> Snapshot | None:
    return None


async def down() -> Snapshot | None:
    raise DatastoreUnavailable("postgres: ConnectionRefusedError")


def test_a_part_that_has_not_turned_for_too_long_is_stuck_and_one_that_halted_is_not() -> None:
    turns = {"indexer": 0.0, "invocator": 100.0}
    now = LONGEST_TURN_SECONDS + 1
    assert stuck_parts(turns, now, {}) == ["indexer"]
    assert stuck_parts(turns, now, {"indexer": "finality"}) == []


def test_a_halt_is_a_reason_for_not_being_ready() -> None:
    assert unready_reasons(SNAPSHOT, {}) == []
    assert unready_reasons(SNAPSHOT, {"indexer": "finality"}) == ["indexer halted: finality"]
    assert unready_reasons(None, {}) == ["the chain is not pinned yet"]


@pytest.mark.parametrize(
    ("path", "read", "halted", "status", "text"),
    [
        ("/livez", healthy, {}, 200, b'"stuck":[]'),
        ("/readyz", healthy, {}, 200, b'"reasons":[]'),
        ("/readyz", down, {}, 503, b"database: postgres"),
        ("/readyz", healthy, {"indexer": "why"}, 503, b"indexer halted: why"),
        ("/metrics", healthy, {}, 200, b'bskt_mint_requests{chain_id="31337",state="seen"} 1.0'),
        ("/metrics", healthy, {}, 200, b'bskt_mint_end_to_end_seconds_bucket{chain_id="31337",le="+Inf"} 0.0'),
        ("/metrics", down, {}, 503, b"database: postgres"),
        ("/status", healthy, {}, 200, b'"lag_blocks":3'),
        ("/status", unpinned, {}, 503, b"not pinned"),
        ("/status", down, {}, 503, b"database: postgres"),
    ],
)
async def test_an_endpoint_tells_the_truth(
    path: str,
    read: Read,
    halted: dict[str, str],
    status: int,
    text: bytes,
) -> None:
    """Hard case 120."""
    code, body = await answer(path, read, halted)
    assert code == status
    assert text in body
