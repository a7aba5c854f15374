"""Run the CRE stand-in as its own process; stdout gets one line, the gateway's URL, when it is ready."""

import asyncio
import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import click
import structlog

from service.demo.cre_stand_in.gateway import RateLimit
from service.demo.cre_stand_in.ledger import Ledger
from service.demo.cre_stand_in.protocol import Workflow
from service.demo.cre_stand_in.server import CreStandIn


class _Hex(click.ParamType[bytes]):
    """Hex digits of a fixed number of bytes, with or without 0x."""

    name = "hex"

    def __init__(self, length_bytes: int) -> None:
        self._length_bytes = length_bytes

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        try:
            decoded = bytes.fromhex(str(value).removeprefix("0x"))
        except ValueError:
            decoded = b""
        if len(decoded) != self._length_bytes:
            self.fail(f"{value!r} is not {self._length_bytes} bytes in hex", param, ctx)
        return decoded


@click.command()
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Loopback address and port; port 0 is any.")
@click.option("--rpc-url", required=True, help="A node with unlocked accounts (anvil).")
@click.option("--forwarder", required=True, type=_Hex(20), help="Address of the KeystoneForwarder.")
@click.option(
    "--workflow", "workflow_ids", required=True, multiple=True, type=_Hex(32), help="Workflow id; repeatable."
)
@click.option("--authorized-key", "keys", required=True, multiple=True, type=_Hex(20), help="Address; repeatable.")
@click.option("--seconds-per-trigger", type=float, help="Rate limit of each workflow; none by default.")
@click.option("--burst", default=1, show_default=True, help="Triggers at once after a pause.")
@click.option("--delivery-delay-seconds", default=0.0, show_default=True, help="From a run to its transaction.")
@click.option("--check-interval-seconds", default=1.0, show_default=True, help="How often to look for reorgs.")
@click.option(
    "--ledger", "ledger_file", type=click.Path(dir_okay=False, path_type=Path), help="Append JSON lines here."
)
def main(
    *,
    listen: str,
    rpc_url: str,
    forwarder: bytes,
    workflow_ids: tuple[bytes, ...],
    keys: tuple[bytes, ...],
    seconds_per_trigger: float | None,
    burst: int,
    delivery_delay_seconds: float,
    check_interval_seconds: float,
    ledger_file: Path | None,
) -> None:
    """Stand in for Chainlink CRE until SIGTERM or SIGINT."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    host, _, port = listen.rpartition(":")
    with ExitStack() as stack:
        ledger = Ledger()
        if ledger_file is not None:
            lines = stack.enter_context(ledger_file.open("a", encoding="utf-8", buffering=1))
            ledger = Ledger(lambda fact: print(json.dumps(fact), file=lines))
        try:
            stand_in = CreStandIn(
                rpc_url=rpc_url,
                forwarder=forwarder,
                workflows=[
                    Workflow(workflow_id=workflow_id, authorized_keys=frozenset(keys)) for workflow_id in workflow_ids
                ],
                host=host.strip("[]"),
                port=int(port),
                ledger=ledger,
                rate_limit=None
                if seconds_per_trigger is None
                else RateLimit(seconds_per_trigger=seconds_per_trigger, burst=burst),
                delivery_delay_seconds=delivery_delay_seconds,
                check_interval_seconds=check_interval_seconds,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        asyncio.run(_serve(stand_in))


async def _serve(stand_in: CreStandIn) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with stand_in:
        click.echo(stand_in.url)
        await stopped.wait()


if __name__ == "__main__":
    main()
