"""``bskt workflows``: CRE's workflows as the rows know them.  What people do to them is in ``operate``."""

from __future__ import annotations

import re

import click

from service.console import Console, Exit, Group, Refused, asynchronous


@click.group(cls=Group)
def workflows() -> None:
    """CRE's workflows: their slots, what waits for them, and whether CRE refuses them."""


@workflows.command("list")
@asynchronous
async def list_(console: Console) -> None:
    """List every workflow that was ever configured, oldest first."""
    from datastore import breakers
    from datastore.connection import Role
    from service import shapes

    async with console.opened(Role.READER) as pool:
        found = await breakers.workflows(pool, await console.chain_id(pool), console.settings.cre_workflow)
    console.rows(
        [shapes.workflow(each) for each in found],
        {
            "workflow": "workflow_id",
            "state": "state",
            "waiting": "waiting",
            "in flight": "in_flight",
            "next slot": lambda row: row["next_at"] or "free",
            "refused since": "breaker.since",
            "next probe": "breaker.next_probe_at",
            "why": "breaker.sentence",
        },
    )


def workflow_id(text: str) -> bytes:
    """The 32 bytes of a workflow id.

    Raises:
        Refused: It is none.
    """
    digits = text.removeprefix("0x")
    if re.fullmatch(r"[0-9a-fA-F]{64}", digits) is None:
        raise Refused(f"{text!r} is no workflow id: expected 64 hex digits", Exit.USAGE)
    return bytes.fromhex(digits)
