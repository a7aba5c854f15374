from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from service.settings import (
    Finality,
    Listen,
    Settings,
    SettingsError,
    cre_environment,
    documented,
    load,
    markdown_table,
    secret_files,
    wei,
)

SIGNER_KEY = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"  # anvil's first account
FACTORY = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
COMPLETE = {
    "BSKT_DATABASE_URL": "postgresql://bskt:open-sesame@localhost/bskt",
    "BSKT_CHAIN_ID": "11155111",
    "BSKT_RPC_URL": "https://one.example/v2/key-of-one, http://127.0.0.1:8545",
    "BSKT_FACTORY_ADDRESS": FACTORY,
    "BSKT_FORWARDER_ADDRESS": FACTORY.lower(),
    "BSKT_START_BLOCK": "17",
    "BSKT_INSTANCE_SECRET": "ab" * 32,
    "BSKT_CRE_GATEWAY_URL": "https://gateway.example",
    "BSKT_CRE_WORKFLOW": f"{'01' * 32},{'02' * 32}",
    "BSKT_CRE_SIGNER_KEY": SIGNER_KEY,
}


def read(environ: Mapping[str, str], **flags: object) -> Settings:
    return load(flags, None, environ)


def refusal(environ: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        read(environ)
    return str(caught.value)


def test_a_complete_environment_is_parsed_into_what_the_parts_take() -> None:
    settings = read(COMPLETE)
    settings.require_chain()
    settings.require_invocator()
    assert settings.factory_address == settings.forwarder_address == bytes.fromhex(FACTORY[2:])
    assert settings.cre_workflow == (b"\x01" * 32, b"\x02" * 32)
    assert [url.get_secret_value() for url in settings.rpc_url] == [
        "https://one.example/v2/key-of-one",
        "http://127.0.0.1:8545",
    ]
    assert settings.instance_secret is not None
    assert settings.instance_secret.get_secret_value() == b"\xab" * 32
    assert settings.trigger_finality == Finality(kind="finalized")
    assert settings.listen == Listen(host="127.0.0.1", port=9464)


def test_a_flag_beats_the_environment_beats_the_env_file_beats_the_default(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("BSKT_CHAIN_ID=1\nBSKT_CRE_BURST=2\nBSKT_CRE_MAX_IN_FLIGHT=3\n", encoding="utf-8")
    settings = load({"chain_id": 100, "cre_burst": None}, env_file, {"BSKT_CHAIN_ID": "10", "BSKT_CRE_BURST": "20"})
    assert (settings.chain_id, settings.cre_burst, settings.cre_max_in_flight) == (100, 20, 3)
    assert settings.max_log_range_blocks == 2_000


def test_an_empty_variable_counts_as_absent() -> None:
    assert read({"BSKT_DATABASE_URL": "", "BSKT_LISTEN": " "}).database_url is None


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(SIGNER_KEY + "\n", encoding="utf-8")
    key = read({"BSKT_CRE_SIGNER_KEY_FILE": str(file)}).cre_signer_key
    assert key is not None
    assert key.get_secret_value() == SIGNER_KEY


def test_a_secret_file_in_the_environment_beats_the_value_in_the_env_file(tmp_path: Path) -> None:
    env_file, file = tmp_path / "env", tmp_path / "url"
    env_file.write_text("BSKT_WS_URL=ws://old.example\n", encoding="utf-8")
    file.write_text("ws://new.example", encoding="utf-8")
    url = load({}, env_file, {"BSKT_WS_URL_FILE": str(file)}).ws_url
    assert url is not None
    assert url.get_secret_value() == "ws://new.example"


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    text = refusal({"BSKT_WS_URL": "ws://a.example", "BSKT_WS_URL_FILE": str(tmp_path / "url")})
    assert "BSKT_WS_URL: the environment sets it and BSKT_WS_URL_FILE" in text


@pytest.mark.parametrize("content", [None, ""])
def test_a_secret_file_that_is_missing_or_empty_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert "BSKT_RPC_URL_FILE" in refusal({"BSKT_RPC_URL_FILE": str(file)})


def test_an_env_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--env-file"):
        load({}, tmp_path / "nothing", {})


def test_a_dollar_sign_in_the_env_file_is_kept(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("BSKT_DATABASE_URL=postgresql://a:${HOME}@h/d\n", encoding="utf-8")
    url = load({}, env_file, {}).database_url
    assert url is not None
    assert url.get_secret_value() == "postgresql://a:${HOME}@h/d"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHAIN_ID", "0"),
        ("CHAIN_ID", "sepolia"),
        ("RPC_URL", "ftp://node.example"),
        ("FACTORY_ADDRESS", "0x12"),
        ("FACTORY_ADDRESS", "0x" + "00" * 20),
        ("FACTORY_ADDRESS", FACTORY.replace("F", "f", 1)),
        ("CRE_WORKFLOW", "my-workflow"),
        ("CRE_WORKFLOW", f"{'01' * 32},{'01' * 32}"),
        ("TRIGGER_FINALITY", "depth:0"),
        ("TRIGGER_FINALITY", "latest"),
        ("CRE_GATEWAY_URL", "http://gateway.example"),
        ("CRE_GATEWAY_URL", "https://user:word@gateway.example"),
        ("CLAIM_LEASE_SECONDS", "90"),
        ("GIVE_UP_SECONDS", "1200"),
        ("POLL_INTERVAL_SECONDS", "nan"),
        ("HEAD_TIMEOUT_SECONDS", "-1"),
        ("FINALITY_TIMEOUT_SECONDS", "inf"),
        ("RPC_REQUESTS_PER_SECOND", "0"),
        ("MAX_MINT_TOKENS", "0"),
        ("MAX_MINT_TOKENS", "no"),
        ("DAILY_CAP_TOKENS", "None"),
        ("MAX_MINT_TOKENS", "1.0000000000000000001"),
        ("CURRENCY", "usd"),
        ("LISTEN", "9464"),
        ("LISTEN", "localhost:70000"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(name: str, value: str) -> None:
    assert refusal({"BSKT_" + name: value}).startswith(f"BSKT_{name}: ")


def test_every_wrong_value_is_named_at_once() -> None:
    text = refusal({"BSKT_CHAIN_ID": "x", "BSKT_LISTEN": "x", "BSKT_CRE_MODE": "x"})
    assert [line.partition(":")[0] for line in text.splitlines()] == ["BSKT_CHAIN_ID", "BSKT_CRE_MODE", "BSKT_LISTEN"]


@pytest.mark.parametrize("name", [row.name for row in documented() if row.is_secret])
@pytest.mark.parametrize("value", ["zanzibar", "https://zanzibar:zanzibar/zanzibar", "http://[zanzibar"])
def test_a_refusal_never_repeats_a_secret(name: str, value: str) -> None:
    text = refusal({name: value, "BSKT_CHAIN_ID": "x"})
    assert "zanzibar" not in text


def test_printed_settings_hold_no_secret() -> None:
    printed = repr(read(COMPLETE)) + str(read(COMPLETE))
    for secret in ("open-sesame", "key-of-one", SIGNER_KEY, "\\xab\\xab"):
        assert secret not in printed


def test_the_secret_texts_hold_every_secret() -> None:
    texts = read(COMPLETE).secret_texts()
    for name in ("BSKT_DATABASE_URL", "BSKT_INSTANCE_SECRET", "BSKT_CRE_SIGNER_KEY"):
        assert COMPLETE[name] in texts
    assert "https://one.example/v2/key-of-one" in texts


HEADERS = """
# For both of them, and then for the second one only.
X-Team: mint
1 Authorization: Bearer canary-of-the-second
"""


def test_headers_are_a_line_each_for_every_node_or_for_one(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(HEADERS, encoding="utf-8")
    settings = read({**COMPLETE, "BSKT_RPC_HEADERS_FILE": str(file)})
    found = [(header.endpoint, header.name, header.value.get_secret_value()) for header in settings.rpc_headers]
    assert found == [(None, "X-Team", "mint"), (1, "Authorization", "Bearer canary-of-the-second")]
    assert "canary" not in repr(settings) + str(settings)
    assert {"Bearer canary-of-the-second", "canary-of-the-second"} <= set(settings.secret_texts())
    assert "mint" not in settings.secret_texts()
    file.chmod(0o666)
    assert "everybody may write it" in refusal({**COMPLETE, "BSKT_RPC_HEADERS_FILE": str(file)})


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("canary-without-a-name", "line 1 is not Name: value"),
        ("X-Key: one\nX Key: canary", "line 2 is not Name: value"),
        ("X-Key: canary\x07bell", "line 1 is not Name: value"),
        ("Host: canary", "Host is not for you to set"),
        ("7 X-Key: canary", "a node that BSKT_RPC_URL does not have"),
        ("X-Key: canary\n0 x-key: canary", "node 0 gets one header twice"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(lines: str, problem: str) -> None:
    said = refusal({**COMPLETE, "BSKT_RPC_HEADERS": lines})
    assert problem in said
    assert "canary" not in said


def test_an_authorization_beside_a_password_in_the_url_is_refused() -> None:
    said = refusal(
        {"BSKT_RPC_URL": "https://user:password@one.example/", "BSKT_RPC_HEADERS": "Authorization: Bearer canary"}
    )
    assert "its URL has a user and password" in said
    assert "canary" not in said


def test_short_hex_is_no_instance_secret_however_long_its_text() -> None:
    assert "it has 16 bytes" in refusal({"BSKT_INSTANCE_SECRET": "ab" * 16})


@pytest.mark.parametrize(("places", "share"), [(1, 1), (2, 1), (3, 1), (5, 2), (6, 3)])
def test_baskets_that_are_not_served_have_the_smaller_half_of_the_places_and_at_least_one(
    places: int, share: int
) -> None:
    assert read({"BSKT_CRE_MAX_IN_FLIGHT": str(places)}).unserved_share == share


def test_what_a_command_needs_is_named_when_it_is_missing() -> None:
    with pytest.raises(SettingsError) as chain:
        read({}).require_chain()
    assert [line.partition(":")[0] for line in chain.value.problems] == [
        "BSKT_CHAIN_ID",
        "BSKT_RPC_URL",
        "BSKT_FACTORY_ADDRESS",
        "BSKT_FORWARDER_ADDRESS",
        "BSKT_START_BLOCK",
    ]
    with pytest.raises(SettingsError, match="set it or BSKT_CRE_SIGNER_KEY_FILE"):
        read({}).require_invocator()


def test_only_the_gateway_mode_needs_a_gateway() -> None:
    read({"BSKT_CRE_MODE": "dry-run", "BSKT_CRE_WORKFLOW": "01" * 32}).require_invocator()


def test_the_simulate_mode_names_what_it_needs() -> None:
    with pytest.raises(SettingsError) as missing:
        read({"BSKT_CRE_MODE": "simulate"}).require_invocator()
    assert [line.partition(":")[0] for line in missing.value.problems] == [
        "BSKT_CRE_PROJECT_DIR",
        "BSKT_CRE_WORKFLOW_FOLDER",
        "BSKT_CRE_TARGET",
        "BSKT_CRE_API_KEY",
        "BSKT_CRE_ETH_PRIVATE_KEY",
    ]


def test_the_cre_command_gets_its_own_environment_and_none_of_ours() -> None:
    """Hard case 116."""
    environment = COMPLETE | {
        "PATH": "/bin",
        "HOME": "/home/bskt",
        "AWS_SECRET_ACCESS_KEY": "not for cre",
        "BSKT_CRE_API_KEY": "an-api-key",
        "BSKT_CRE_ETH_PRIVATE_KEY": "0x" + "11" * 32,
    }
    assert cre_environment(read(environment), environment) == {
        "PATH": "/bin",
        "HOME": "/home/bskt",
        "CRE_API_KEY": "an-api-key",
        "CRE_ETH_PRIVATE_KEY": "0x" + "11" * 32,
    }


def test_an_external_database_needs_an_instance_secret() -> None:
    settings = read({"BSKT_CRE_MODE": "simulate", "BSKT_DATABASE_URL": "postgresql:///bskt"})
    with pytest.raises(SettingsError, match="BSKT_INSTANCE_SECRET"):
        settings.require_invocator()


def test_tokens_become_wei_exactly() -> None:
    tokens = read({"BSKT_MAX_MINT_TOKENS": "123456789012345678901234567890.000000000000000001"}).max_mint_tokens
    assert isinstance(tokens, Decimal)
    assert tokens == Decimal("123456789012345678901234567890.000000000000000001")
    assert wei(tokens) == 123456789012345678901234567890_000000000000000001


def test_a_cap_is_a_number_or_none_said_on_purpose_and_one_that_nobody_chose_is_named() -> None:
    chosen = read({"BSKT_MAX_MINT_TOKENS": "1.5", "BSKT_DAILY_CAP_TOKENS": "none"})
    assert (chosen.max_mint_wei, chosen.daily_cap_wei, chosen.caps_not_chosen) == (15 * 10**17, None, ())
    nothing = read({})
    assert (nothing.max_mint_wei, nothing.daily_cap_wei) == (None, None)
    assert nothing.caps_not_chosen == ("BSKT_MAX_MINT_TOKENS", "BSKT_DAILY_CAP_TOKENS")


def test_every_setting_is_documented_in_a_sentence() -> None:
    rows = {row.name: row for row in documented()}
    assert all(row.description for row in rows.values())
    assert rows["BSKT_TRIGGER_FINALITY"].default == "finalized"
    assert {name for name, row in rows.items() if row.is_secret} == {
        "BSKT_DATABASE_URL",
        "BSKT_RPC_URL",
        "BSKT_RPC_HEADERS",
        "BSKT_WS_URL",
        "BSKT_INSTANCE_SECRET",
        "BSKT_CRE_SIGNER_KEY",
        "BSKT_CRE_API_KEY",
        "BSKT_CRE_ETH_PRIVATE_KEY",
    }


def test_the_readme_has_the_table_of_the_settings() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition("| name | default | meaning | needed by |")
    written = "| name | default | meaning | needed by |" + rest.partition("\n\n")[0]
    assert written == markdown_table(), "python -c 'from service.settings import *; print(markdown_table())'"


def test_what_is_needed_is_what_the_table_says() -> None:
    needed = {row.name for row in documented() if row.needed_by}
    with pytest.raises(SettingsError) as chain:
        read({}).require_chain()
    with pytest.raises(SettingsError) as invocator:
        read({"BSKT_DATABASE_URL": "postgresql:///bskt", "BSKT_CRE_MODE": "simulate"}).require_invocator()
    with pytest.raises(SettingsError) as gateway:
        read({}).require_invocator()
    refused = [*chain.value.problems, *invocator.value.problems, *gateway.value.problems]
    assert {line.partition(":")[0] for line in refused} == needed


def test_secret_files_are_those_that_are_read(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("BSKT_WS_URL_FILE=/old\nBSKT_CRE_SIGNER_KEY_FILE=/key\n", encoding="utf-8")
    files = secret_files(env_file, {"BSKT_WS_URL": "ws://new.example", "BSKT_RPC_URL_FILE": "/rpc"})
    assert files == {"BSKT_CRE_SIGNER_KEY": Path("/key"), "BSKT_RPC_URL": Path("/rpc")}


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SettingsError, match="no such setting: colour"):
        read({}, colour="red")
