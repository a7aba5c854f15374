"""``bskt keys``: whose keys these are, without ever showing one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from service.console import Console, Exit, Group, asynchronous

if TYPE_CHECKING:
    from pathlib import Path


@click.group(cls=Group)
def keys() -> None:
    """The signer key and the instance secret: addresses and check values only."""


@keys.command()
@asynchronous
async def show(console: Console) -> None:
    """Show the signer's address, the instance secret's check value, and where they come from."""
    from datastore.identity import secret_check_value
    from invocator.signing import Signer, SignerKeyUnusable
    from service import checkup, settings, wiring
    from service.console import Refused

    files = settings.secret_files(console.env_file)
    read = console.settings
    signer = None
    if read.cre_signer_key is not None:
        try:
            signer = Signer.from_text(read.cre_signer_key.get_secret_value())
        except SignerKeyUnusable as error:
            raise Refused(f"BSKT_CRE_SIGNER_KEY: {error}", Exit.USAGE) from error
    secret = checkup.present_secret(read)
    kept = str(wiring.kept_secret_path(read.data_dir)) if secret is not None else None
    console.record(
        {
            "signer": None if signer is None else signer.address,
            "signer_source": _source(files, "BSKT_CRE_SIGNER_KEY", is_set=signer is not None),
            "instance_secret_check": None if secret is None else secret_check_value(secret),
            "instance_secret_source": kept
            if read.instance_secret is None
            else _source(files, "BSKT_INSTANCE_SECRET", is_set=True),
        },
        {
            "signer": lambda row: row["signer"] or "not set",
            "from": "signer_source",
            "instance secret's check value": lambda row: row["instance_secret_check"] or "none yet",
            "from ": "instance_secret_source",
        },
    )


def _source(files: dict[str, Path], name: str, *, is_set: bool) -> str | None:
    if not is_set:
        return None
    return str(files[name]) if name in files else "the environment or the env file"


@keys.command(epilog="Exit codes: 0 nothing to mend, 4 findings.")
@click.option("--quiet", is_flag=True, help="Show only what is to be mended.")
@asynchronous
async def check(console: Console, *, quiet: bool) -> Exit:
    """Check that keys can be read by their owner only, parse, and are those that open requests are frozen for."""
    from service import checkup, settings
    from service.commands.check import look_at_database
    from service.commands.check import show as show_findings

    findings = checkup.Findings()
    if isinstance(console.read, settings.SettingsError):
        checkup.refused(findings, console.read)
    else:
        # Of the database only what is stored matters here; that it cannot be read is a finding all the same.
        aside = checkup.Findings()
        stored = await look_at_database(aside, console)
        if stored is None and not aside.are_clean:
            findings.found += [each for each in aside.found if each.severity is checkup.Severity.ERROR]
        checkup.look_at_keys(findings, console.settings, settings.secret_files(console.env_file), stored)
    return show_findings(console, findings, quiet=quiet)
