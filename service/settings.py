"""What a person can set, read once, checked before anything starts.

A value comes from the first that has one: a flag, the environment, the env file, the default.  An empty value counts as
absent, for compose files pass ``""`` for what is not set.  A secret may stand in a file named by ``…_FILE`` instead,
and is never repeated in a message.
"""

import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, urlsplit

from dotenv import dotenv_values
from eth_utils.address import is_checksum_address
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretBytes,
    SecretStr,
    Tag,
    ValidationError,
)

PREFIX: Final = "BSKT_"
MINIMUM_SECRET_BYTES: Final = 32
WEI_DIGITS: Final = 18
KEY_CHARACTERS: Final = 8
"""A word of a header that is as long may be a key, and no log line may hold it."""
_CONTAINER_SECRETS: Final = Path("/run/secrets")

_BIGINT = 2**63 - 1  # what a Postgres bigint holds
_LONGEST_SECONDS = 366 * 86_400


class SettingsError(Exception):
    """The settings cannot be used; the text has a line for each, with the remedy and without any secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finality:
    """When a block counts as final enough; ``depth_blocks`` only for the kind ``depth``, counted in linked blocks."""

    kind: Literal["finalized", "safe", "depth"]
    depth_blocks: int | None = None

    def __str__(self) -> str:
        return self.kind if self.depth_blocks is None else f"{self.kind}:{self.depth_blocks}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LateFactory:
    """A factory beside the first one, and the block of its deployment."""

    address: bytes
    start_block: int

    def __str__(self) -> str:
        return f"0x{self.address.hex()}@{self.start_block}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcHeader:
    """One HTTP header for a node, or (``endpoint`` of ``None``) for each; ``endpoint`` is a place in BSKT_RPC_URL."""

    endpoint: int | None
    name: str
    value: SecretStr


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the HTTP server binds; the host without the brackets of IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """One row of the README's table; ``default`` and ``needed_by`` are empty where there is none."""

    name: str
    default: str
    description: str
    needed_by: str
    is_secret: bool


def _items(text: str) -> list[str]:
    return [item for item in (part.strip() for part in text.split(",")) if item]


def _hex_bytes(text: str, length: int) -> bytes:
    digits = text.removeprefix("0x")
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * length}}}", digits) is None:
        raise ValueError(f"expected {2 * length} hex digits")
    return bytes.fromhex(digits)


def parse_address(text: str) -> bytes:
    """The 20 bytes of an address.

    Raises:
        ValueError: It is none, its checksum is wrong, or it is nobody's.
    """
    address = _hex_bytes(text, 20)
    digits = text.removeprefix("0x")
    if digits not in {digits.lower(), digits.upper()} and not is_checksum_address("0x" + digits):
        raise ValueError("its upper and lower case letters are not its checksum (EIP-55): one of them is mistyped")
    if not any(address):
        raise ValueError("the zero address is nobody's")
    return address


def _address(value: object) -> object:
    return parse_address(value) if isinstance(value, str) else value


def _late_factories(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = []
    for item in _items(value):
        address, at, number = item.partition("@")
        if not at or re.fullmatch(r"[0-9]{1,18}", number) is None:
            raise ValueError("expected 0xADDRESS@DEPLOYMENT_BLOCK for each")
        found.append(LateFactory(address=parse_address(address), start_block=int(number)))
    if len({factory.address for factory in found}) < len(found):
        raise ValueError("a factory stands there twice")
    return tuple(found)


def _workflow_ids(value: object) -> object:
    if not isinstance(value, str):
        return value
    ids = tuple(_hex_bytes(item, 32) for item in _items(value))
    if len(set(ids)) < len(ids):
        raise ValueError("a workflow id stands there twice")
    return ids


def _finality(value: object) -> object:
    if not isinstance(value, str):
        return value
    kind, _, depth = value.partition(":")
    if kind == "depth" and re.fullmatch(r"[1-9][0-9]{0,5}", depth):
        return Finality(kind="depth", depth_blocks=int(depth))
    if value == "finalized":
        return Finality(kind="finalized")
    if value == "safe":
        return Finality(kind="safe")
    raise ValueError("expected finalized, safe or depth:N with N of at least 1")


def _listen(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    # Port 0 lets the system choose.
    if not (colon and host and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 2**16):
        raise ValueError("expected HOST:PORT")
    return Listen(host=host.removeprefix("[").removesuffix("]"), port=int(port))


def _split_url(url: str, schemes: frozenset[str]) -> SplitResult:
    wrong = f"expected a URL with {' or '.join(f'{scheme}://' for scheme in sorted(schemes))} and a host"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # urllib quotes the URL, which may hold a key
        raise ValueError(wrong) from None
    if not usable:
        raise ValueError(wrong)
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _rpc_urls(value: object) -> object:
    if not isinstance(value, str):
        return value
    urls = _items(value)
    for url in urls:
        _split_url(url, frozenset({"http", "https"}))
    return tuple(SecretStr(url) for url in urls)


_HEADER = re.compile(
    r"(?:(?P<endpoint>[0-9]{1,3})[ \t]+)?(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[ -~]+)"
)
_HEADERS_OF_OURS = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})


def _rpc_headers(value: object) -> object:
    """A header a line, as ``Name: value``; with a node's place before it, for that node only."""
    if not isinstance(value, str):
        return value
    found = []
    lines = [line.strip() for line in value.splitlines()]
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        header = _HEADER.fullmatch(line)  # of it nothing is said: it may be a key
        if header is None:
            raise ValueError(f"line {number} is not Name: value, or 0 Name: value for the first node only")
        if header["name"].lower() in _HEADERS_OF_OURS:
            raise ValueError(f"line {number}: {header['name']} is not for you to set")
        place = None if header["endpoint"] is None else int(header["endpoint"])
        found.append(RpcHeader(endpoint=place, name=header["name"], value=SecretStr(header["value"])))
    return tuple(found)


def _ws_url(value: object) -> object:
    if isinstance(value, str):
        _split_url(value, frozenset({"ws", "wss"}))
    return value


def _database_url(value: object) -> object:
    # A Unix socket has no host, so only the scheme is judged here; the driver reads the rest.
    if isinstance(value, str) and not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return value


def _gateway_url(value: object) -> object:
    if isinstance(value, str):
        parts = _split_url(value, frozenset({"http", "https"}))
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            raise ValueError("expected https:// (http:// only for this machine's own loopback)")
        if parts.username or parts.password:
            raise ValueError("a user or password in this URL would be logged; the signer key is what authenticates")
    return value


def _instance_secret(value: object) -> object:
    if not isinstance(value, str):
        return value
    digits = value.removeprefix("0x")
    # Hex digits alone always mean hex: 32 of them are 16 bytes of chance, however long the text.
    is_hex = re.fullmatch(r"(?:[0-9a-fA-F]{2})+", digits) is not None
    secret = bytes.fromhex(digits) if is_hex else value.encode()
    if len(secret) < MINIMUM_SECRET_BYTES:
        raise ValueError(
            f"it has {len(secret)} bytes, at least {MINIMUM_SECRET_BYTES} are needed: openssl rand -hex 32"
        )
    return secret


def _signer_key(value: object) -> object:
    if isinstance(value, str):
        _hex_bytes(value, 32)
    return value


Address = Annotated[bytes, BeforeValidator(_address)]
Seconds = Annotated[float, Field(gt=0, le=_LONGEST_SECONDS, allow_inf_nan=False)]
BlockNumber = Annotated[int, Field(ge=0, le=_BIGINT)]
Tokens = Annotated[Decimal, Field(gt=0, max_digits=78, decimal_places=WEI_DIGITS)]
# No cap must be said: a value that nobody chose would either stop honest mints or stop nothing.
Cap = Annotated[
    Annotated[Tokens, Tag("tokens")] | Annotated[Literal["none"], Tag("none")],
    Discriminator(lambda value: "none" if value == "none" else "tokens"),
]
FinalityText = Annotated[Finality, BeforeValidator(_finality)]


class Settings(BaseModel):
    """Every setting, parsed; a field's name is the setting's without ``BSKT_``, in lower case.

    What is optional here may still be needed by a command: see ``require_chain`` and ``require_invocator``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: Annotated[SecretStr | None, BeforeValidator(_database_url)] = Field(
        default=None,
        description="Postgres, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE; without it an embedded Postgres",
    )
    data_dir: Path = Field(
        default=Path(),
        description="directory of the embedded Postgres and the generated secret; default: bskt in the XDG state"
        " directory, /var/lib/bskt for root",
    )
    chain_id: int | None = Field(default=None, ge=1, le=_BIGINT, description="EIP-155 id of the chain to follow")
    rpc_url: Annotated[tuple[SecretStr, ...], BeforeValidator(_rpc_urls)] = Field(
        default=(), description="JSON-RPC URLs of nodes, comma-separated, in order of preference"
    )
    rpc_requests_per_second: float | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="most questions a second to each node, a batch counted by its questions; default: no limit of ours",
    )
    rpc_headers: Annotated[tuple[RpcHeader, ...], BeforeValidator(_rpc_headers)] = Field(
        default=(),
        description="HTTP headers for the nodes, a line each: Name: value, or 0 Name: value for the first node only;"
        " keys belong into the file that BSKT_RPC_HEADERS_FILE names",
    )
    rpc_max_answer_bytes: int = Field(
        default=32 * 1024 * 1024,
        ge=1024 * 1024,
        le=1024 * 1024 * 1024,
        description="largest answer that is taken from a node, bytes; what is larger is asked for in smaller pieces",
    )
    rpc_max_logs: int = Field(
        default=50_000,
        ge=1_000,
        le=10_000_000,
        description="most logs that are taken from one answer of a node; more are asked for in another way",
    )
    ws_url: Annotated[SecretStr | None, BeforeValidator(_ws_url)] = Field(
        default=None, description="WebSocket URL of a node: tells of new heads sooner, never needed"
    )
    factory_address: Address | None = Field(default=None, description="the basket factory, 0x and 40 hex digits")
    more_factories: Annotated[tuple[LateFactory, ...], BeforeValidator(_late_factories)] = Field(
        default=(),
        description="more basket factories, 0xADDRESS@DEPLOYMENT_BLOCK, comma-separated; one that is added later,"
        " or older than BSKT_START_BLOCK, is followed once its history is recorded from that block on, and what was"
        " asked of it before is held",
    )
    forwarder_address: Address | None = Field(
        default=None, description="the CRE forwarder that delivers reports, 0x and 40 hex digits"
    )
    start_block: BlockNumber | None = Field(
        default=None, description="block number of the factory's deployment; stored once, at the first start"
    )
    trigger_from_block: BlockNumber | None = Field(
        default=None,
        description="requests of earlier blocks are held; default: the block after the first head ever seen",
    )
    contested_reference: Literal["review", "first"] = Field(
        default="review",
        description="unsent requests of different beneficiaries for one bank reference: a person decides (review) or"
        " the first on chain wins (first)",
    )
    abi_dir: Path | None = Field(default=None, description="directory of ABI files instead of the packaged ones")
    trigger_finality: FinalityText = Field(
        default=Finality(kind="finalized"), description="when a request may be sent: finalized, safe or depth:N blocks"
    )
    complete_finality: FinalityText = Field(
        default=Finality(kind="finalized"),
        description="when a mint counts as complete: finalized, safe or depth:N blocks",
    )
    poll_interval_seconds: Seconds = Field(default=2, description="pause between looks at an unchanged chain, seconds")
    head_timeout_seconds: float | None = Field(
        default=None,
        ge=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="no new head for so long is a trouble, seconds; 0: never; default: ten block times as observed, at"
        " least 60",
    )
    finality_timeout_seconds: float = Field(
        default=3_600,
        ge=0,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="finality that stands still for so long is a trouble, seconds; 0: never",
    )
    max_unfinalized_seconds: float = Field(
        default=129_600,
        ge=60,
        le=_LONGEST_SECONDS,
        allow_inf_nan=False,
        description="how far above the finalized block, by the times of blocks, indexing goes on while finality stalls,"
        " seconds; never more than 1,000,000 blocks",
    )
    max_log_range_blocks: int = Field(
        default=2_000, ge=1, le=1_000_000, description="most blocks in one eth_getLogs; halved when a node refuses"
    )
    instance_secret: Annotated[SecretBytes | None, BeforeValidator(_instance_secret)] = Field(
        default=None,
        description="32 bytes or more, hex or text, the same for ever: request ids derive from it; needed with"
        " BSKT_DATABASE_URL, made at the first start without",
    )
    cre_mode: Literal["gateway", "simulate", "dry-run"] = Field(
        default="gateway", description="how to trigger CRE: its gateway, its command line, or not at all (dry-run)"
    )
    cre_gateway_url: Annotated[str | None, BeforeValidator(_gateway_url)] = Field(
        default=None, description="URL of the CRE gateway; https:// unless on loopback"
    )
    cre_workflow: Annotated[tuple[bytes, ...], BeforeValidator(_workflow_ids)] = Field(
        default=(), description="CRE workflow ids, 64 hex digits each, comma-separated"
    )
    cre_signer_key: Annotated[SecretStr | None, BeforeValidator(_signer_key)] = Field(
        default=None, description="private key that the workflow authorises, 64 hex digits"
    )
    cre_command: str = Field(
        default="cre", min_length=1, description="mode simulate: the cre command line, name or path"
    )
    cre_project_dir: Path | None = Field(default=None, description="mode simulate: directory of the CRE project")
    cre_workflow_folder: str | None = Field(
        default=None, description="mode simulate: folder of the workflow inside the project"
    )
    cre_target: str | None = Field(default=None, description="mode simulate: target of the project's settings")
    cre_api_key: SecretStr | None = Field(
        default=None, description="mode simulate: what the cre command gets as CRE_API_KEY"
    )
    cre_eth_private_key: SecretStr | None = Field(
        default=None, description="mode simulate: what the cre command gets as CRE_ETH_PRIVATE_KEY, to broadcast with"
    )
    cre_seconds_per_trigger: float = Field(
        default=60, ge=0, le=86_400, allow_inf_nan=False, description="pace of one workflow, seconds; 0: no pacing"
    )
    cre_burst: int = Field(default=1, ge=1, le=1_000, description="triggers of one workflow allowed at once")
    cre_max_in_flight: int = Field(
        default=5, ge=1, le=10_000, description="undelivered requests at a time, over all workflows"
    )
    requester_max_in_flight: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="of them, those of one requester; default: three fifths of BSKT_CRE_MAX_IN_FLIGHT, at least 1",
    )
    basket_max_in_flight: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="of them, those of one basket; default: four fifths of BSKT_CRE_MAX_IN_FLIGHT, at least 1",
    )
    served_baskets: Literal["all", "listed"] = Field(
        default="all",
        description="which baskets are sent for: all, served ones (a mint completed, or `bskt baskets allow`) and the"
        " others in turns; or only those listed by `bskt baskets allow`",
    )
    cre_timeout_seconds: float = Field(
        default=90, ge=1, le=280, description="longest wait for the gateway's answer, seconds; a token lives 300"
    )
    claim_lease_seconds: Seconds = Field(
        default=120, description="how long a worker holds a claim, seconds; longer than BSKT_CRE_TIMEOUT_SECONDS"
    )
    completion_deadline_seconds: Seconds = Field(
        default=2_400, description="from ACCEPTED to failed: not_delivered, seconds; CRE may use 900 and the chain more"
    )
    # The gateway keeps a used id for 10 to 20 minutes and refuses it meanwhile: that is no reason to give up.
    give_up_seconds: float = Field(
        default=86_400,
        gt=1_200,
        le=_LONGEST_SECONDS,
        description="how long a request in doubt is resent before a person reviews it, seconds; more than 1200",
    )
    resend_after_seconds: Seconds | None = Field(
        default=None,
        description="resend what was accepted but not delivered, seconds after; sensible from 172800, when CRE has"
        " forgotten the id; default: an operator decides",
    )
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="currency of the deposits, ISO 4217")
    max_mint_tokens: Cap | None = Field(
        default=None, description="largest single mint, tokens, or none; asked for at the first start, default: no cap"
    )
    min_mint_tokens: Tokens | None = Field(
        default=None, description="smallest single mint, tokens; default: anything above nothing"
    )
    max_drift_tokens: Annotated[Decimal, Field(ge=0, max_digits=78, decimal_places=WEI_DIGITS)] = Field(
        default=Decimal("0.000001"),
        description="largest difference between the amount asked for and what the workflow's floating-point arithmetic"
        " makes of it, tokens",
    )
    daily_cap_tokens: Cap | None = Field(
        default=None,
        description="most that is sent in one UTC day, tokens, or none; what is more waits for the next day; asked for"
        " at the first start, default: no cap",
    )
    listen: Annotated[Listen, BeforeValidator(_listen)] = Field(
        default=Listen(host="127.0.0.1", port=9464), description="HOST:PORT of /livez, /readyz, /status and /metrics"
    )

    def require_chain(self) -> None:
        """Everything that run, backfill and check need to follow the chain.

        Raises:
            SettingsError: Names what is not set.
        """
        _require(self, CHAIN_FIELDS)

    def require_invocator(self) -> None:
        """Everything that a part which sends, or derives ids for sending, needs.

        Raises:
            SettingsError: Names what is not set.
        """
        secret = () if self.database_url is None else ("instance_secret",)
        _require(self, (*SENDING_FIELDS[self.cre_mode], *secret))

    @property
    def max_mint_wei(self) -> int | None:
        """The largest single mint; ``None``: no cap."""
        return _cap_wei(self.max_mint_tokens)

    @property
    def daily_cap_wei(self) -> int | None:
        """The most that is sent in one UTC day; ``None``: no cap."""
        return _cap_wei(self.daily_cap_tokens)

    @property
    def caps_not_chosen(self) -> tuple[str, ...]:
        """The caps of which nobody said a number or ``none``, by name."""
        return tuple(_name(field) for field in CAP_FIELDS if getattr(self, field) is None)

    @property
    def requester_share(self) -> int:
        """How many undelivered requests one requester may have at a time."""
        return self.requester_max_in_flight or max(1, self.cre_max_in_flight * 3 // 5)

    @property
    def basket_share(self) -> int:
        """How many undelivered requests one basket may have at a time."""
        return self.basket_max_in_flight or max(1, self.cre_max_in_flight * 4 // 5)

    @property
    def unserved_share(self) -> int:
        """How many undelivered requests all baskets that are not served may have at a time, once some basket is served.

        Half, rounded down, and at least 1: served baskets keep the larger half.
        """
        return max(1, self.cre_max_in_flight // 2)

    @property
    def only_allowed(self) -> bool:
        """Whether nothing is first sent but for baskets that a person allowed."""
        return self.served_baskets == "listed"

    def secret_texts(self) -> tuple[str, ...]:
        """Every text that no log line may hold."""
        keys = (self.cre_signer_key, self.cre_eth_private_key)
        single = (self.database_url, self.ws_url, self.cre_api_key, *keys)
        texts = [secret.get_secret_value() for secret in (*single, *self.rpc_url) if secret is not None]
        for value in (header.value.get_secret_value() for header in self.rpc_headers):
            texts += [part for part in (value, *value.split()) if len(part) >= KEY_CHARACTERS]
        texts += [key.get_secret_value().removeprefix("0x") for key in keys if key is not None]
        if self.instance_secret is not None:
            secret = self.instance_secret.get_secret_value()
            texts += [secret.hex(), secret.decode(errors="backslashreplace")]
        return tuple(texts)


CAP_FIELDS: Final = ("max_mint_tokens", "daily_cap_tokens")
CHAIN_FIELDS: Final = ("chain_id", "rpc_url", "factory_address", "forwarder_address", "start_block")
SENDING_FIELDS: Final = {
    "gateway": ("cre_gateway_url", "cre_workflow", "cre_signer_key"),
    "simulate": ("cre_project_dir", "cre_workflow_folder", "cre_target", "cre_api_key", "cre_eth_private_key"),
    "dry-run": ("cre_workflow",),
}
"""By mode."""
SECRET_FIELDS: Final = frozenset(
    {
        "database_url",
        "rpc_url",
        "rpc_headers",
        "ws_url",
        "instance_secret",
        "cre_signer_key",
        "cre_api_key",
        "cre_eth_private_key",
    }
)


def cre_environment(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of the ``cre`` command: where it finds programs and its home, and its two credentials.

    Args:
        settings: Checked for mode ``simulate``.
        environ: The environment; the process's own when not given.
    """
    environment = os.environ if environ is None else environ  # noqa: TID251 - this module is the place
    child = {name: environment[name] for name in ("PATH", "HOME") if name in environment}
    for name, secret in (("CRE_API_KEY", settings.cre_api_key), ("CRE_ETH_PRIVATE_KEY", settings.cre_eth_private_key)):
        if secret is not None:
            child[name] = secret.get_secret_value()
    return child


def wei(tokens: Decimal) -> int:
    """Tokens of 18 decimals as their smallest unit, exactly; the setting was checked for more digits than that."""
    numerator, denominator = tokens.as_integer_ratio()
    return numerator * 10**WEI_DIGITS // denominator


def _cap_wei(cap: Decimal | Literal["none"] | None) -> int | None:
    return wei(cap) if isinstance(cap, Decimal) else None


def load(
    flags: Mapping[str, object], env_file: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read every setting.

    Args:
        flags: By field name; ``None`` is a flag that was not given.
        env_file: Lines ``BSKT_NAME=value``; must exist when named.
        environ: The environment; the process's own when not given.

    Raises:
        SettingsError: A value, file or name is wrong; nothing may start.
    """
    environment = os.environ if environ is None else environ  # noqa: TID251 - this module is the place
    problems: list[str] = []
    if unknown := flags.keys() - Settings.model_fields.keys():
        problems.append(f"no such setting: {', '.join(sorted(unknown))}")
    values: dict[str, object] = {"data_dir": _default_data_dir(environment)}
    for source, texts in (("env file", env_file_texts(env_file)), ("environment", environment)):
        values |= _from_texts(texts, source, problems)
    values |= {name: flag for name, flag in flags.items() if flag is not None and name not in unknown}
    settings = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [
            _problem(str(detail["loc"][0]), str(detail.get("ctx", {}).get("error", detail["msg"])))
            for detail in error.errors(include_url=False, include_input=False)
        ]
    if settings is not None and settings.claim_lease_seconds <= settings.cre_timeout_seconds:
        problems.append(_problem("claim_lease_seconds", "not longer than BSKT_CRE_TIMEOUT_SECONDS"))
    if settings is not None:
        problems += [_problem("rpc_headers", wrong) for wrong in _wrong_headers(settings)]
    if settings is None or problems:
        raise SettingsError(problems)
    return settings


def _wrong_headers(settings: Settings) -> Iterator[str]:
    if any((header.endpoint or 0) >= len(settings.rpc_url) for header in settings.rpc_headers):
        yield "a header is for a node that BSKT_RPC_URL does not have"
    for number, url in enumerate(settings.rpc_url):
        names = [each.name.lower() for each in settings.rpc_headers if each.endpoint in {None, number}]
        if len(set(names)) < len(names):
            yield f"node {number} gets one header twice"
        parts = urlsplit(url.get_secret_value())
        if "authorization" in names and (parts.username or parts.password):
            yield f"node {number} gets an Authorization, and its URL has a user and password"


def secret_files(env_file: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, Path]:
    """The files that secrets are read from, by the setting's name.

    Raises:
        SettingsError: The env file cannot be read.
    """
    environment = os.environ if environ is None else environ  # noqa: TID251 - this module is the place
    files: dict[str, Path] = {}
    for texts in (env_file_texts(env_file), environment):
        for name in map(_name, SECRET_FIELDS):
            if path := (texts.get(f"{name}_FILE") or "").strip():
                files[name] = Path(path)
            elif (texts.get(name) or "").strip():
                files.pop(name, None)
    return files


def is_open_to_others(path: Path) -> bool:
    """Whether others than its owner can read or change a secret's file."""
    mode = path.stat().st_mode
    # What a container runtime mounts is readable inside of the container, and only there.
    return (
        bool(mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP)) and _CONTAINER_SECRETS not in path.absolute().parents
    )


def documented() -> Iterator[Documented]:
    """Every setting in the order of this file."""
    for field, info in Settings.model_fields.items():
        absent = info.default in (None, (), Path())
        yield Documented(
            name=_name(field),
            default="" if absent else str(info.default),
            description=info.description or "",
            needed_by=_needed_by(field),
            is_secret=field in SECRET_FIELDS,
        )


def _needed_by(field: str) -> str:
    if field in CHAIN_FIELDS:
        return "`run`, `backfill`"
    if modes := [f"`{mode}`" for mode, fields in SENDING_FIELDS.items() if field in fields]:
        return f"`run` in mode {', '.join(modes)}"
    return "everything, with `BSKT_DATABASE_URL`" if field == "instance_secret" else ""


def markdown_table() -> str:
    """The settings as the README shows them."""
    lines = ["| name | default | meaning | needed by |", "| --- | --- | --- | --- |"]
    for row in documented():
        meaning = row.description.replace("|", "\\|") + ("; a secret" if row.is_secret else "")
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.name}` | {default} | {meaning} | {row.needed_by} |")
    return "\n".join(lines)


def _name(field: str) -> str:
    return PREFIX + field.upper()


def _problem(field: str, wrong: str) -> str:
    return f"{_name(field)}: {wrong} ({Settings.model_fields[field].description})"


def _require(settings: Settings, fields: Sequence[str]) -> None:
    missing = [field for field in fields if getattr(settings, field) in (None, ())]
    if missing:
        raise SettingsError([_problem(field, f"not set; set it{_or_file(field)}") for field in missing])


def _or_file(field: str) -> str:
    return f" or {_name(field)}_FILE" if field in SECRET_FIELDS else ""


def env_file_texts(env_file: Path | None) -> Mapping[str, str | None]:
    """What the env file says, by name.

    Raises:
        SettingsError: It cannot be read.
    """
    if env_file is None:
        return {}
    try:
        with env_file.open(encoding="utf-8") as lines:
            # A password may hold a dollar sign: nothing is interpolated.
            return dotenv_values(stream=lines, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError([f"--env-file {env_file}: {reason}"]) from None


def _from_texts(texts: Mapping[str, str | None], source: str, problems: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for field in Settings.model_fields:
        name = _name(field)
        text = (texts.get(name) or "").strip()
        path = (texts.get(f"{name}_FILE") or "").strip() if field in SECRET_FIELDS else ""
        if text and path:
            problems.append(f"{name}: the {source} sets it and {name}_FILE; keep one of them")
        elif path:
            values[field] = _secret_file(name, path, problems)
        elif text:
            values[field] = text
    return values


def _secret_file(name: str, path: str, problems: list[str]) -> str | None:
    try:
        if Path(path).stat().st_mode & stat.S_IWOTH:
            problems.append(f"{name}_FILE: {path}: everybody may write it, so it may hold anybody's key; chmod 600 it")
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        problems.append(f"{name}_FILE: {path}: {error.strerror}")
    except UnicodeDecodeError:
        problems.append(f"{name}_FILE: {path}: not UTF-8 text")
    else:
        if text:
            return text
        problems.append(f"{name}_FILE: {path}: the file is empty")
    # The default stands in only so that the other settings are checked too: a problem has been noted.
    default: str | None = Settings.model_fields[name.removeprefix(PREFIX).lower()].default
    return default


def _default_data_dir(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/bskt")
    state = environ.get("XDG_STATE_HOME", "")
    # A relative path here is invalid by the XDG specification and ignored.
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "bskt"
