"""The one HTTP server of a process: whether it lives, whether it is ready, and what its rows say.  Reads only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from types import MappingProxyType
from typing import Final, TypeAlias

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from datastore.errors import DatastoreUnavailable
from datastore.schema import SCHEMA_VERSION
from datastore.status import Attention, Snapshot
from datastore.tally import Totals
from node.pool import EndpointReport
from service import shapes
from service.explanation import counted, is_lagging, span
from service.metrics import endpoint_families, exposition

LONGEST_TURN_SECONDS: Final = 150.0
"""A part that has not turned for longer than this is stuck, unless its settings allow it more."""

Read: TypeAlias = Callable[[], Awaitable[Snapshot | None]]


def stuck_parts(
    last_turn_at: Mapping[str, float],
    now: float,
    halted: Mapping[str, str],
    longest_seconds: Mapping[str, float] = MappingProxyType({}),
) -> list[str]:
    """The parts whose loop has not turned for too long; one that halted for a person is not stuck."""
    return sorted(
        name
        for name, at in last_turn_at.items()
        if name not in halted and now - at > longest_seconds.get(name, LONGEST_TURN_SECONDS)
    )


def unready_reasons(snapshot: Snapshot | None, halted: Mapping[str, str], failing: Mapping[str, str]) -> list[str]:
    """Why the daemon must not be relied on now; a pause by a person is not such a reason.

    Args:
        snapshot: The rows.
        halted: Why, by the name of each part that has stopped for a person.
        failing: What went wrong last, by the name of each part whose latest tick failed.
    """
    reasons = [f"{name} halted: {reason}" for name, reason in sorted(halted.items())]
    reasons += [f"{name} fails: {error}" for name, error in sorted(failing.items())]
    if snapshot is None:
        return [*reasons, "the chain is not pinned yet"]
    if snapshot.halted is not None and not halted:
        reasons.append(f"halted: {snapshot.halted}")
    if snapshot.schema_version != SCHEMA_VERSION:
        reasons.append(f"schema: the database has version {snapshot.schema_version}, this program {SCHEMA_VERSION}")
    if is_lagging(snapshot):
        reasons.append(
            f"lag: the index is {counted(snapshot.lag_blocks, 'block')} ({span(snapshot.lag_seconds)}) behind the head"
        )
    return reasons


def application(
    *,
    chain_id: int,
    read: Read,
    count: Callable[[], Awaitable[Totals]],
    last_turn_at: Mapping[str, float],
    halted: Mapping[str, str],
    clock: Callable[[], float],
    look: Callable[[], Awaitable[Attention]],
    failing: Mapping[str, str],
    endpoints: Callable[[], Sequence[EndpointReport]] = tuple,
    troubles: Callable[[], Sequence[str]] = tuple,
    measured: Sequence[CollectorRegistry] = (),
    longest_turn_seconds: Mapping[str, float] = MappingProxyType({}),
) -> FastAPI:
    """The endpoints; no page loads anything from elsewhere, so there are no interactive docs.

    Args:
        chain_id: The chain of this process.
        read: The rows at this moment; ``None`` before the chain is pinned.
        count: What the metrics count.
        last_turn_at: The clock's seconds of each part's latest step.
        halted: Why, by the name of each part that has stopped for a person.
        clock: Seconds that never go back.
        look: What needs a person.
        failing: What went wrong last, by the name of each part whose latest tick failed.
        endpoints: The nodes that are asked, as ``/status`` shows them; never their URLs.
        troubles: Why the chain cannot be followed well, a sentence each, for ``/readyz``.
        measured: Metrics of this process, which are no rows.
        longest_turn_seconds: By part, where it may be more than ``LONGEST_TURN_SECONDS``.
    """
    program = version("bskt")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    async def livez() -> JSONResponse:
        stuck = stuck_parts(last_turn_at, clock(), halted, longest_turn_seconds)
        return JSONResponse({"stuck": stuck}, status_code=503 if stuck else 200)

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        try:
            reasons = unready_reasons(await read(), halted, failing)
        except DatastoreUnavailable as error:
            reasons = [f"database: {error}"]
        reasons += troubles()
        return JSONResponse({"reasons": reasons}, status_code=503 if reasons else 200)

    @app.get("/status")
    async def status() -> Response:
        try:
            snapshot = await read()
            if snapshot is None:
                return JSONResponse({"error": "the chain is not pinned yet"}, status_code=503)
            shape = shapes.status(
                snapshot, await look(), version=program, endpoints=[asdict(report) for report in endpoints()]
            )
        except DatastoreUnavailable as error:
            return JSONResponse({"error": f"database: {error}"}, status_code=503)
        return Response(shapes.as_json(shape), media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        try:
            live = endpoint_families(endpoints(), troubles(), chain_id)
            text = exposition(await read(), await count(), chain_id, live=live, measured=measured)
        except DatastoreUnavailable as error:
            return Response(f"# database: {error}\n", status_code=503, media_type=CONTENT_TYPE_LATEST)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return app


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
