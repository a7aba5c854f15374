import io
import json
import logging
from collections.abc import Iterator
from typing import Literal
from uuid import UUID

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from service import logs

DATABASE_URL = "postgresql://bskt:p%40ss-word@db.example/bskt"
RPC_URL = "https://node.example/v2/0123456789abcdefghij?token=query-token"
SECRETS = [DATABASE_URL, RPC_URL, "ab" * 32]
CLEAN = logs.redactor(SECRETS)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in logs._OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.reset_defaults()


def configured(fmt: Literal["text", "json"], level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level=level, fmt=fmt, secrets=SECRETS, stream=stream)
    return stream


def log(name: str = "service.test") -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def only_line(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    parsed: dict[str, object] = json.loads(line)
    return parsed


def test_json_keeps_every_digit_and_writes_bytes_as_hex() -> None:
    stream = configured("json")
    nonce = UUID(int=7)
    log().info("request.seen", amount_wei=2**256 - 1, tx_hash=b"\x01\xff", nonce=nonce, blocks=[1, b"\x02"])
    line = only_line(stream)
    assert line["event"] == "request.seen"
    assert line["level"] == "info"
    assert line["amount_wei"] == 2**256 - 1
    assert (line["tx_hash"], line["nonce"], line["blocks"]) == ("0x01ff", str(nonce), [1, "0x02"])


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_secret_is_hidden_wherever_it_stands(fmt: Literal["text", "json"]) -> None:
    stream = configured(fmt)
    log().error(
        "node.failed",
        exc_info=ConnectionError(f"cannot reach {RPC_URL} for {DATABASE_URL!r}"),
        nested={"urls": [RPC_URL, {"AB" * 32: "ab" * 32}]},
        key=bytes.fromhex("ab" * 32),
    )
    log().info("p@ss-word", password="p@ss-word", path="/v2/0123456789abcdefghij", query="query-token")
    text = stream.getvalue()
    for secret in ("p%40ss-word", "p@ss-word", "0123456789abcdefghij", "query-token", "ab" * 32, "AB" * 32):
        assert secret not in text
    assert "ConnectionError" in text


def test_any_url_loses_its_user_and_its_query() -> None:
    clean = logs.redactor([])
    assert clean("at https://me:word@host/x?key=1&b=2 now") == "at https://***@host/x?*** now"


def test_lines_of_libraries_are_redacted_too_and_heard_from_warnings_on() -> None:
    stream = configured("json", level="debug")
    logging.getLogger("web3").info("a whole request")
    logging.getLogger("web3").warning("no answer from %s", RPC_URL)
    assert only_line(stream)["event"] == "no answer from ***"


def test_a_level_silences_what_is_below_it() -> None:
    stream = configured("json", level="warning")
    log().info("block.indexed")
    log().warning("part.failed")
    assert only_line(stream)["event"] == "part.failed"


def test_a_hostile_name_cannot_begin_a_line_or_reach_the_terminal() -> None:
    stream = configured("text")
    log().info("basket.found", name='Gold"\n2026 error forged\x1b[2J\u202e', **{"ke\ny": 1})
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert 'name="Gold\\"\\n2026 error forged\\x1b[2J\\u202e"' in line


def test_no_line_of_a_traceback_can_pass_for_an_event() -> None:
    stream = configured("text")
    log().error("part.broken", exc_info=ValueError("bad\n2026-01-01 error forged\rtoo"))
    first, *rest = stream.getvalue().splitlines()
    assert "part.broken" in first
    assert all(line.startswith("  | ") for line in rest)


@pytest.mark.parametrize("fmt", ["text", "json"])
@pytest.mark.parametrize(
    "extra",
    [
        {"name": "x" * 100_000},
        {f"key_{number}": "x" * 100 for number in range(1_000)},
        {"items": list(range(10_000))},
        {"name": "\x00" * 100_000},
        {"amount_wei": 10**4_000, "items": [10**4_000] * 5},
    ],
)
def test_a_line_is_capped(fmt: Literal["text", "json"], extra: dict[str, object]) -> None:
    stream = configured(fmt)
    log().info("basket.found", **extra)
    line = stream.getvalue().rstrip("\n")
    assert len(line.encode()) <= logs.LINE_LIMIT_BYTES
    assert "basket.found" in line
    if fmt == "json":
        json.loads(line)


def test_a_capped_traceback_keeps_its_end() -> None:
    stream = configured("json")
    log().error("part.broken", exc_info=ValueError("y" * 50_000 + " the end"))
    assert str(only_line(stream)["exception"]).endswith("the end")


def test_a_line_that_cannot_be_rendered_is_reported_without_its_content() -> None:
    stream = configured("json")
    # Straight to our handler, for pytest's own raises on such a line.
    (handler,) = [each for each in logging.getLogger().handlers if isinstance(each, logs._Handler)]
    handler.handle(logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "%d blocks", (DATABASE_URL,), None))
    line = only_line(stream)
    assert (line["level"], line["event"]) == ("error", "log.unrenderable: TypeError in a line of uvicorn.error")


def test_configuring_twice_writes_each_line_once() -> None:
    configured("json")
    stream = configured("json")
    log().info("process.started")
    assert only_line(stream)["event"] == "process.started"


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.text() | st.binary() | st.integers() | st.floats(), st.lists)
    )
)
def test_whatever_is_logged_becomes_one_printable_line(values: dict[str, object]) -> None:
    event = values | {"event": "block.indexed", "exception": ""}
    line = logs.rendered(event, clean=CLEAN, encode=logs._text_line)
    assert line.isprintable()
    json.loads(logs.rendered(event, clean=CLEAN, encode=logs._json_line))
