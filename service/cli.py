"""The ``bskt`` command.

Imports that cost time stand inside the commands: ``bskt --help`` must answer at once.
"""

from __future__ import annotations

import click

from service.commands.backfill import backfill
from service.commands.baskets import baskets
from service.commands.chain import chain
from service.commands.check import check
from service.commands.demo import demo
from service.commands.keys import keys
from service.commands.operate import pause, quarantine, resume
from service.commands.requests import requests
from service.commands.run import run
from service.commands.schema import schema
from service.commands.status import status
from service.commands.verify import verify
from service.commands.workflows import workflows
from service.console import Group


@click.group(cls=Group, outermost=True, context_settings={"auto_envvar_prefix": "BSKT"})
@click.version_option(package_name="bskt")
def main() -> None:
    """BSKT's mint daemon: every MintRequested recorded, each one minted at most once.

    Exit codes: 0 done, 1 error, 2 usage, 3 not ready or lagging, 4 findings, 5 paused or halted.  The global options
    may also stand after the command.  Everything else is a setting, BSKT_… in the environment or the env file.
    """


for command in (
    backfill,
    baskets,
    chain,
    check,
    demo,
    keys,
    pause,
    quarantine,
    requests,
    resume,
    run,
    schema,
    status,
    verify,
    workflows,
):
    main.add_command(command)
