"""What people do, from the command line down to the rows."""

import asyncio
import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from datastore import operators
from datastore.connection import Pool
from datastore.errors import DatastoreUnavailable
from datastore.identity import derive_nonce, secret_check_value
from service.console import Exit
from tests.datastore.builders import BOB, CONSUMER, TOKEN, request, role_change
from tests.service.rows import Chain, basket, bskt

SECRET = bytes(range(32))
WHO = ("--operator", "alice", "--reason", "ticket 7")
YES = (*WHO, "--yes")


@pytest.fixture
async def chain(indexer_pool: Pool, invocator_pool: Pool) -> Chain:
    return await Chain.pinned(indexer_pool, invocator_pool)


async def confirmed(chain: Chain, *names: str) -> None:
    one = chain.next()
    await chain.grow(
        baskets=(basket(one),), requests=tuple(request(name, one, log_index=n) for n, name in enumerate(names))
    )
    await chain.grow(final=1)


async def written(pool: Pool) -> dict[str, Any]:
    row = await pool.fetchrow(
        """
        SELECT
            (SELECT array_agg(state ORDER BY id) FROM mint_request) AS states,
            (SELECT array_agg(held_reason ORDER BY id) FROM mint_request) AS holds,
            (SELECT coalesce(array_agg(action || ' by ' || operator ORDER BY id), '{}') FROM operator_action) AS actions
        """
    )
    assert row is not None
    return dict(row)


async def test_a_dry_run_says_what_would_happen_and_the_real_one_does_exactly_that(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    before = await written(chain.indexer)
    told = await bskt(dsn, "--output", "json", "requests", "cancel", "1", *WHO, "--dry-run")
    assert (told.code, told.json["outcome"], told.json["action_id"]) == (Exit.DONE, "would be done", None)
    assert await written(chain.indexer) == before
    done = await bskt(dsn, "--output", "json", "requests", "cancel", "1", *YES)
    assert (done.code, done.json["outcome"]) == (Exit.DONE, "done")
    assert done.json["sentence"] == told.json["sentence"]
    assert (done.json["before"]["state"], done.json["after"]["state"]) == ("confirmed", "cancelled")
    assert await written(chain.indexer) == {
        "states": ["cancelled"],
        "holds": [None],
        "actions": ["cancel by alice"],
    }
    again = await bskt(dsn, "--output", "json", "requests", "cancel", "1", *YES)
    assert (again.code, again.json["outcome"]) == (Exit.DONE, "already so")


async def test_the_example_in_the_docs_is_what_a_cancel_writes(chain: Chain, dsn: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    heading = "### `bskt requests retry|hold|release|cancel|resolve`, `bskt [baskets] pause|resume`, `bskt quarantine`"
    example = json.loads(text.split(heading)[1].split("```json")[1].split("```")[0])
    await confirmed(chain, "DEP-1")
    written_now = (await bskt(dsn, "--output", "json", "requests", "cancel", "1", *YES)).json
    for side in ("before", "after"):
        example[side]["nonce"] = written_now[side]["nonce"]
        example[side]["chain_status"] = written_now[side]["chain_status"]
    assert written_now == example


async def test_a_refusal_says_why_and_what_is_possible_and_a_program_gets_both_as_data(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    await chain.send("accepted")
    refused = await bskt(dsn, "requests", "cancel", "1", *YES)
    assert (refused.code, refused.stdout) == (Exit.ERROR, "")
    assert refused.stderr == (
        "bskt: Request 1: It was sent, and nothing can call it back: it may mint at any time.\n"
        "`bskt requests hold` stops further sends; it stays watched.\n"
    )
    as_data = await bskt(dsn, "--output", "json", "requests", "cancel", "1", *YES)
    assert (as_data.code, as_data.json["outcome"]) == (Exit.ERROR, "refused")
    assert as_data.json["remedy"] == "`bskt requests hold` stops further sends; it stays watched."
    assert (await written(chain.indexer))["actions"] == []


async def test_a_hold_and_its_release_are_told_in_the_story_with_who_and_why(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    held = await bskt(dsn, "requests", "hold", "1", *YES)
    assert "stays confirmed and is held" in held.stdout
    shown = (await bskt(dsn, "--output", "json", "requests", "show", "1")).json
    assert "a person holds it" in shown["why"]
    released = await bskt(dsn, "requests", "release", "1", *YES)
    assert "is no longer held (operator)" in released.stdout
    story = (await bskt(dsn, "--output", "json", "requests", "timeline", "1")).json
    assert [each["sentence"] for each in story if each["source"] == "operator"] == [
        "hold, by alice: ticket 7",
        "release, by alice: ticket 7",
    ]


async def test_the_story_tells_what_paused_the_basket_while_it_concerned_the_request(chain: Chain, dsn: str) -> None:
    one = chain.next()
    await chain.grow(baskets=(basket(one),))

    async def turn(word: str, reason: str) -> None:
        assert (
            await bskt(dsn, "baskets", word, "AUD", "--operator", "alice", "--reason", reason, "--yes")
        ).code == Exit.DONE

    await turn("pause", "long ago")
    await turn("resume", "over")
    await turn("pause", "audit")
    two = chain.next()
    await chain.grow(requests=(request("DEP-1", two), request("DEP-2", two, log_index=1)))
    await turn("resume", "audited")
    await bskt(dsn, "requests", "cancel", "2", *YES)
    await chain.grow(role_changes=(role_change(chain.next()),), final=2)
    await turn("resume", "ours")

    async def told(request_id: str) -> list[str]:
        story = (await bskt(dsn, "--output", "json", "requests", "timeline", request_id)).json
        return [each["sentence"].partition("  ")[0] for each in story if each["source"] in {"operator", "alarm"}]

    pauses = ["Its basket is paused, by alice: audit", "Its basket is resumed, by alice: audited"]
    change = f"MintRoleRevoked(minter=0x{CONSUMER.hex()}) in block 3"
    assert await told("1") == [
        *pauses,
        f"basket_role_changed: The token of its basket says {change}.",
        "Its basket is resumed, by alice: ours",
    ]
    assert (await told("2"))[:2] == pauses
    assert not any("role_changed" in line for line in await told("2"))


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (("requests", "cancel", "1"), {}, "Missing option '--reason'"),
        (("requests", "cancel", "1", "--reason", " ", "--operator", "a"), {}, "nothing is done without a reason"),
        (("pause", "--reason", "x"), {"USER": "", "LOGNAME": ""}, "nothing is done without a name"),
        (("requests", "resolve", "1", *YES), {}, "Missing option '--as'"),
        (("requests", "retry", "1", *YES, "--evidence-block", "1"), {}, "it is for --new-generation"),
        (("requests", "cancel", *YES), {}, "name one request, or select some"),
        (("requests", "cancel", "1", *YES, "--state", "seen", "--reason-code", "x"), {}, "name one request"),
        (("requests", "cancel", *YES, "--state", "seen"), {}, "select some by --state and --reason-code"),
        (("requests", "cancel", "1", *YES, "--reason-code", "x"), {}, "select some by --state and --reason-code"),
        (
            ("requests", "release", *YES, "--state", "rejected", "--reason-code", "x", "--evidence-block", "1"),
            {},
            "evidence is about one request",
        ),
        (("requests", "cancel", "1", *WHO), {}, "`--yes` is needed"),
        (("pause", *WHO), {}, "`--yes` is needed"),
        (("baskets", "pause", "AUD", *WHO), {}, "`--yes` is needed"),
        (("backfill", "--blocks", "1:2", "--trigger"), {}, "`--yes` is needed"),
    ],
)
async def test_what_is_missing_is_a_usage_error(
    chain: Chain, dsn: str, arguments: tuple[str, ...], environment: dict[str, str], sentence: str
) -> None:
    await confirmed(chain, "DEP-1")
    answer = await bskt(dsn, *arguments, **environment)
    assert (answer.code, answer.stdout) == (Exit.USAGE, "")
    assert sentence in answer.stderr
    assert (await written(chain.indexer))["actions"] == []


async def test_the_name_of_the_session_is_recorded_where_no_other_is_given(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    await bskt(dsn, "pause", "--reason", "maintenance", "--yes", USER="bob")
    assert (await written(chain.indexer))["actions"] == ["pause by bob"]


async def test_a_pause_shows_in_the_status_until_it_is_lifted(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    assert (await bskt(dsn, "pause", *YES)).code == Exit.DONE
    status = await bskt(dsn, "--output", "json", "status")
    assert (status.code, status.json["paused"]["reason"]) == (Exit.PAUSED, "alice: ticket 7")
    assert (await bskt(dsn, "resume", *YES)).code == Exit.DONE
    assert (await bskt(dsn, "--output", "json", "status")).json["paused"] is None


async def test_a_paused_basket_shows_everywhere_until_it_is_resumed(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    two = chain.next()
    await chain.grow(role_changes=(role_change(two),))
    token, reason = "0x" + TOKEN.hex(), f"MintRoleRevoked(minter=0x{CONSUMER.hex()}) in block 3"

    async def read(*command: str) -> Any:
        return (await bskt(dsn, "--output", "json", *command)).json

    status = await read("status")
    assert (status["baskets_paused"], [each["kind"] for each in status["alarms"]]) == (1, ["basket_role_changed"])
    assert [each["reason"] for each in status["for_a_person"]] == ["basket_paused"]
    (listed,) = await read("baskets", "list")
    assert (listed["paused"]["reason"], await read("baskets", "show", "AUD")) == (reason, listed)
    assert reason in (await bskt(dsn, "baskets", "list")).stdout
    assert reason in (await bskt(dsn, "baskets", "show", "AUD")).stdout
    assert "baskets paused" in (await bskt(dsn, "status")).stdout
    shown = await read("requests", "show", "1")
    assert "its basket is paused" in shown["why"]
    assert shown["commands"] == [f"bskt baskets resume {token} --reason …"]
    refused = await bskt(dsn, "requests", "release", "1", *YES)
    assert (refused.code, "bskt baskets resume" in refused.stderr) == (Exit.ERROR, True)

    told = await read("baskets", "resume", "AUD", *WHO, "--dry-run")
    assert (told["outcome"], (await written(chain.indexer))["actions"]) == ("would be done", [])
    done = await read("baskets", "resume", "AUD", *YES)
    assert (done["basket"], done["outcome"], done["sentence"]) == (token, "done", told["sentence"])
    assert (done["before"]["held_requests"], done["after"]["held_requests"]) == (1, 0)
    assert (await written(chain.indexer)) == {
        "states": ["confirmed"],
        "holds": [None],
        "actions": ["resume_basket by alice"],
    }
    assert (await read("baskets", "show", "AUD"))["paused"] is None
    assert (await read("status"))["baskets_paused"] == 0


async def test_a_person_pauses_a_basket_by_any_of_its_names(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    paused = await bskt(dsn, "baskets", "pause", "0x" + CONSUMER.hex(), *YES)
    assert (paused.code, "Basket AUD" in paused.stdout) == (Exit.DONE, True)
    again = await bskt(dsn, "baskets", "pause", "AUD", *YES)
    assert "is paused already (alice: ticket 7)" in again.stdout
    unknown = await bskt(dsn, "baskets", "pause", "NZD", *YES)
    assert (unknown.code, "no basket of chain" in unknown.stderr) == (Exit.ERROR, True)
    assert (await written(chain.indexer))["actions"] == ["pause_basket by alice"]


async def test_a_quarantine_shows_in_the_status_and_no_resume_ends_it(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    told = await bskt(dsn, "quarantine", *YES, BSKT_COMPLETION_DEADLINE_SECONDS="60")
    assert "It ends by itself; nothing else ends it." in told.stdout
    assert await chain.indexer.fetchval("SELECT quarantined_until - quarantined_at = interval '360 s' FROM control")
    resumed = await bskt(dsn, "resume", *YES)
    assert "is not paused" in resumed.stdout
    status = await bskt(dsn, "--output", "json", "status")
    assert status.code == Exit.PAUSED
    refused = await bskt(dsn, "requests", "cancel", "1", *YES)
    assert "cre execution status" in refused.stderr


async def test_the_settings_say_what_is_final_enough_for_a_retry(chain: Chain, dsn: str) -> None:
    one = chain.next()
    contested = (request("a", one, bank="D"), request("b", one, log_index=1, bank="D", beneficiary=BOB))
    await chain.grow(baskets=(basket(one),), requests=contested)
    await chain.grow(final=1)
    assert (await written(chain.indexer))["states"] == ["review", "review"]
    deep = await bskt(dsn, "--output", "json", "requests", "retry", "1", *WHO, "--dry-run")
    assert deep.json["sentence"].startswith("Request 1 goes from review to seen")
    shallow = await bskt(
        dsn, "--output", "json", "requests", "retry", "1", *WHO, "--dry-run", BSKT_TRIGGER_FINALITY="depth:2"
    )
    assert shallow.json["sentence"].startswith("Request 1 goes from review to confirmed")


async def test_a_new_generation_needs_the_instance_secret_of_this_very_database(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    await chain.send("refused_for_good")
    owner = await asyncpg.connect(dsn)
    await owner.execute("UPDATE chain SET secret_check = $1", secret_check_value(SECRET))
    await owner.close()
    command = ("--output", "json", "requests", "retry", "1", *YES, "--new-generation")
    final = {"BSKT_TRIGGER_FINALITY": "depth:1"}
    missing = await bskt(dsn, *command, **final)
    assert (missing.code, "BSKT_INSTANCE_SECRET is needed" in missing.stderr) == (Exit.USAGE, True)
    wrong = await bskt(dsn, *command, **final, BSKT_INSTANCE_SECRET=bytes(32).hex())
    assert (wrong.code, "restore the secret" in wrong.stderr) == (Exit.ERROR, True)
    done = await bskt(dsn, *command, **final, BSKT_INSTANCE_SECRET=SECRET.hex())
    assert (done.code, done.json["after"]["state"], done.json["after"]["generation"]) == (Exit.DONE, "confirmed", 1)
    identity = await chain.indexer.fetchval("SELECT identity FROM mint_request")
    assert done.json["after"]["nonce"] == str(derive_nonce(SECRET, identity, 1))


async def at_a_terminal(dsn: str, answer: str, *arguments: str) -> tuple[int, str]:
    """The installed command with a person at its stdin; its exit code and what it asked on stderr."""
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("bskt")),
            *arguments,
            env={"PATH": "/usr/bin:/bin", "BSKT_DATABASE_URL": dsn, "LC_ALL": "C.UTF-8"},
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        os.write(ours, answer.encode())
        _, stderr = await process.communicate()
    finally:
        os.close(ours)
        os.close(theirs)
    return process.returncode or 0, stderr.decode()


async def test_a_person_at_a_terminal_is_asked_and_nothing_is_done_without_a_yes(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1", "DEP-2")
    code, asked = await at_a_terminal(dsn, "n\n", "requests", "cancel", "1", *WHO)
    assert code == Exit.ERROR
    assert "Request 1 goes from confirmed to cancelled, for good" in asked
    assert "Do it? [y/N]" in asked
    assert "nothing was done" in asked
    assert (await written(chain.indexer))["actions"] == []
    assert (await at_a_terminal(dsn, "y\n", "requests", "cancel", "1", *WHO))[0] == Exit.DONE
    code, asked = await at_a_terminal(dsn, "", "requests", "cancel", "2", *WHO, "--yes")
    assert (code, "Do it?" in asked) == (Exit.DONE, False)
    assert (await written(chain.indexer))["states"] == ["cancelled", "cancelled"]


async def test_many_are_shown_and_asked_about_once_at_a_terminal(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1", "DEP-2")
    many = ("requests", "hold", "--state", "confirmed", "--reason-code", "allowed", *WHO)
    code, asked = await at_a_terminal(dsn, "n\n", *many)
    assert (code, asked.count("Do it? [y/N]")) == (Exit.ERROR, 1)
    assert "Request 1 stays confirmed and is held" in asked
    assert "Request 2 stays confirmed and is held" in asked
    assert (await written(chain.indexer))["actions"] == []
    assert (await at_a_terminal(dsn, "y\n", *many))[0] == Exit.DONE
    assert (await written(chain.indexer))["holds"] == ["operator", "operator"]


async def test_many_of_one_state_and_reason_are_acted_on_each_by_itself_and_a_refusal_of_one_keeps_none_back(
    chain: Chain, dsn: str
) -> None:
    await confirmed(chain, *(f"DEP-{n}" for n in range(1, 5)))
    await chain.send("accepted")
    owner = await asyncpg.connect(dsn)
    await owner.execute("SET session_replication_role = replica")
    await owner.execute("UPDATE mint_request SET state = 'review', state_reason = 'gave_up' WHERE id < 4")
    await owner.close()
    many = ("requests", "cancel", "--state", "review", "--reason-code", "gave_up")
    told = await bskt(dsn, "--output", "json", *many, *WHO, "--dry-run")
    assert [(each["request_id"], each["outcome"]) for each in told.json] == [
        (1, "refused"),
        (2, "would be done"),
        (3, "would be done"),
    ]
    assert (told.code, (await written(chain.indexer))["actions"]) == (Exit.ERROR, [])
    assert (await bskt(dsn, *many, *WHO)).code == Exit.USAGE
    done = await bskt(dsn, "--output", "json", *many, *YES)
    assert [(each["request_id"], each["outcome"]) for each in done.json] == [(1, "refused"), (2, "done"), (3, "done")]
    assert [each["action_id"] for each in done.json] == [None, 1, 2]
    assert done.json[0]["remedy"] is not None
    assert done.code == Exit.ERROR
    assert await written(chain.indexer) == {
        "states": ["review", "cancelled", "cancelled", "confirmed"],
        "holds": [None] * 4,
        "actions": ["cancel by alice", "cancel by alice"],
    }
    nothing = await bskt(dsn, "--output", "json", "requests", "cancel", "--state", "seen", "--reason-code", "x", *YES)
    assert (nothing.code, nothing.json) == (Exit.DONE, [])


async def test_what_was_done_of_many_is_shown_though_the_database_went_away(
    chain: Chain, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await confirmed(chain, "DEP-1", "DEP-2")
    instruct = operators.instruct

    async def once(pool: Pool, chain_id: int, request_id: int, *what: Any, **how: Any) -> operators.Answer:
        if request_id == 2 and not how["dry_run"]:
            raise DatastoreUnavailable("gone")
        return await instruct(pool, chain_id, request_id, *what, **how)

    monkeypatch.setattr(operators, "instruct", once)
    many = ("requests", "cancel", "--state", "confirmed", "--reason-code", "allowed", *YES)
    answer = await bskt(dsn, "--output", "json", *many)
    assert (answer.code, [each["request_id"] for each in answer.json]) == (Exit.NOT_READY, [1])
    assert (await written(chain.indexer))["states"] == ["cancelled", "confirmed"]


async def test_no_more_than_the_limit_are_selected_and_the_oldest_first(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1", "DEP-2", "DEP-3")
    many = ("requests", "cancel", "--state", "confirmed", "--reason-code", "allowed", "--limit", "2", *YES)
    first = await bskt(dsn, *many)
    assert (first.code, "More than 2 are confirmed for that reason" in first.stderr) == (Exit.DONE, True)
    assert (await written(chain.indexer))["states"] == ["cancelled", "cancelled", "confirmed"]
    second = await bskt(dsn, *many)
    assert (second.code, "More than" in second.stderr) == (Exit.DONE, False)
    assert (await written(chain.indexer))["states"] == ["cancelled"] * 3


async def test_an_unknown_request_is_named(chain: Chain, dsn: str) -> None:
    assert chain.tip.number == 0
    answer = await bskt(dsn, "requests", "hold", "7", *YES)
    assert (answer.code, "'7'" in answer.stderr) == (Exit.ERROR, True)


async def test_json_lines_hold_one_object(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    answer = await bskt(dsn, "--output", "jsonl", "requests", "hold", "1", *YES)
    assert json.loads(answer.stdout)["outcome"] == "done"
    assert answer.stdout.count("\n") == 1


async def test_a_person_serves_a_basket_and_it_shows_why(chain: Chain, dsn: str) -> None:
    await confirmed(chain, "DEP-1")
    token = "0x" + TOKEN.hex()

    async def read(*command: str, **environment: str) -> Any:
        return (await bskt(dsn, "--output", "json", *command, **environment)).json

    listed = {"BSKT_SERVED_BASKETS": "listed"}
    waits = await read("requests", "show", "1", **listed)
    assert (waits["held"]["reason"], waits["queue"]) == ("basket_not_allowed", None)
    assert waits["commands"] == [f"bskt baskets allow {token} --reason …"]
    assert (await read("requests", "show", "1"))["held"] is None
    assert "no, no mint completed yet" in (await bskt(dsn, "baskets", "list")).stdout

    told = await read("baskets", "allow", "AUD", *WHO, "--dry-run")
    assert (told["outcome"], (await written(chain.indexer))["actions"]) == ("would be done", [])
    done = await read("baskets", "allow", "AUD", *WHO, "--yes")
    assert (done["basket"], done["outcome"], done["sentence"]) == (token, "done", told["sentence"])
    assert (await read("baskets", "allow", "AUD", *WHO, "--yes"))["outcome"] == "already so"
    (shown,) = await read("baskets", "list")
    assert (shown["served"], shown["allowed"]["allowed"], shown["completed_at"]) == (True, True, None)
    assert "yes, allowed (alice: ticket 7)" in (await bskt(dsn, "baskets", "show", "AUD")).stdout
    assert (await read("requests", "show", "1", **listed))["queue"]["position"] == 1

    await read("baskets", "disallow", "AUD", *WHO, "--yes")
    assert "no, disallowed (alice: ticket 7)" in (await bskt(dsn, "baskets", "list")).stdout
    assert (await read("requests", "show", "1", **listed))["held"]["reason"] == "basket_not_allowed"
    story = await read("requests", "timeline", "1")
    assert [each["sentence"] for each in story if each["source"] == "operator"] == [
        "Its basket is allowed, by alice: ticket 7",
        "Its basket is disallowed, by alice: ticket 7",
    ]
    assert (await written(chain.indexer))["actions"] == ["allow_basket by alice", "disallow_basket by alice"]
