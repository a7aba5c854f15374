import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import pytest

from datastore.errors import DatastoreUnavailable
from datastore.schema import SCHEMA_VERSION
from datastore.status import Attention, Snapshot
from datastore.tally import Totals
from node.capabilities import Feature
from node.endpoint import Outcome
from node.health import EndpointState
from node.inconsistency import Inconsistency
from node.pool import EndpointReport
from service import wiring
from service.http import LONGEST_TURN_SECONDS, application, stuck_parts, unready_reasons
from service.metrics import RpcMetrics, counted, endpoint_families, families
from service.settings import load
from service.supervision import Stop, Supervisor

SNAPSHOT = Snapshot(
    chain_id=31337,
    read_at=datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC),
    schema_version=SCHEMA_VERSION,
    head=12,
    safe=11,
    finalized=10,
    indexed=9,
    swept=8,
    swept_at=datetime(2026, 1, 1, tzinfo=UTC),
    indexed_hash=b"\x01" * 32,
    indexed_at=datetime(2026, 1, 1, tzinfo=UTC),
    indexed_timestamp=1_767_225_569,
    last_reorg=None,
    requests={"seen": 1},
    waiting=0,
    oldest_seconds=0.0,
    in_flight=0,
    baskets=1,
    baskets_paused=0,
    slots=(),
    paused=None,
    paused_at=None,
    quarantined=None,
    quarantined_at=None,
    quarantined_until=None,
    is_home=True,
    halted=None,
    halted_at=None,
)
NOTHING = Attention(groups=(), alarms=(), sends_fail=None)

ENDPOINT = EndpointReport(
    name="0",
    state=EndpointState.RATE_LIMITED,
    head=12,
    reason="slow down",
    requests=3,
    failovers=1,
    batch_size=3,
    answered_blocks=10,
    refused_blocks=12,
    lacks=(Feature.LOGS_BY_TOPIC,),
)


Read: TypeAlias = Callable[[], Awaitable[Snapshot | None]]


async def answer(path: str, read: Read, halted: dict[str, str], troubles: tuple[str, ...] = ()) -> tuple[int, bytes]:
    """Ask the application as a server would, by its ASGI interface."""
    rpc = RpcMetrics(31337)
    rpc.observe("0", "eth_getLogs", Outcome.OK, 0.02)
    rpc.inconsistent(Inconsistency.LOGS_MISSING)
    rpc.failed_over()
    app = application(
        chain_id=31337,
        read=read,
        count=nothing,
        last_turn_at={"indexer": 0.0},
        halted=halted,
        clock=lambda: 1.0,
        endpoints=lambda: [ENDPOINT],
        troubles=lambda: troubles,
        look=nothing_to_see,
        failing={},
        measured=[rpc.registry],
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
    exposed = [
        *families(SNAPSHOT, 31337),
        *counted(Totals(), 31337),
        *endpoint_families([], [], 31337),
        *RpcMetrics(31337).registry.collect(),
    ]
    assert documented == {f"{family.name}_total" if family.type == "counter" else family.name for family in exposed}


async def nothing() -> Totals:
    return Totals()


async def nothing_to_see() -> Attention:
    return NOTHING


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
    assert stuck_parts(turns, now, {}, {"indexer": now}) == []
    assert stuck_parts(turns, now, {}, {"invocator": 10.0}) == ["indexer", "invocator"]


@pytest.mark.parametrize(
    ("environ", "attempt_seconds"),
    [
        ({}, 90),
        ({"BSKT_CRE_TIMEOUT_SECONDS": "280", "BSKT_CLAIM_LEASE_SECONDS": "300"}, 280),
        ({"BSKT_CRE_MODE": "simulate"}, 600),
        ({"BSKT_CRE_MODE": "dry-run"}, 0),
    ],
)
def test_an_attempt_may_take_all_of_its_time_before_it_is_called_stuck_or_given_up(
    environ: dict[str, str], attempt_seconds: int
) -> None:
    settings = load({}, None, environ)
    grace = wiring.grace_seconds(settings)
    assert grace == max(100, attempt_seconds + 35)
    assert wiring.longest_turn_seconds(settings)["invocator"] == max(LONGEST_TURN_SECONDS, grace + 30)


async def test_a_part_is_not_stuck_while_its_tick_commits() -> None:
    """One tick of a follower that catches up may take longer than any bound."""
    turns = {"indexer": 5.0}
    asked = Stop()
    asked.ask()
    supervised = Supervisor([], stop=asked, last_turn_at=turns)
    assert await supervised.run() == 0
    turns["indexer"] = 1_000.0
    assert stuck_parts(supervised.last_turn_at, 1_001.0, {}) == []


def test_what_keeps_the_daemon_from_being_relied_on_is_a_reason_and_a_pause_is_not() -> None:
    """Hard case 120."""
    assert unready_reasons(replace(SNAPSHOT, paused="lunch"), {}, {}) == []
    assert unready_reasons(SNAPSHOT, {"indexer": "finality"}, {}) == ["indexer halted: finality"]
    assert unready_reasons(replace(SNAPSHOT, halted="finality"), {}, {}) == ["halted: finality"]
    assert unready_reasons(None, {}, {}) == ["the chain is not pinned yet"]
    assert unready_reasons(SNAPSHOT, {}, {"indexer": "NodeUnavailable: no answer"}) == [
        "indexer fails: NodeUnavailable: no answer"
    ]
    assert unready_reasons(replace(SNAPSHOT, indexed_timestamp=1_767_221_905), {}, {}) == [
        "lag: the index is 3 blocks (1 h 1 min) behind the head"
    ]
    assert unready_reasons(replace(SNAPSHOT, schema_version=SCHEMA_VERSION + 1), {}, {})[0].startswith("schema: ")


def test_the_verifier_lags_only_while_final_blocks_wait_for_it() -> None:
    assert SNAPSHOT.verifier_lag_seconds == 5.0
    assert replace(SNAPSHOT, swept=SNAPSHOT.finalized).verifier_lag_seconds == 0.0
    assert replace(SNAPSHOT, finalized=-1).verifier_lag_seconds == 0.0


async def test_status_has_the_promised_members() -> None:
    """The interface's own example, member by member."""
    code, body = await answer("/status", healthy, {})
    status = json.loads(body)
    assert code == 200
    assert status["version"] == version("bskt")
    assert status["chain"] == {
        "chain_id": 31337,
        "head": 12,
        "safe": 11,
        "finalized": 10,
        "indexed": 9,
        "indexed_hash": "0x" + "01" * 32,
        "indexed_at": "2026-01-01T00:00:00Z",
        "lag_blocks": 3,
        "lag_seconds": 36.0,
        "verified": 8,
        "verified_at": "2026-01-01T00:00:00Z",
        "verifier_lag_seconds": 5.0,
        "last_reorg": None,
        "endpoints": [asdict(ENDPOINT) | {"lacks": ["logs_by_topic"]}],
    }
    assert status["requests"] == {"seen": 1}
    assert status["queue"] == {
        "waiting": 0,
        "oldest_seconds": 0.0,
        "next_slot_at": None,
        "in_flight": 0,
        "slots": [],
    }
    assert [status[name] for name in ("paused", "quarantined", "halted", "sends_fail")] == [None] * 4
    assert (status["for_a_person"], status["alarms"]) == ([], [])


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
        (
            "/status",
            healthy,
            {},
            200,
            b'"endpoints":[{"name":"0","state":"rate_limited","head":12,"reason":"slow down"',
        ),
        (
            "/metrics",
            healthy,
            {},
            200,
            b'bskt_rpc_requests_total{chain_id="31337",endpoint="0",method="eth_getLogs",outcome="ok"} 1.0',
        ),
        (
            "/metrics",
            healthy,
            {},
            200,
            b'bskt_rpc_request_seconds_bucket{chain_id="31337",endpoint="0",le="0.025"} 1.0',
        ),
        ("/metrics", healthy, {}, 200, b'bskt_rpc_inconsistencies_total{chain_id="31337",kind="logs_missing"} 1.0'),
        (
            "/metrics",
            unpinned,
            {},
            200,
            b'bskt_rpc_endpoint_state{chain_id="31337",endpoint="0",state="rate_limited"} 1.0',
        ),
        ("/metrics", unpinned, {}, 200, b'bskt_chain_troubles{chain_id="31337"} 0.0'),
        ("/metrics", unpinned, {}, 200, b'bskt_rpc_failovers_total{chain_id="31337"} 1.0'),
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


@pytest.mark.parametrize("read", [healthy, down])
async def test_what_is_wrong_with_the_chain_makes_us_unready(read: Read) -> None:
    """Hard case 120."""
    trouble = "node: no new head after block 12 for 130 s (limit 120 s)"
    code, body = await answer("/readyz", read, {}, (trouble,))
    assert (code, trouble.encode() in body) == (503, True)
