"""What ``bskt check`` and ``bskt keys check`` look at before anybody relies on the daemon.

Each look adds its findings and goes on: one evening with all of them is better than ten evenings with one each.
Nothing here writes to the database, and nothing that is sent to CRE can trigger a mint: it carries no token.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias
from uuid import uuid4

import orjson

from datastore import inspection, schema
from datastore.connection import Pool, Role, check_server, open_pool
from datastore.errors import DatastoreError, DatastoreUnavailable
from datastore.identity import secret_check_value
from datastore.inspection import FrozenFor, LastWord
from datastore.pinning import Pin
from indexer.abi_files import load_abis
from indexer.decoding import AbiUnsuitable, EventCatalog
from invocator.classification import (
    Accepted,
    Code,
    HttpReply,
    InstanceRefused,
    NeverSent,
    Reply,
    classify,
)
from invocator.cre_gateway import CreGateway, GatewayUrlUnusable
from invocator.signing import Signer, SignerKeyUnusable
from node.capabilities import Feature
from node.errors import BlockUnknown, HistoryPruned, NodeError, NodeRefused
from node.node import Node
from node.refusals import Refusal
from service import wiring
from service.endpoints import one_node, tried
from service.explanation import counted, moment, span
from service.settings import Settings, SettingsError, is_open_to_others

NODE_SECONDS: Final = 15.0
GATEWAY_SECONDS: Final = 15.0
CLOCK_WARNING_SECONDS: Final = 5.0
CLOCK_ERROR_SECONDS: Final = 30.0
"""Hard case 82: a token is good for 300 s; the invocator corrects what the gateway's clock tells it, up to a point."""
OLD_HEAD_SECONDS: Final = 600.0

WITHOUT: Final = {
    Feature.LOGS_BY_TOPIC: "It gives no logs without an address: they are asked for by address.",
    Feature.LOGS_BY_ADDRESS: "It gives no logs: they are taken from the receipts of each block.",
    Feature.LOGS_BY_HASH: "It gives no logs by block hash: near the head they are taken from the receipts.",
    Feature.BLOCK_RECEIPTS: "It gives no receipts of a block at once: they are asked for one by one.",
    Feature.FINALIZED_TAG: "It does not know the finalized block.",
}
"""What is done where a node lacks something."""

Clock: TypeAlias = Callable[[], datetime]
"""This machine's time of day."""


class Severity(StrEnum):
    """How bad it is; a note is no finding."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look found, and what to do about it."""

    check: str
    severity: Severity
    sentence: str
    remedy: str | None = None


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was found so far, in order."""

    found: list[Finding] = field(default_factory=list)

    @property
    def are_clean(self) -> bool:
        """Whether nothing was found that a person should mend."""
        return all(each.severity in {Severity.OK, Severity.NOTE} for each in self.found)

    def ok(self, check: str, sentence: str) -> None:
        """It is as it should be."""
        self.found.append(Finding(check=check, severity=Severity.OK, sentence=sentence))

    def note(self, check: str, sentence: str) -> None:
        """Worth knowing, or not knowable yet."""
        self.found.append(Finding(check=check, severity=Severity.NOTE, sentence=sentence))

    def warn(self, check: str, sentence: str, remedy: str) -> None:
        """It works, but not as it should."""
        self.found.append(Finding(check=check, severity=Severity.WARNING, sentence=sentence, remedy=remedy))

    def error(self, check: str, sentence: str, remedy: str) -> None:
        """The daemon would not start, or not work."""
        self.found.append(Finding(check=check, severity=Severity.ERROR, sentence=sentence, remedy=remedy))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the database knows that other looks are compared with; ``pin`` is ``None`` before the first start."""

    pin: Pin | None
    frozen_for: tuple[FrozenFor, ...]
    last_word: LastWord | None


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------
def look_at_settings(findings: Findings, settings: Settings) -> None:
    """What ``bskt run`` would refuse."""
    before = len(findings.found)
    for require in (settings.require_chain, settings.require_invocator):
        try:
            require()
        except SettingsError as error:
            refused(findings, error)
    if len(findings.found) == before:
        findings.ok("settings", "Everything that `bskt run` needs is set.")
    for name in settings.caps_not_chosen:
        findings.warn(
            "caps", f"{name} is not set: no amount is too much.", f"set {name} to a number of tokens, or to none"
        )
    try:
        EventCatalog(load_abis(settings.abi_dir or wiring.packaged_abis()))
    except AbiUnsuitable as error:
        findings.error("abi", str(error), "correct the files, or leave BSKT_ABI_DIR unset")
    else:
        findings.ok("abi", "Every event that is followed is described.")


def refused(findings: Findings, error: SettingsError) -> None:
    """Settings that cannot be used; each line of the error has its own remedy."""
    for problem in error.problems:
        name, _, sentence = problem.partition(": ")
        findings.error("settings", f"{name}: {sentence}", f"set {name} in the environment or the env file")


# ---------------------------------------------------------------------------------------------------------------------
# Database
# ---------------------------------------------------------------------------------------------------------------------
async def look_at_database(findings: Findings, settings: Settings, dsn: str, clock: Clock) -> Stored | None:
    """The server, the schema, the roles, and what is stored of the chain; ``None`` if it cannot be read."""
    try:
        await schema.check(dsn)
    except DatastoreUnavailable as error:
        findings.error("database", f"It cannot be used now: {error}", "check BSKT_DATABASE_URL and the server")
        return None
    except DatastoreError as error:
        findings.error("schema", str(error), "run `bskt schema apply`")
        return None
    findings.ok("schema", f"It has version {schema.SCHEMA_VERSION}, as this program.")
    roles = [role for role in Role if await _may_act_as(findings, dsn, role)]
    if roles == list(Role):
        findings.ok("roles", "This user may act as every part.")
    if Role.READER not in roles:
        return None
    async with await open_pool(dsn, Role.READER, max_size=1) as pool:
        await _look_at_server(findings, pool, clock)
        return await _look_at_stored(findings, settings, pool)


async def _may_act_as(findings: Findings, dsn: str, role: Role) -> bool:
    try:
        async with await open_pool(dsn, role, max_size=1):
            return True
    except DatastoreError as error:
        findings.error("roles", str(error), f"let the database's user act as {role.value}: GRANT {role.value} TO …")
        return False


async def _look_at_server(findings: Findings, pool: Pool, clock: Clock) -> None:
    server = await inspection.server(pool)
    try:
        weaknesses = await check_server(pool)
    except DatastoreError as error:
        findings.error("database", str(error), "change the server, or use another one")
    else:
        findings.ok("database", f"Postgres {server.version}, synchronous_commit on.")
        for each in weaknesses:
            if each.is_declared:
                findings.note("database", each.sentence)
            else:
                findings.warn("database", each.sentence, each.remedy)
    if server.is_standby:
        findings.error("database", "The server is a standby: it takes no writes.", "use the primary's address")
    _compare_clocks(findings, "the database's clock", (server.now - clock()).total_seconds())


def _compare_clocks(findings: Findings, whose: str, ahead_seconds: float) -> None:
    sentence = f"It is {span(abs(ahead_seconds))} {'ahead of' if ahead_seconds > 0 else 'behind'} this machine's."
    if abs(ahead_seconds) <= CLOCK_WARNING_SECONDS:
        findings.ok(whose, "It agrees with this machine's.")
    elif abs(ahead_seconds) <= CLOCK_ERROR_SECONDS:
        findings.warn(whose, sentence, "let both keep time by NTP")
    else:
        findings.error(whose, sentence, "let both keep time by NTP")


async def _look_at_stored(findings: Findings, settings: Settings, pool: Pool) -> Stored:
    chain_id = settings.chain_id
    if chain_id is None:
        return Stored(pin=None, frozen_for=(), last_word=None)
    pin = await inspection.stored_pin(pool, chain_id)
    if pin is None:
        findings.note("database", f"It does not hold chain {chain_id} yet: the first start pins it.")
    else:
        for name, now_set, pinned in (
            ("BSKT_FACTORY_ADDRESS", settings.factory_address, pin.factory_address),
            ("BSKT_FORWARDER_ADDRESS", settings.forwarder_address, pin.forwarder_address),
        ):
            if now_set is not None and now_set != pinned:
                findings.error("database", f"It follows another {name}: 0x{pinned.hex()}.", f"check {name}")
        if settings.only_allowed and not await inspection.allowed_baskets(pool, chain_id):
            findings.warn(
                "database",
                "Nothing is sent: BSKT_SERVED_BASKETS=listed, and no basket is allowed.",
                "bskt baskets allow TOKEN --reason …",
            )
    signer = _signer(settings)
    return Stored(
        pin=pin,
        frozen_for=tuple(await inspection.frozen_for(pool, chain_id)),
        last_word=None if signer is None else await inspection.last_word_on(pool, chain_id, signer.address),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Nodes
# ---------------------------------------------------------------------------------------------------------------------
async def look_at_nodes(findings: Findings, settings: Settings, stored: Stored | None, clock: Clock) -> None:
    """Each node of BSKT_RPC_URL by itself, for the daemon may need any of them."""
    for number in range(len(settings.rpc_url)):
        check = f"node {number}"
        node = one_node(settings, number, timeout_seconds=NODE_SECONDS)
        try:
            await _look_at_node(findings, check, node, settings, stored, clock)
        except NodeError as error:
            findings.error(check, str(error), "check this place of BSKT_RPC_URL")
        finally:
            await node.close()


async def _look_at_node(
    findings: Findings, check: str, node: Node, settings: Settings, stored: Stored | None, clock: Clock
) -> None:
    chain_id = await node.chain_id()
    if settings.chain_id is not None and chain_id != settings.chain_id:
        findings.error(check, f"It serves chain {chain_id}.", f"use a node of chain {settings.chain_id}")
        return
    head = await node.head()
    age_seconds = clock().timestamp() - head.timestamp
    about = f"Chain {chain_id}, head {head.number}, {span(age_seconds)} old."
    if age_seconds > OLD_HEAD_SECONDS:
        findings.warn(check, about, "the node may have stopped following its chain; a development chain rests")
    else:
        findings.ok(check, about)
    pin = stored.pin if stored else None
    genesis_hash = await node.genesis_hash()
    if pin is not None and pin.genesis_hash != genesis_hash:
        findings.error(check, "Its genesis is not the stored one.", "the chain was reset; use another database for it")
    await _look_at_contracts(findings, check, node, settings, pin)
    await _look_at_tags(findings, check, node, settings)
    await _look_at_abilities(findings, check, node, settings)


async def _look_at_contracts(findings: Findings, check: str, node: Node, settings: Settings, pin: Pin | None) -> None:
    for name, address in (
        ("BSKT_FACTORY_ADDRESS", settings.factory_address),
        ("BSKT_FORWARDER_ADDRESS", settings.forwarder_address),
    ):
        if address is None:
            continue
        code_hash = await node.code_hash(address)
        if code_hash is None:
            findings.error(check, f"There is no contract at {name}.", f"check {name} and BSKT_CHAIN_ID")
        elif name == "BSKT_FACTORY_ADDRESS" and pin is not None and pin.factory_code_hash != code_hash:
            findings.error(
                check, "The factory's code is not the stored one.", "check the node, the chain and the database"
            )
        else:
            findings.ok(check, f"There is a contract at {name}.")
    await _look_at_start(findings, check, node, settings)


async def _look_at_start(findings: Findings, check: str, node: Node, settings: Settings) -> None:
    """Baskets that were made below the start block are never found."""
    if settings.factory_address is None or settings.start_block is None or settings.start_block < 1:
        return
    try:
        earlier = await node.code_hash(settings.factory_address, settings.start_block - 1)
    except (HistoryPruned, BlockUnknown):
        findings.note(check, "It keeps no history to compare BSKT_START_BLOCK with.")
        return
    if earlier is not None:
        findings.warn(
            check,
            f"The factory was deployed before BSKT_START_BLOCK ({settings.start_block}): earlier baskets are not seen.",
            "set BSKT_START_BLOCK to the block of the deployment, before the first start",
        )


async def _look_at_tags(findings: Findings, check: str, node: Node, settings: Settings) -> None:
    used = {settings.trigger_finality.kind, settings.complete_finality.kind}
    for tag in ("finalized", "safe"):
        if await node.tagged(tag) is not None:
            continue
        if tag in used:
            findings.error(
                check, f"It does not know the {tag} block.", f"use another node, or depth:N instead of {tag}"
            )
        elif tag == "finalized":
            findings.warn(check, "It does not know the finalized block: history is never final.", "use another node")
    if "depth" in used:
        findings.note(
            check, f"Requests are sent at {settings.trigger_finality}, mints complete at {settings.complete_finality}."
        )


async def _look_at_abilities(findings: Findings, check: str, node: Node, settings: Settings) -> None:
    """What it can do: the daemon takes another way to what it does not, so hardly anything here must be mended."""
    try:
        can = await tried(settings, node)
    except NodeRefused as refused:
        if refused.refusal is not Refusal.RATE_LIMITED:
            raise
        findings.warn(
            check, "It limits how fast it is asked: what it can do was not seen.", "set BSKT_RPC_REQUESTS_PER_SECOND"
        )
        return
    if can.range_blocks:
        findings.ok(check, f"It gives the logs of {counted(can.range_blocks, 'block')} at once.")
    findings.ok(check, f"It answers {counted(can.batch_size, 'question')} at once.")
    for feature in can.lacks:
        if feature is not Feature.FINALIZED_TAG:  # said above, with what waits for it
            findings.note(check, WITHOUT[feature])
    if not can.range_blocks:
        findings.warn(check, "It gives no logs by range: each block is read alone.", "use another node to catch up")


# ---------------------------------------------------------------------------------------------------------------------
# CRE
# ---------------------------------------------------------------------------------------------------------------------
async def look_at_gateway(findings: Findings, settings: Settings, clock: Clock) -> None:
    """Ask the gateway about each workflow with a call that has no token, so that it can only be refused.

    It looks the workflow up before it looks at the token (cre.md §1.5): "not found" tells a wrong id, and any word
    about the token a known one.  Whether the key is authorised cannot be asked without triggering.
    """
    if settings.cre_mode != "gateway" or settings.cre_gateway_url is None:
        return
    try:
        gateway = CreGateway.at(settings.cre_gateway_url)
    except GatewayUrlUnusable as error:
        findings.error("gateway", str(error), "check BSKT_CRE_GATEWAY_URL")
        return
    for workflow_id in settings.cre_workflow:
        request_id = uuid4().hex
        body = orjson.dumps(
            {
                "jsonrpc": "2.0",
                "id": request_id,
                "method": "workflows.execute",
                "params": {"input": {}, "workflow": {"workflowID": workflow_id.hex()}},
            }
        )
        reply = await gateway.post(body, "", GATEWAY_SECONDS)
        _judge_gateway(findings, reply, request_id, workflow_id, clock)
        if not isinstance(reply, HttpReply):
            return


def _judge_gateway(findings: Findings, reply: Reply, request_id: str, workflow_id: bytes, clock: Clock) -> None:
    check = f"workflow {workflow_id.hex()[:8]}…"
    answer = classify(reply, request_id=request_id, workflow_id=workflow_id)
    match answer:
        case Accepted():
            findings.error(
                check, "The gateway accepted a call without a token.", "this is not CRE's gateway: send no mint there"
            )
        case InstanceRefused(code=Code.TOKEN_REFUSED):
            findings.ok(check, "The gateway knows it.")
        case InstanceRefused():
            findings.error(
                check, answer.sentence, "check BSKT_CRE_WORKFLOW; a private registry has a gateway of its own"
            )
        case NeverSent():
            findings.error("gateway", answer.sentence, "check BSKT_CRE_GATEWAY_URL, name resolution and firewall")
        case _:
            findings.warn(check, answer.sentence, "check BSKT_CRE_GATEWAY_URL, and try again")
    if isinstance(reply, HttpReply) and reply.server_date is not None:
        _compare_clocks(findings, "the gateway's clock", reply.server_date - clock().timestamp())


# ---------------------------------------------------------------------------------------------------------------------
# Keys
# ---------------------------------------------------------------------------------------------------------------------
def look_at_keys(findings: Findings, settings: Settings, files: dict[str, Path], stored: Stored | None) -> None:
    """The signer, the instance secret, and the files that they are in; no key is ever shown."""
    for name, path in sorted(files.items()):
        _look_at_file(findings, name, path)
    if settings.instance_secret is None and settings.database_url is None:
        kept = wiring.kept_secret_path(settings.data_dir)
        if kept.exists():
            _look_at_file(findings, "the kept instance secret", kept)
    _look_at_signer(findings, settings, stored)
    _look_at_secret(findings, settings, stored)


def _look_at_file(findings: Findings, name: str, path: Path) -> None:
    if is_open_to_others(path):
        mode = stat.S_IMODE(path.stat().st_mode)
        findings.warn(
            "key files",
            f"{name}: {path} has mode {mode:04o}: others than its owner can read or change it.",
            f"chmod 600 {path}",
        )
    else:
        findings.ok("key files", f"{name}: {path} is its owner's.")


def _look_at_signer(findings: Findings, settings: Settings, stored: Stored | None) -> None:
    if settings.cre_signer_key is None:
        findings.note("signer", "BSKT_CRE_SIGNER_KEY is not set.")
        return
    try:
        signer = Signer.from_text(settings.cre_signer_key.get_secret_value())
    except SignerKeyUnusable as error:
        findings.error("signer", str(error), "set BSKT_CRE_SIGNER_KEY to the key that the workflow authorises")
        return
    findings.ok("signer", f"Its address is {signer.checksum_address}.")
    if stored is None:
        return
    for frozen in stored.frozen_for:
        requests = f"{counted(frozen.requests, 'open request')} (the oldest is {frozen.example})"
        if frozen.signer != signer.address:
            findings.error(
                "signer",
                f"{requests} can only be sent by 0x{frozen.signer.hex()}, whose key was frozen with their bytes.",
                "put that key back until they are done, or decide each of them with `bskt requests`",
            )
        if settings.cre_workflow and frozen.workflow_id not in settings.cre_workflow:
            findings.error(
                "workflow",
                f"{requests} can only be sent to workflow {frozen.workflow_id.hex()}, which is not configured.",
                "add it to BSKT_CRE_WORKFLOW until they are done, or decide each of them with `bskt requests`",
            )
    word = stored.last_word
    if word is None:
        findings.note("signer", "Whether it is authorised is not known: it has signed no call that was answered.")
    elif word.outcome == "accepted":
        findings.ok("signer", f"It was authorised at {moment(word.at)}, when CRE accepted a call.")
    else:
        findings.error(
            "signer",
            f"At {moment(word.at)} the gateway refused it: {word.sentence}",
            "authorise this address in the workflow; after a deployment it takes the gateway two minutes to know",
        )


def _look_at_secret(findings: Findings, settings: Settings, stored: Stored | None) -> None:
    secret = present_secret(settings)
    if secret is None:
        made = (
            "the first start makes one and keeps it"
            if settings.database_url is None
            else "BSKT_INSTANCE_SECRET is not set"
        )
        findings.note("instance secret", f"There is none yet: {made}.")
        return
    value = secret_check_value(secret)
    if stored is None or stored.pin is None:
        findings.note(
            "instance secret", f"Its check value begins with {value.hex()[:16]}; nothing is stored to compare."
        )
    elif stored.pin.secret_check == value:
        findings.ok("instance secret", f"It is the database's: its check value begins with {value.hex()[:16]}.")
    else:
        findings.error(
            "instance secret",
            f"It is not the database's: {value.hex()[:16]}… instead of {stored.pin.secret_check.hex()[:16]}….",
            "restore the secret that this database began with: with another one, nonces change and may mint again",
        )


def present_secret(settings: Settings) -> bytes | None:
    """The configured instance secret, or the one that is kept beside the embedded database; makes none."""
    if settings.instance_secret is not None:
        return settings.instance_secret.get_secret_value()
    kept = wiring.kept_secret_path(settings.data_dir)
    if settings.database_url is not None or not kept.exists():
        return None
    return bytes.fromhex(kept.read_text(encoding="ascii"))


def _signer(settings: Settings) -> Signer | None:
    if settings.cre_signer_key is None:
        return None
    try:
        return Signer.from_text(settings.cre_signer_key.get_secret_value())
    except SignerKeyUnusable:
        return None


def now() -> datetime:
    """The time of day of this machine, which is one of the things to check."""
    return datetime.now(UTC)
