"""What people do: ``bskt requests retry|hold|release|cancel|resolve``, ``bskt [baskets] pause|resume``, ``quarantine``.

Each first says what will happen and asks, where a person sits at the terminal; then does exactly that, or nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import click

from service.commands.baskets import baskets, find_one
from service.commands.parameters import NAMES, request_id
from service.commands.requests import requests
from service.commands.workflows import workflow_id, workflows
from service.console import Command, Console, Exit, Refused, asynchronous

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from datastore.connection import Pool
    from datastore.following import Position
    from datastore.instructions import Evidence, Instruction, Will
    from datastore.operators import Answer, BasketSwitch, Finality, Person, Switch
    from datastore.settlement import Horizon
    from service.settings import Settings

    Act: TypeAlias = Callable[[bool, Will | None], Awaitable[Answer]]
    """Carry it out: as a dry run or not, and only if it is what was confirmed."""


def _by_a_person(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every act of a person takes."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Write nothing; say what would happen."),
        click.option(
            "--operator",
            envvar=["BSKT_OPERATOR", "USER", "LOGNAME"],
            show_envvar=True,
            default="",
            help="Who you are, for the record.",
        ),
        click.option("--reason", required=True, metavar="TEXT", help="Why, for the next person who looks."),
    ):
        command = option(command)
    return command


def _with_evidence(command: Callable[..., None]) -> Callable[..., None]:
    """The options by which a person vouches that two ids, or two requests, cannot both mint."""
    for option in (
        click.option(
            "--consumer-refuses-used-references",
            is_flag=True,
            help="The consumer irrevocably refuses a bank reference that it has seen: you have checked its code.",
        ),
        click.option(
            "--evidence-block",
            type=click.IntRange(min=0),
            metavar="N",
            help="The final block up to which you found no mint with this reference on chain.",
        ),
    ):
        command = option(command)
    return command


# ---------------------------------------------------------------------------------------------------------------------
# About one request
# ---------------------------------------------------------------------------------------------------------------------
@requests.command(epilog=f"NAME is {NAMES}.")
@click.argument("name")
@click.option("--new-generation", is_flag=True, help="Under a new id; the old one must not be able to mint.")
@_with_evidence
@_by_a_person
@asynchronous
async def retry(
    console: Console,
    /,
    *,
    name: str,
    new_generation: bool,
    evidence_block: int | None,
    consumer_refuses_used_references: bool,
    **person: Any,
) -> None:
    """Send a failed or reviewed request again: the same bytes under the same id, if anything was sent before."""
    from datastore.instructions import NewGeneration, Retry

    evidence = _evidence(evidence_block, refuses=consumer_refuses_used_references)
    if evidence is not None and not new_generation:
        raise Refused("a retry under the same id needs no evidence; it is for --new-generation", Exit.USAGE)
    await _instruct(console, name, NewGeneration(evidence) if new_generation else Retry(), **person)


@requests.command(epilog=f"NAME is {NAMES}.")
@click.argument("name")
@_by_a_person
@asynchronous
async def hold(console: Console, /, *, name: str, **person: Any) -> None:
    """Send nothing (more) for a request until it is released."""
    from datastore.instructions import Hold

    await _instruct(console, name, Hold(), **person)


@requests.command(epilog=f"NAME is {NAMES}.")
@click.argument("name")
@_with_evidence
@_by_a_person
@asynchronous
async def release(
    console: Console,
    /,
    *,
    name: str,
    evidence_block: int | None,
    consumer_refuses_used_references: bool,
    **person: Any,
) -> None:
    """Take a request from its hold; a rejected duplicate takes the bank reference and is minted."""
    from datastore.instructions import Release

    evidence = _evidence(evidence_block, refuses=consumer_refuses_used_references)
    await _instruct(console, name, Release(evidence), **person)


@requests.command(epilog=f"NAME is {NAMES}.")
@click.argument("name")
@_by_a_person
@asynchronous
async def cancel(console: Console, /, *, name: str, **person: Any) -> None:
    """End a request of which nothing was sent, for good."""
    from datastore.instructions import Cancel

    await _instruct(console, name, Cancel(), **person)


@requests.command(epilog=f"NAME is {NAMES}.")
@click.argument("name")
@click.option(
    "--as",
    "to",
    type=click.Choice(["completed", "failed"]),
    required=True,
    help="completed: its mint is final on chain.  failed: no mint of it is on chain; it stays watched.",
)
@_by_a_person
@asynchronous
async def resolve(console: Console, /, *, name: str, to: Literal["completed", "failed"], **person: Any) -> None:
    """Take a request out of review by what the chain shows."""
    from datastore.instructions import Resolve

    await _instruct(console, name, Resolve(to), **person)


def _evidence(block: int | None, *, refuses: bool) -> Evidence | None:
    from datastore.instructions import Evidence

    if block is None:
        if refuses:
            raise Refused("--consumer-refuses-used-references goes with --evidence-block", Exit.USAGE)
        return None
    return Evidence(final_block=block, consumer_refuses_used_references=refuses)


async def _instruct(
    console: Console,
    name: str,
    instruction: Instruction,
    *,
    reason: str,
    operator: str,
    dry_run: bool,
    yes: bool,
) -> None:
    from datastore import operators
    from datastore.connection import Role

    person = _person(operator, reason)
    async with console.opened(Role.OPERATOR) as pool:
        chain_id = await console.chain_id(pool)
        wanted = await request_id(pool, chain_id, name)
        nonce_of = await _nonce_of(console.settings, pool, chain_id, instruction)

        async def act(dry_run: bool, confirmed: Will | None) -> Answer:
            return await operators.instruct(
                pool,
                chain_id,
                wanted,
                instruction,
                person,
                finality=_finality(console.settings),
                nonce_of=nonce_of,
                dry_run=dry_run,
                confirmed=confirmed,
            )

        await _carry_out(console, act, {"request_id": wanted}, dry_run=dry_run, yes=yes)


def _finality(settings: Settings) -> Finality:
    def horizon(position: Position) -> Horizon:
        return horizon_of(settings, tip=position.cursor.number, finalized=position.finalized, safe=position.safe)

    return horizon


def horizon_of(settings: Settings, *, tip: int, finalized: int, safe: int) -> Horizon:
    """Up to which block a request and a mint are final enough by the settings."""
    from datastore.settlement import Horizon
    from indexer.follower import FinalityRule

    trigger, complete = (
        FinalityRule(tag=each.kind, depth=each.depth_blocks or 0).height(tip=tip, finalized=finalized, safe=safe)
        for each in (settings.trigger_finality, settings.complete_finality)
    )
    return Horizon(trigger=trigger, complete=complete)


async def _nonce_of(
    settings: Settings, pool: Pool, chain_id: int, instruction: Instruction
) -> Callable[[bytes, int], UUID]:
    """How a new id is derived; the secret is asked for only where one is."""
    from datastore import pinning
    from datastore.identity import derive_nonce, secret_check_value
    from datastore.instructions import NewGeneration

    secret = b""
    if isinstance(instruction, NewGeneration):
        from service.wiring import instance_secret

        secret = instance_secret(settings, make=False)
        await pinning.require_secret(pool, chain_id, secret_check_value(secret))
    return lambda identity, generation: derive_nonce(secret, identity, generation)


# ---------------------------------------------------------------------------------------------------------------------
# About one basket
# ---------------------------------------------------------------------------------------------------------------------
@baskets.command("pause")
@click.argument("basket")
@_by_a_person
@asynchronous
async def pause_basket(console: Console, /, *, basket: str, **person: Any) -> None:
    """Send nothing more for one basket, named as for `show`; its open requests are held."""
    from datastore.operators import BasketSwitch

    await _turn_basket(console, basket, BasketSwitch.PAUSE, **person)


@baskets.command("resume")
@click.argument("basket")
@_by_a_person
@asynchronous
async def resume_basket(console: Console, /, *, basket: str, **person: Any) -> None:
    """End the pause of one basket and release what was held for it."""
    from datastore.operators import BasketSwitch

    await _turn_basket(console, basket, BasketSwitch.RESUME, **person)


async def _turn_basket(
    console: Console, basket: str, switch: BasketSwitch, *, reason: str, operator: str, dry_run: bool, yes: bool
) -> None:
    from datastore import operators
    from datastore.connection import Role

    person = _person(operator, reason)
    async with console.opened(Role.OPERATOR) as pool:
        chain_id = await console.chain_id(pool)
        stablecoin = (await find_one(pool, chain_id, basket)).stablecoin

        async def act(dry_run: bool, confirmed: Will | None) -> Answer:
            return await operators.turn_basket(
                pool, chain_id, stablecoin, switch, person, dry_run=dry_run, confirmed=confirmed
            )

        await _carry_out(console, act, {"basket": f"0x{stablecoin.hex()}"}, dry_run=dry_run, yes=yes)


# ---------------------------------------------------------------------------------------------------------------------
# About one workflow
# ---------------------------------------------------------------------------------------------------------------------
@workflows.command()
@click.argument("workflow")
@_by_a_person
@asynchronous
async def reset(console: Console, /, *, workflow: str, reason: str, operator: str, dry_run: bool, yes: bool) -> None:
    """Send to a workflow at once again, when what CRE refused is put right; named by its id of 64 hex digits."""
    from datastore import operators
    from datastore.connection import Role

    person, wanted = _person(operator, reason), workflow_id(workflow)
    async with console.opened(Role.OPERATOR) as pool:
        chain_id = await console.chain_id(pool)

        async def act(dry_run: bool, confirmed: Will | None) -> Answer:
            return await operators.reset_workflow(pool, chain_id, wanted, person, dry_run=dry_run, confirmed=confirmed)

        try:
            await _carry_out(console, act, {"workflow_id": f"0x{wanted.hex()}"}, dry_run=dry_run, yes=yes)
        except operators.WorkflowUnknown as error:
            raise Refused(str(error)) from error


# ---------------------------------------------------------------------------------------------------------------------
# About everything at once
# ---------------------------------------------------------------------------------------------------------------------
@click.command(cls=Command)
@_by_a_person
@asynchronous
async def pause(console: Console, /, **person: Any) -> None:
    """Send nothing more, from the next claim and the next attempt on; the indexer goes on."""
    from datastore.operators import Switch

    await _throw(console, Switch.PAUSE, **person)


@click.command(cls=Command)
@_by_a_person
@asynchronous
async def resume(console: Console, /, **person: Any) -> None:
    """End a pause."""
    from datastore.operators import Switch

    await _throw(console, Switch.RESUME, **person)


@click.command(cls=Command)
@_by_a_person
@asynchronous
async def quarantine(console: Console, /, **person: Any) -> None:
    """After a restore: trigger nothing until the chain is read again to finality.

    A restored database may lack the rows of requests that were sent.  Nothing is triggered until every such send has
    had the time to show itself on chain; then the quarantine ends by itself.  A database that moved to another server
    is noticed without this command; a snapshot that was put back in place is not.
    """
    from datastore.operators import Switch

    await _throw(console, Switch.QUARANTINE, **person)


async def _throw(console: Console, switch: Switch, *, reason: str, operator: str, dry_run: bool, yes: bool) -> None:
    from datastore import operators
    from datastore.connection import Role

    person = _person(operator, reason)
    async with console.opened(Role.OPERATOR) as pool:
        chain_id = await console.chain_id(pool)

        async def act(dry_run: bool, confirmed: Will | None) -> Answer:
            return await operators.throw(
                pool,
                chain_id,
                switch,
                person,
                deadline_seconds=console.settings.completion_deadline_seconds,
                dry_run=dry_run,
                confirmed=confirmed,
            )

        await _carry_out(console, act, {"chain_id": chain_id}, dry_run=dry_run, yes=yes)


# ---------------------------------------------------------------------------------------------------------------------
# Say, ask, do
# ---------------------------------------------------------------------------------------------------------------------
def _person(operator: str, reason: str) -> Person:
    from datastore.operators import Person, Unexplained

    try:
        return Person(name=operator, reason=reason)
    except Unexplained as error:
        raise Refused(f"{error} (--operator, --reason)", Exit.USAGE) from error


async def _carry_out(console: Console, act: Act, about: dict[str, object], *, dry_run: bool, yes: bool) -> None:
    from datastore.instructions import Will
    from datastore.operators import BasketUnknown, RequestUnknown

    try:
        told = await act(True, None)
        confirmed = told.verdict if isinstance(told.verdict, Will) else None
        if dry_run or confirmed is None:
            _show(console, told, about, dry_run=dry_run)
            return
        if not yes and sys.stdin.isatty():
            console.message("\n".join((confirmed.sentence, *confirmed.warnings)))
            if not click.confirm("Do it?", err=True):
                raise Refused("nothing was done")
        _show(console, await act(False, confirmed), about, dry_run=False)
    except (BasketUnknown, RequestUnknown) as error:
        raise Refused(str(error)) from error


def _show(console: Console, answer: Answer, about: dict[str, object], *, dry_run: bool) -> None:
    from datastore import instructions

    verdict = answer.verdict
    outcome = "would be done" if dry_run else "done"
    if isinstance(verdict, instructions.AlreadySo):
        outcome = "already so"
    if isinstance(verdict, instructions.Refused):
        outcome = "refused"
    remedy = verdict.remedy if isinstance(verdict, instructions.Refused) else None
    warnings = verdict.warnings if isinstance(verdict, instructions.Will) else ()
    shape = {
        **about,
        "outcome": outcome,
        "sentence": verdict.sentence,
        "remedy": remedy,
        "warnings": list(warnings),
        "before": dict(answer.before),
        "after": dict(answer.after),
        "action_id": answer.action_id,
    }
    if remedy is not None:
        # Data for a program; a person reads the refusal itself.
        if console.output != "table":
            console.record(shape)
        raise Refused(f"{verdict.sentence}\n{remedy}")
    lines = {"outcome": "outcome", "what": "sentence", "mind": "warnings", "record": "action_id"}
    console.record(shape, lines)
