"""The stand-in's HTTP server: the gateway's one path, and the assembly of everything behind it."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from service.demo.cre_stand_in import faults as endings
from service.demo.cre_stand_in.chain import Chain
from service.demo.cre_stand_in.clock import Clock
from service.demo.cre_stand_in.control import control_routes
from service.demo.cre_stand_in.deliveries import Deliveries
from service.demo.cre_stand_in.exchange import exchange
from service.demo.cre_stand_in.faults import FaultPlan
from service.demo.cre_stand_in.gateway import Gateway, RateLimit
from service.demo.cre_stand_in.ledger import Ledger
from service.demo.cre_stand_in.nodes import Limits, Nodes
from service.demo.cre_stand_in.protocol import ExecutionIdForm, Reply, Workflow

SHUTDOWN_SECONDS = 1


class CreStandIn:
    """CRE in one object: `async with CreStandIn(...) as cre:`, then POST to `cre.url`.

    `faults`, `clock`, `ledger` and `gateway` (its workflows and rate limit) may be used at any time.  The chain is
    looked at when a report is sent and in `check_deliveries`; with `check_interval_seconds` also by itself, which a
    chain that does not mine at once needs.
    """

    def __init__(
        self,
        *,
        rpc_url: str,
        forwarder: bytes,
        workflows: Sequence[Workflow],
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
        ledger: Ledger | None = None,
        rate_limit: RateLimit | None = None,
        limits: Limits | None = None,
        execution_id_form: ExecutionIdForm = "trigger_index",
        delivery_delay_seconds: float = 0,
        check_interval_seconds: float | None = None,
        final_depth_blocks: int = 64,
        transmitter: str | None = None,
        max_body_bytes: int = 100_000,
    ) -> None:
        """Take the settings; nothing opens before `async with`.

        Raises:
            ValueError: `host` is not a loopback address.  The control paths have no other guard.
        """
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"the CRE stand-in listens on loopback only, not on {host}")
        self.clock = clock or Clock()
        self.ledger = ledger or Ledger()
        self.faults = FaultPlan()
        self.gateway = Gateway(clock=self.clock, workflows=workflows, rate_limit=rate_limit)
        self.url = ""
        self._rpc_url = rpc_url
        self._forwarder = forwarder
        self._transmitter = transmitter
        self._host = host
        self._port = port
        self._limits = limits or Limits()
        self._execution_id_form = execution_id_form
        self._delivery_delay_seconds = delivery_delay_seconds
        self._check_interval_seconds = check_interval_seconds
        self._final_depth_blocks = final_depth_blocks
        self._max_body_bytes = max_body_bytes

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        try:
            await self._open(self._stack)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _open(self, stack: AsyncExitStack) -> None:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        # Runs outlive the call that triggered them, so they belong to the server: a failed one fails it.
        self._group = await stack.enter_async_context(asyncio.TaskGroup())
        self._runs: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        stack.callback(self._cancel_tasks)
        chain = Chain(session=session, rpc_url=self._rpc_url, forwarder=self._forwarder, transmitter=self._transmitter)
        self._deliveries = Deliveries(chain=chain, ledger=self.ledger, final_depth_blocks=self._final_depth_blocks)
        self._nodes = Nodes(
            clock=self.clock,
            ledger=self.ledger,
            deliveries=self._deliveries,
            spawn=self._spawn,
            execution_id_form=self._execution_id_form,
            limits=self._limits,
            delivery_delay_seconds=self._delivery_delay_seconds,
        )
        if self._check_interval_seconds is not None:
            self._watch = self._group.create_task(self._watch_deliveries(self._check_interval_seconds))
        self._stopping = asyncio.Event()
        await self._listen(stack)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The caller's own error is kept from the task group, which would wrap it in an ExceptionGroup.
        await self._stack.aclose()

    async def _listen(self, stack: AsyncExitStack) -> None:
        application = web.Application(client_max_size=self._max_body_bytes)
        application.router.add_post("/", self._post)
        application.router.add_get("/health", self._health)
        application.add_routes(
            control_routes(ledger=self.ledger, faults=self.faults, clock=self.clock, deliveries=self._deliveries)
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stack.callback(self._stopping.set)
        await web.TCPSite(runner, self._host, self._port).start()
        host, port = runner.addresses[0][:2]
        self._runner, self._port = runner, port
        self.url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def _spawn(self, run: Coroutine[None, None, None]) -> None:
        task = self._group.create_task(run)
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    def _cancel_tasks(self) -> None:
        for task in (*self._runs, *filter(None, [self._watch])):
            task.cancel()

    async def _watch_deliveries(self, interval_seconds: float) -> None:
        while True:
            await self.clock.wait(interval_seconds)
            await self._deliveries.check()

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Take no connections inside of this; what runs goes on, and the same address is open again afterwards."""
        for site in tuple(self._runner.sites):
            await site.stop()
        yield
        await web.TCPSite(self._runner, self._host, self._port).start()

    def hold_deliveries(self) -> None:
        """Let runs write reports but send none, until `release_deliveries`."""
        self._deliveries.hold()

    async def release_deliveries(self) -> None:
        """Send what waited; with a chain that mines at once it is on chain when this returns."""
        await self._deliveries.release()

    async def check_deliveries(self) -> None:
        """Look at the chain: settle what was mined, send again what a reorg took."""
        await self._deliveries.check()

    async def idle(self) -> None:
        """Return when nothing runs and nothing waits for a run; held deliveries keep runs going for ever."""
        while self._runs:
            await asyncio.wait(tuple(self._runs))

    async def _health(self, _http: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _post(self, http: web.Request) -> web.StreamResponse:
        try:
            body = await http.read()
        except web.HTTPRequestEntityTooLarge:
            return web.Response(status=400)  # §2.2: oversize has an empty body
        header_token = http.headers.get("Authorization", "").removeprefix("Bearer ")
        call = exchange(
            body,
            header_token=header_token,
            gateway=self.gateway,
            nodes=self._nodes,
            faults=self.faults,
            ledger=self.ledger,
        )
        if call.delay_seconds:
            await self.clock.wait(call.delay_seconds)
            self.gateway.answered(call.request_id)
        return await self._end(http, call.ending, call.request_id, call.right)

    async def _end(
        self, http: web.Request, ending: endings.Ending, request_id: str, right: Reply | None
    ) -> web.StreamResponse:
        match ending:
            case endings.Answer():
                return _response(ending.make(request_id, right))
            case endings.CutShort() if right is not None:
                response = web.StreamResponse(headers={"Content-Length": str(len(right.body))})
                await response.prepare(http)
                await response.write(right.body[: len(right.body) // 2])
                _close(http)
                return response
            case endings.StaySilent():
                await self._stopping.wait()
        _close(http)
        return web.Response()


def _close(http: web.Request) -> None:
    if http.transport is not None:
        http.transport.close()


def _response(reply: Reply) -> web.Response:
    return web.Response(
        status=reply.status, body=reply.body, headers={"Content-Type": reply.content_type, **reply.headers}
    )
