"""What people do: to requests, to baskets, and to everything at once.

Each first says what will happen and asks, where a person sits at the terminal; then does exactly that, or nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click

from datastore.lifecycle import State
from service.commands.baskets import baskets, find_one
from service.commands.parameters import NAMES, YES, consent, request_id
from service.commands.requests import requests
from service.commands.workflows import workflow_id, workflows
from service.console import Command, Console, Exit, Refused, asynchronous

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from datastore.connection import Pool
    from datastore.following import Position
    from datastore.instructions import Instruction, Will
    from datastore.operators import Answer, BasketSwitch, Finality, Person, Switch
    from datastore.settlement import Horizon
    from service.settings import Settings

    Act: TypeAlias = Callable[[bool, Will | None], Awaitable[Answer]]
    """Carry it out: as a dry run or not, and only if it is what was confirmed."""

MOST_SELECTED: Final = 1_000
"""Requests of one command.  Each is a transaction of its own, so that no lock is held for all of them."""


def _by_a_person(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every act of a person takes."""
    for option in (
        YES,
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


_with_evidence = click.option(
    "--evidence-block",
    type=click.IntRange(min=0),
    metavar="N",
    help="A final block, later than what was sent can be delivered: the chain is asked whether, by then, the consumer "
    "refuses used references for ever and has not used this one.",
)


def _of_requests(command: Callable[..., None]) -> Callable[..., None]:
    """Which requests: one by its name, or all that are in a state for one reason."""
    for option in (
        click.option(
            "--limit",
            type=click.IntRange(1, MOST_SELECTED),
            default=100,
            show_default=True,
            help="With --state: at most so many, the oldest first.",
        ),
        click.option("--reason-code", metavar="CODE", help="With --state: those that are in it for this reason."),
        click.option(
            "--state",
            type=click.Choice([state.value for state in State]),
            help="Instead of NAME, with --reason-code: every request in this state for that reason.",
        ),
        click.argument("name", required=False),
    ):
        command = option(command)
    return command


# ---------------------------------------------------------------------------------------------------------------------
# About requests
# ---------------------------------------------------------------------------------------------------------------------
@requests.command(epilog=f"NAME is {NAMES}.")
@click.option("--new-generation", is_flag=True, help="Under a new id; once it was sent, only with --evidence-block.")
@_with_evidence
@_of_requests
@_by_a_person
@asynchronous
async def retry(console: Console, /, *, new_generation: bool, evidence_block: int | None, **asked: Any) -> Exit:
    """Send a failed or reviewed request again: the same bytes under the same id, if anything was sent before."""
    from datastore.instructions import NewGeneration, Retry

    if evidence_block is not None and not new_generation:
        raise Refused("a retry under the same id needs no evidence; it is for --new-generation", Exit.USAGE)
    instruction = NewGeneration() if new_generation else Retry()
    return await _instruct(console, instruction, evidence_block=evidence_block, **asked)


@requests.command(epilog=f"NAME is {NAMES}.")
@_of_requests
@_by_a_person
@asynchronous
async def hold(console: Console, /, **asked: Any) -> Exit:
    """Send nothing (more) for a request until it is released."""
    from datastore.instructions import Hold

    return await _instruct(console, Hold(), **asked)


@requests.command(epilog=f"NAME is {NAMES}.")
@_with_evidence
@_of_requests
@_by_a_person
@asynchronous
async def release(console: Console, /, *, evidence_block: int | None, **asked: Any) -> Exit:
    """Take a request from its hold; a rejected duplicate takes the bank reference and is minted."""
    from datastore.instructions import Release

    return await _instruct(console, Release(), evidence_block=evidence_block, **asked)


@requests.command(epilog=f"NAME is {NAMES}.")
@_of_requests
@_by_a_person
@asynchronous
async def cancel(console: Console, /, **asked: Any) -> Exit:
    """End a request of which nothing was sent, for good."""
    from datastore.instructions import Cancel

    return await _instruct(console, Cancel(), **asked)


@requests.command(epilog=f"NAME is {NAMES}.")
@click.option(
    "--as",
    "to",
    type=click.Choice(["completed", "failed"]),
    required=True,
    help="completed: its mint is right, and final on chain.  failed: no mint of it is on chain; it stays watched.",
)
@_of_requests
@_by_a_person
@asynchronous
async def resolve(console: Console, /, *, to: Literal["completed", "failed"], **asked: Any) -> Exit:
    """Take a request out of review by what the chain shows."""
    from datastore.instructions import Resolve

    return await _instruct(console, Resolve(to), **asked)


async def _instruct(
    console: Console,
    instruction: Instruction,
    *,
    name: str | None,
    state: str | None,
    reason_code: str | None,
    limit: int,
    reason: str,
    operator: str,
    dry_run: bool,
    yes: bool,
    evidence_block: int | None = None,
) -> Exit:
    from datastore import operators
    from datastore.connection import Role

    if (name is None) == (state is None) or (state is None) != (reason_code is None):
        raise Refused("name one request, or select some by --state and --reason-code", Exit.USAGE)
    if name is None and evidence_block is not None:
        raise Refused("evidence is about one request: name it", Exit.USAGE)
    person = _person(operator, reason)
    async with console.opened(Role.OPERATOR) as pool:
        chain_id = await console.chain_id(pool)
        nonce_of = await _nonce_of(console.settings, pool, chain_id, instruction)

        def about(wanted: int, instruction: Instruction) -> Act:
            async def act(dry_run: bool, confirmed: Will | None) -> Answer:
                return await operators.instruct(
                    pool,
                    chain_id,
                    wanted,
                    instruction,
                    person,
                    finality=_finality(console.settings),
                    nonce_of=nonce_of,
                    deadline_seconds=console.settings.completion_deadline_seconds,
                    dry_run=dry_run,
                    confirmed=confirmed,
                )

            return act

        if state is not None and reason_code is not None:
            found = await operators.selected(pool, chain_id, State(state), reason_code, limit=limit + 1)
            if len(found) > limit:
                console.message(f"More than {limit} are {state} for that reason; these are the {limit} oldest.")
            acts = [(wanted, about(wanted, instruction)) for wanted in found[:limit]]
            return await _carry_out_each(console, acts, dry_run=dry_run, yes=yes)
        wanted = await request_id(pool, chain_id, name or "")
        instruction = await _with_answers(console.settings, pool, chain_id, wanted, instruction, evidence_block)
        await _carry_out(console, about(wanted, instruction), {"request_id": wanted}, dry_run=dry_run, yes=yes)
        return Exit.DONE


async def _with_answers(
    settings: Settings, pool: Pool, chain_id: int, request_id: int, instruction: Instruction, block: int | None
) -> Instruction:
    """The instruction with what the chain says, where a person named the block to ask it of."""
    from datastore import operators
    from datastore.instructions import NewGeneration, Release
    from service import evidence

    if block is None or not isinstance(instruction, NewGeneration | Release):
        return instruction
    asked = await operators.question(pool, chain_id, request_id, block)
    return replace(instruction, evidence=await evidence.ask(settings, asked))


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


@baskets.command("allow")
@click.argument("basket")
@_by_a_person
@asynchronous
async def allow_basket(console: Console, /, *, basket: str, **person: Any) -> None:
    """Serve one basket: served baskets share at least half of the slots."""
    from datastore.operators import BasketSwitch

    await _turn_basket(console, basket, BasketSwitch.ALLOW, **person)


@baskets.command("disallow")
@click.argument("basket")
@_by_a_person
@asynchronous
async def disallow_basket(console: Console, /, *, basket: str, **person: Any) -> None:
    """Serve one basket no longer, whatever it completed; `pause` stops what is sent for it."""
    from datastore.operators import BasketSwitch

    await _turn_basket(console, basket, BasketSwitch.DISALLOW, **person)


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
        if dry_run or not isinstance(told.verdict, Will):
            _show(console, told, about, dry_run=dry_run)
            return
        consent(console, (told.verdict.sentence, *told.verdict.warnings), yes=yes)
        _show(console, await act(False, told.verdict), about, dry_run=False)
    except (BasketUnknown, RequestUnknown) as error:
        raise Refused(str(error)) from error


async def _carry_out_each(console: Console, acts: Sequence[tuple[int, Act]], *, dry_run: bool, yes: bool) -> Exit:
    """Show all, ask once, then do one after the other: what is refused, or has changed meanwhile, keeps none back."""
    from datastore.instructions import Refused as Not
    from datastore.instructions import Will

    told = [(wanted, act, await act(True, None)) for wanted, act in acts]
    willing = [answer.verdict for _, _, answer in told if isinstance(answer.verdict, Will)]
    if willing and not dry_run:
        console.message("\n".join(line for _, _, answer in told for line in _lines(answer)))
        consent(console, [f"{len(willing)} of {len(told)} can be done."], yes=yes)
    done: list[tuple[int, Answer]] = []
    try:
        for wanted, act, answer in told:
            verdict = answer.verdict
            if isinstance(verdict, Will) and not dry_run:
                done.append((wanted, await act(False, verdict)))
            else:
                done.append((wanted, answer))
    finally:
        # Also what was done before the database went away: a person must know it.
        console.rows(
            [_shape(answer, {"request_id": wanted}, dry_run=dry_run) for wanted, answer in done],
            {"id": "request_id", "outcome": "outcome", "what": "sentence", "mind": "warnings", "instead": "remedy"},
        )
    return Exit.ERROR if any(isinstance(answer.verdict, Not) for _, answer in done) else Exit.DONE


def _lines(answer: Answer) -> tuple[str, ...]:
    from datastore.instructions import Will

    verdict = answer.verdict
    return (verdict.sentence, *verdict.warnings) if isinstance(verdict, Will) else (f"Not done: {verdict.sentence}",)


def _shape(answer: Answer, about: dict[str, object], *, dry_run: bool) -> dict[str, object]:
    from datastore import instructions

    verdict = answer.verdict
    outcome = "would be done" if dry_run else "done"
    if isinstance(verdict, instructions.AlreadySo):
        outcome = "already so"
    refused = verdict if isinstance(verdict, instructions.Refused) else None
    return {
        **about,
        "outcome": "refused" if refused else outcome,
        "sentence": verdict.sentence,
        "remedy": refused and refused.remedy,
        "unproven": refused and refused.unproven,
        "warnings": list(verdict.warnings) if isinstance(verdict, instructions.Will) else [],
        "before": dict(answer.before),
        "after": dict(answer.after),
        "action_id": answer.action_id,
    }


def _show(console: Console, answer: Answer, about: dict[str, object], *, dry_run: bool) -> None:
    shape = _shape(answer, about, dry_run=dry_run)
    if shape["outcome"] == "refused":
        # Data for a program; a person reads the refusal itself.
        if console.output != "table":
            console.record(shape)
        raise Refused(f"{shape['sentence']}\n{shape['remedy']}")
    console.record(shape, {"outcome": "outcome", "what": "sentence", "mind": "warnings", "record": "action_id"})
