"""``bskt check``: everything that a person would want to know before the first start, and after each change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from service.console import Command, Console, Exit, asynchronous

if TYPE_CHECKING:
    from service.checkup import Findings, Stored
    from service.settings import Settings


@click.command(cls=Command, epilog="Exit codes: 0 nothing to mend, 4 findings.")
@click.option("--quiet", is_flag=True, help="Show only what is to be mended.")
@asynchronous
async def check(console: Console, *, quiet: bool) -> Exit:
    """Check settings, database, nodes, clocks, gateway and keys.

    Nothing is changed and nothing is triggered.  A workflow's existence is asked for by a call without a token; whether
    it authorises the signer cannot be asked without a trigger, so the latest answers of CRE say that.
    """
    from service import checkup, settings
    from service.checkup import Findings

    findings = Findings()
    if isinstance(console.read, settings.SettingsError):
        checkup.refused(findings, console.read)
    else:
        checkup.look_at_settings(findings, console.settings)
        stored = await look_at_database(findings, console)
        await checkup.look_at_nodes(findings, console.settings, stored, checkup.now)
        await checkup.look_at_gateway(findings, console.settings, checkup.now)
        checkup.look_at_keys(findings, console.settings, settings.secret_files(console.env_file), stored)
    return show(console, findings, quiet=quiet)


async def look_at_database(findings: Findings, console: Console) -> Stored | None:
    """The configured database, or the embedded one if there is one yet."""
    from service import checkup
    from service.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresUnusable

    settings: Settings = console.settings
    directory = settings.data_dir / "postgres"
    try:
        if settings.database_url is None and not EmbeddedPostgres(directory).exists():
            findings.note(
                "database", f"No BSKT_DATABASE_URL: the first start makes an embedded Postgres in {directory}."
            )
            return None
        async with console.database() as dsn:
            return await checkup.look_at_database(findings, settings, dsn, checkup.now)
    except EmbeddedPostgresUnusable as error:
        findings.error("database", str(error), "mend that, or set BSKT_DATABASE_URL to a database of yours")
        return None


def show(console: Console, findings: Findings, *, quiet: bool) -> Exit:
    """Write the findings; the exit code."""
    from service.checkup import Severity
    from service.explanation import counted

    shown = [each for each in findings.found if not (quiet and each.severity in {Severity.OK, Severity.NOTE})]
    console.rows(
        [
            {"check": each.check, "severity": each.severity, "sentence": each.sentence, "remedy": each.remedy}
            for each in shown
        ],
        {"": "severity", "check": "check", "found": "sentence", "remedy": "remedy"},
    )
    if findings.are_clean:
        console.message("Nothing to mend.")
        return Exit.DONE
    number = sum(each.severity in {Severity.WARNING, Severity.ERROR} for each in findings.found)
    console.message(f"{counted(number, 'finding')} to mend.")
    return Exit.FINDINGS
