from pathlib import Path
from typing import Any

import asyncpg
import pytest

from datastore.connection import Pool
from datastore.identity import secret_check_value
from datastore.pinning import Pin, pin_first_start
from service.console import Exit
from tests.datastore.builders import CHAIN, block, hash_of, request
from tests.service.rows import SIGNER, WORKFLOW, Answer, Chain, bskt

KEY = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # the first well-known anvil key
OTHER_KEY = "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"  # the second
SECRET = "ab" * 32
FACTORY = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
SETTINGS = {
    "BSKT_CHAIN_ID": str(CHAIN),
    "BSKT_RPC_URL": "http://127.0.0.1:1/v2/a-key-that-nobody-may-see",
    "BSKT_FACTORY_ADDRESS": FACTORY,
    "BSKT_FORWARDER_ADDRESS": FACTORY,
    "BSKT_START_BLOCK": "1",
    "BSKT_INSTANCE_SECRET": SECRET,
    "BSKT_CRE_GATEWAY_URL": "http://127.0.0.1:1/",
    "BSKT_CRE_WORKFLOW": WORKFLOW.hex(),
    "BSKT_CRE_SIGNER_KEY": KEY,
    "BSKT_MAX_MINT_TOKENS": "1000",
    "BSKT_DAILY_CAP_TOKENS": "none",
}


async def check(dsn: str, *arguments: str, **environment: str) -> tuple[Answer, dict[str, list[Any]]]:
    """The answer, and its findings by what was looked at."""
    answer = await bskt(dsn, "--output", "json", *(arguments or ("check",)), **SETTINGS | environment)
    by_check: dict[str, list[Any]] = {}
    for finding in answer.json:
        by_check.setdefault(finding["check"], []).append(finding)
    return answer, by_check


async def pin(pool: Pool) -> None:
    pin = Pin(
        chain_id=CHAIN,
        genesis_hash=hash_of("genesis"),
        factory_address=bytes.fromhex(FACTORY[2:]),
        factory_code_hash=hash_of("code"),
        forwarder_address=bytes.fromhex(FACTORY[2:]),
        secret_check=secret_check_value(bytes.fromhex(SECRET)),
    )
    await pin_first_start(pool, pin, start=block(1), first_trigger_block_number=0)


async def test_a_sound_database_gives_no_finding(dsn: str, indexer_pool: Pool) -> None:
    await pin(indexer_pool)
    _, found = await check(dsn)
    for name in ("schema", "roles", "the database's clock", "instance secret"):
        assert [each["severity"] for each in found[name]] == ["ok"], found[name]
    assert [each["severity"] for each in found["database"]] == ["ok", "note"]  # the server of the tests is disposable
    assert "Postgres 18" in found["database"][0]["sentence"]
    assert [each["severity"] for each in found["signer"]] == ["ok", "note"]


async def test_a_list_of_allowed_baskets_that_is_empty_is_found(dsn: str, indexer_pool: Pool) -> None:
    await pin(indexer_pool)
    _, found = await check(dsn, BSKT_SERVED_BASKETS="listed")
    (warning,) = [each for each in found["database"] if each["severity"] == "warning"]
    assert warning["remedy"] == "bskt baskets allow TOKEN --reason …"
    owner = await asyncpg.connect(dsn)
    await owner.execute(
        "INSERT INTO basket_standing (chain_id, stablecoin, allowed, allowed_at, allowed_reason)"
        " VALUES ($1, $2, true, now(), 'a test')",
        CHAIN,
        bytes(20),
    )
    await owner.close()
    _, found = await check(dsn, BSKT_SERVED_BASKETS="listed")
    assert "warning" not in {each["severity"] for each in found["database"]}


async def test_a_node_and_a_gateway_that_do_not_answer_are_findings_without_their_secrets(dsn: str) -> None:
    answer, found = await check(dsn)
    assert answer.code == Exit.FINDINGS
    assert found["node 0"][0]["severity"] == found["gateway"][0]["severity"] == "error"
    assert answer.stderr == "2 findings to mend.\n"
    for secret in ("a-key-that", KEY, SECRET):
        assert secret not in answer.stdout + answer.stderr


async def test_settings_that_cannot_be_used_are_findings_not_a_refusal(dsn: str) -> None:
    answer, found = await check(dsn, BSKT_CHAIN_ID="sepolia", BSKT_LISTEN="x")
    assert answer.code == Exit.FINDINGS
    assert [each["sentence"].partition(":")[0] for each in found["settings"]] == ["BSKT_CHAIN_ID", "BSKT_LISTEN"]
    _, missing = await check(dsn, BSKT_CRE_GATEWAY_URL="", BSKT_RPC_URL="")
    assert [each["sentence"].partition(":")[0] for each in missing["settings"]] == [
        "BSKT_RPC_URL",
        "BSKT_CRE_GATEWAY_URL",
    ]


async def test_a_cap_that_nobody_chose_is_found(dsn: str) -> None:
    _, found = await check(dsn, BSKT_MAX_MINT_TOKENS="", BSKT_DAILY_CAP_TOKENS="")
    assert [(each["severity"], each["remedy"].split()[1]) for each in found["caps"]] == [
        ("warning", "BSKT_MAX_MINT_TOKENS"),
        ("warning", "BSKT_DAILY_CAP_TOKENS"),
    ]
    _, chosen = await check(dsn)
    assert "caps" not in chosen


async def test_a_database_without_tables_is_found_with_its_remedy(empty_dsn: str) -> None:
    _, found = await check(empty_dsn)
    assert (found["schema"][0]["severity"], found["schema"][0]["remedy"]) == ("error", "run `bskt schema apply`")


async def test_a_database_that_is_down_is_a_finding() -> None:
    answer, found = await check("postgresql://bskt:open-sesame@127.0.0.1:1/bskt")
    assert found["database"][0]["severity"] == "error"
    assert "open-sesame" not in answer.stdout


async def test_a_user_who_may_not_act_as_a_part_is_found(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    name = f"weak_{hash_of(dsn).hex()[:8]}"
    await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'weak'; GRANT bskt_reader TO {name}")
    await connection.execute(f"GRANT SELECT ON schema_version TO {name}")
    await connection.close()
    host = dsn.rpartition("@")[2]
    _, found = await check(f"postgresql://{name}:weak@{host}")
    assert [each["remedy"] for each in found["roles"]] == [
        f"let the database's user act as bskt_{part}: GRANT bskt_{part} TO …"
        for part in ("indexer", "invocator", "operator")
    ]


async def test_a_server_on_which_a_commit_may_be_lost_is_found(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"ALTER DATABASE {dsn.rpartition('/')[2]} SET synchronous_commit = off")
    await connection.close()
    _, found = await check(dsn)
    assert (found["database"][0]["severity"], "synchronous_commit = off" in found["database"][0]["sentence"]) == (
        "error",
        True,
    )


async def test_a_server_that_does_not_write_through_is_found(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"ALTER DATABASE {dsn.rpartition('/')[2]} SET bskt.disposable = off")
    await connection.close()
    _, found = await check(dsn)
    assert (found["database"][0]["severity"], "fsync = off" in found["database"][0]["sentence"]) == ("error", True)


async def test_another_secret_factory_or_forwarder_than_the_stored_ones_is_found(dsn: str, indexer_pool: Pool) -> None:
    """Hard cases 74 and 108."""
    await pin(indexer_pool)
    _, found = await check(dsn, BSKT_INSTANCE_SECRET="cd" * 32, BSKT_FORWARDER_ADDRESS="0x" + "11" * 20)
    assert [each["severity"] for each in found["instance secret"]] == ["error"]
    assert [each["remedy"] for each in found["database"] if each["severity"] == "error"] == [
        "check BSKT_FORWARDER_ADDRESS"
    ]
    assert "cd" * 32 not in str(found)


async def test_the_latest_answer_of_cre_says_whether_the_signer_is_authorised(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    chain = await Chain.pinned(indexer_pool, invocator_pool)
    one = chain.next()
    await chain.grow(requests=(request("DEP-1", one), request("DEP-2", one, log_index=1)))
    await chain.grow(final=1)
    await chain.send("instance_refused", "Auth failure: signer is not authorized")
    _, found = await check(dsn)
    assert [each["severity"] for each in found["signer"]] == ["ok", "error"]
    assert "signer is not authorized" in found["signer"][1]["sentence"]
    await chain.let_probe()
    await chain.send("accepted")
    _, found = await check(dsn)
    assert [each["severity"] for each in found["signer"]] == ["ok", "ok"]
    assert "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266" in found["signer"][0]["sentence"]


async def test_open_requests_of_another_key_or_workflow_are_found(
    dsn: str, indexer_pool: Pool, invocator_pool: Pool
) -> None:
    """Hard cases 76 and 77: their bytes are frozen for those."""
    chain = await Chain.pinned(indexer_pool, invocator_pool)
    await chain.grow(requests=(request("DEP-1", chain.next()),))
    await chain.grow(final=1)
    await chain.send("unknown")
    _, found = await check(dsn, BSKT_CRE_SIGNER_KEY=OTHER_KEY, BSKT_CRE_WORKFLOW="07" * 32)
    assert "0x" + SIGNER.hex() in found["signer"][1]["sentence"]
    assert "1 open request (the oldest is 1)" in found["signer"][1]["sentence"]
    assert WORKFLOW.hex() in found["workflow"][0]["sentence"]


async def test_quiet_shows_only_what_is_to_be_mended(dsn: str) -> None:
    answer = await bskt(dsn, "--output", "json", "check", "--quiet", **SETTINGS)
    assert {each["severity"] for each in answer.json} == {"error"}


# ---------------------------------------------------------------------------------------------------------------------
# bskt keys
# ---------------------------------------------------------------------------------------------------------------------
async def test_keys_show_tells_whose_they_are_and_shows_none(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    environment = {name: value for name, value in SETTINGS.items() if name != "BSKT_CRE_SIGNER_KEY"}
    answer = await bskt(dsn, "--output", "json", "keys", "show", **environment, BSKT_CRE_SIGNER_KEY_FILE=str(file))
    assert answer.json == {
        "signer": "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "signer_source": str(file),
        "instance_secret_check": "0x" + secret_check_value(bytes.fromhex(SECRET)).hex(),
        "instance_secret_source": "the environment or the env file",
    }
    table = await bskt(dsn, "keys", "show", **SETTINGS)
    assert "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266" in table.stdout
    assert KEY not in answer.stdout + table.stdout


@pytest.mark.parametrize(("mode", "severity", "code"), [(0o600, "ok", Exit.DONE), (0o644, "warning", Exit.FINDINGS)])
async def test_keys_check_finds_a_file_that_others_can_read(
    dsn: str, tmp_path: Path, mode: int, severity: str, code: Exit
) -> None:
    """Hard case 116."""
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(mode)
    answer, found = await check(dsn, "keys", "check", BSKT_CRE_SIGNER_KEY="", BSKT_CRE_SIGNER_KEY_FILE=str(file))
    assert (answer.code, found["key files"][0]["severity"]) == (code, severity)
    assert found["signer"][0]["severity"] == "ok"
    assert "node 0" not in found


async def test_a_key_outside_of_the_curve_is_found_and_not_shown(dsn: str) -> None:
    answer, found = await check(dsn, "keys", "check", BSKT_CRE_SIGNER_KEY="ff" * 32)
    assert (answer.code, found["signer"][0]["severity"]) == (Exit.FINDINGS, "error")
    shown = await bskt(dsn, "keys", "show", **SETTINGS | {"BSKT_CRE_SIGNER_KEY": "ff" * 32})
    assert shown.code == Exit.USAGE
    assert "ff" * 32 not in answer.stdout + shown.stdout + shown.stderr
