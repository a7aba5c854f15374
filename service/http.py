"""The one HTTP server of a process: whether it lives, whether it is ready, and what its rows say.  Reads only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final, TypeAlias

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from datastore.errors import DatastoreUnavailable
from datastore.status import Snapshot
from node.pool import EndpointReport
from service.metrics import endpoint_families, exposition

LONGEST_TURN_SECONDS: Final = 150.0
"""A tick may wait for CRE's answer for 90 s; a part that has not turned for longer than this is stuck."""

Read: TypeAlias = Callable[[], Awaitable[Snapshot | None]]


def stuck_parts(last_turn_at: Mapping[str, float], now: float, halted: Mapping[str, str]) -> list[str]:
    """The parts whose loop has not turned for too long; one that halted for a person is not stuck."""
    return sorted(name for name, at in last_turn_at.items() if name not in halted and now - at > LONGEST_TURN_SECONDS)


def unready_reasons(snapshot: Snapshot | None, halted: Mapping[str, str]) -> list[str]:
    """Why the daemon must not be relied on now; a pause by a person is not such a reason."""
    reasons = [f"{name} halted: {reason}" for name, reason in sorted(halted.items())]
    if snapshot is None:
        reasons.append("the chain is not pinned yet")
    elif snapshot.halted is not None and not halted:
        reasons.append(f"halted: {snapshot.halted}")
    return reasons


def application(
    *,
    chain_id: int,
    read: Read,
    last_turn_at: Mapping[str, float],
    halted: Mapping[str, str],
    clock: Callable[[], float],
    endpoints: Callable[[], Sequence[EndpointReport]] = tuple,
    troubles: Callable[[], Sequence[str]] = tuple,
    counted: Sequence[CollectorRegistry] = (),
) -> FastAPI:
    """The application; no page loads anything from elsewhere, so there are no interactive docs.

    Args:
        chain_id: The label of the metrics.
        read: The rows.
        last_turn_at: The supervisor's.
        halted: The supervisor's.
        clock: The supervisor's.
        endpoints: The nodes, for ``/status``.
        troubles: Why the chain cannot be followed well, a sentence each, for ``/readyz``.
        counted: Metrics that are no rows.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    async def livez() -> JSONResponse:
        stuck = stuck_parts(last_turn_at, clock(), halted)
        return JSONResponse({"stuck": stuck}, status_code=503 if stuck else 200)

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        try:
            reasons = unready_reasons(await read(), halted)
        except DatastoreUnavailable as error:
            reasons = [f"database: {error}"]
        reasons += troubles()
        return JSONResponse({"reasons": reasons}, status_code=503 if reasons else 200)

    @app.get("/status")
    async def status() -> JSONResponse:
        try:
            snapshot = await read()
        except DatastoreUnavailable as error:
            return JSONResponse({"error": f"database: {error}"}, status_code=503)
        return JSONResponse(_status(snapshot, endpoints()), status_code=200 if snapshot else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        try:
            live = endpoint_families(endpoints(), troubles(), chain_id)
            text = exposition(await read(), chain_id, live=live, counted=counted)
        except DatastoreUnavailable as error:
            return Response(f"# database: {error}\n", status_code=503, media_type=CONTENT_TYPE_LATEST)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return app


def _status(snapshot: Snapshot | None, endpoints: Sequence[EndpointReport]) -> dict[str, object]:
    if snapshot is None:
        return {"error": "the chain is not pinned yet"}
    plain = asdict(snapshot)
    for name in ("indexed_at", "last_reorg_at"):
        plain[name] = plain[name].isoformat() if plain[name] else None
    chain = {name: plain.pop(name) for name in ("head", "safe", "finalized", "indexed", "indexed_at", "last_reorg_at")}
    chain["lag_blocks"] = max(0, snapshot.head - snapshot.indexed)
    chain["endpoints"] = [asdict(report) for report in endpoints]
    queue = {name: plain.pop(name) for name in ("waiting", "oldest_seconds")}
    return {"chain": chain, "queue": queue, **plain}


class _Server(uvicorn.Server):
    """A server that leaves the process's signals alone: supervision owns them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: FastAPI, *, host: str, port: int) -> None:
    """Serve until cancelled.

    Raises:
        OSError: The address cannot be used.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=1, lifespan="off"
    )
    # Bound here: on an address in use, uvicorn would end the process by itself, without the other parts' leave.
    with socket.create_server((host, port)) as listening:
        server = _Server(config)
        try:
            await server.serve(sockets=[listening])
        except asyncio.CancelledError:
            # uvicorn would leave its socket with the loop, and who gets its number next would wait for ever.
            await server.shutdown(sockets=[listening])
            raise
