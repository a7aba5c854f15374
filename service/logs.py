"""Log lines: one event each, to stderr, without secrets, and safe to show in a terminal.

Token names, references and node answers come from strangers: nothing of theirs may begin a line, move the cursor or
grow without bound.  Secrets are recognised by value wherever they appear, for an exception's text has no field names.
"""

import contextlib
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, Literal, TextIO, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LINE_LIMIT_BYTES: Final = 8_192
REDACTED: Final = "***"

# The libraries are heard from warnings on: below, they print whole requests.
_OWN_LOGGERS: Final = ("datastore", "indexer", "invocator", "node", "service")
_LEAST_REDACTED_LENGTH: Final = 6  # a shorter text would be found everywhere
_DEEPEST: Final = 6
_KEY_LIMIT: Final = 64
_VALUE_LIMITS: Final = (2_048, 512, 128, 32)
_FIRST_KEYS: Final = ("timestamp", "level", "event")

_URL_USER = re.compile(r"(\w://)[^/@\s]+@")
_URL_QUERY = re.compile(r"(\w://[^\s?]*\?)[^\s\"'>]+")
_BARE = re.compile(r"[\w.:/+@*-]+", re.ASCII)

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Clean: TypeAlias = Callable[[str], str]


class _Handler(logging.StreamHandler[TextIO]):
    """Ours among the root's handlers, so that configuring twice replaces it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Say that a line could not be rendered; logging itself would print it raw, with what it hides."""
        error = sys.exc_info()[0]
        text = f"log.unrenderable: {error.__name__ if error else 'unknown'} in a line of {record.name}"
        substitute = logging.LogRecord(__name__, logging.ERROR, __file__, 0, text, None, None)
        # A closed or full stderr has nobody to tell.
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(self.format(substitute) + self.terminator)


def configure(
    *,
    level: str = "info",
    fmt: Literal["text", "json"] = "text",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Set up structlog and the standard library's logging for the whole process.

    Args:
        level: The least level of our own lines, ``debug`` to ``error``.
        fmt: ``text`` for people, ``json`` for machines; integers keep all their digits in both.
        secrets: Texts that no line may hold; of a URL also its password, query and key in the path.
        stream: stderr when not given.
    """
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    clean = redactor(secrets)
    encode = _json_line if fmt == "json" else _text_line

    def render(_logger: WrappedLogger, _name: str, event: EventDict) -> str:
        return rendered(event, clean=clean, encode=encode)

    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render], foreign_pre_chain=before
        )
    )
    root = logging.getLogger()
    for former in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())


def redactor(secrets: Iterable[str]) -> Clean:
    """A function that hides these texts, whichever way they are written, and what any URL should not show."""
    texts = {spelling for secret in secrets for part in _parts(secret) for spelling in _spellings(part)}
    found = sorted((text for text in texts if len(text) >= _LEAST_REDACTED_LENGTH), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, found)), re.IGNORECASE) if found else None

    def clean(text: str) -> str:
        if pattern is not None:
            text = pattern.sub(REDACTED, text)
        return _URL_QUERY.sub(rf"\1{REDACTED}", _URL_USER.sub(rf"\1{REDACTED}@", text))

    return clean


def rendered(event: Mapping[str, object], *, clean: Clean, encode: Callable[[Mapping[str, Json]], str]) -> str:
    """One event as text of at most ``LINE_LIMIT_BYTES``; what is cut says so."""
    order = [key for key in _FIRST_KEYS if key in event] + [key for key in event if key not in _FIRST_KEYS]
    plain = {clean(key)[:_KEY_LIMIT]: _plain(event[key], clean) for key in order}
    line = encode(plain)
    for limit in _VALUE_LIMITS:
        if len(line.encode()) <= LINE_LIMIT_BYTES:
            return line
        line = encode({key: _shortened(key, value, limit) for key, value in plain.items()})
    if len(line.encode()) <= LINE_LIMIT_BYTES:
        return line
    return encode({key: _shortened(key, plain[key], 128) for key in _FIRST_KEYS if key in plain} | {"cut": True})


def _parts(secret: str) -> set[str]:
    """The secret, and of a URL what is secret in it: whole paths and hosts are too common to hide."""
    parts = {secret}
    try:
        url = urlsplit(secret)
    except ValueError:
        return parts
    if url.scheme and url.netloc:
        parts |= {url.password or "", url.query} | {value for _, value in parse_qsl(url.query)}
        parts |= {segment for segment in url.path.split("/") if len(segment) >= 16}  # noqa: PLR2004 - keys are long
    return parts


def _spellings(text: str) -> set[str]:
    return {text, quote(text, safe=""), quote(text), unquote(text), repr(text)[1:-1]}


def _plain(value: object, clean: Clean, depth: int = 0) -> Json:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return clean("0x" + bytes(value).hex())
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {clean(str(key)): _plain(item, clean, depth + 1) for key, item in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | AbstractSet):
        return [_plain(item, clean, depth + 1) for item in value]
    return clean(str(value))


def _shortened(key: str, value: Json, limit: int) -> Json:
    if value is None or isinstance(value, bool | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= limit:
        return value
    # The last lines of a traceback name the error.
    return "…" + text[-limit:] if key == "exception" else text[:limit] + "…"


def _json_line(event: Mapping[str, Json]) -> str:
    return json.dumps(event)


def _text_line(event: Mapping[str, Json]) -> str:
    values = dict(event)
    head = [_printable(str(values.pop(key, ""))) for key in _FIRST_KEYS]
    traceback = str(values.pop("exception", ""))
    line = " ".join(
        [head[0], f"{head[1]:<7}", head[2], *(f"{_printable(key)}={_shown(values[key])}" for key in values)]
    )
    # Each line of a traceback is marked, so that none of them can pass for an event.
    return "\n".join([line, *(f"  | {_printable(each)}" for each in traceback.splitlines())])


def _shown(value: Json) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else '"' + _printable(value.replace('"', '\\"')) + '"'
    return _printable(json.dumps(value, ensure_ascii=False))


def _printable(text: str) -> str:
    # Not printable: controls, line ends, escapes to the terminal, direction marks, lone surrogates.
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
