"""Trigger a mint through ``cre workflow simulate --broadcast`` (cre.md §3): send once, believe only the chain.

The command has no idempotency at all: each run has a random execution id, and its mock forwarder refuses nothing.  It
also exits with 0 after a time-out, an interruption, a business failure or a reverted mint.  So a run is either known
not to have started, or names a transaction whose receipt is then the proof, or its outcome is unknown.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

MINIMUM_TIMEOUT_SECONDS: Final = 330
"""The command itself waits five minutes for the workflow; ending it earlier makes unknown what it could have told."""

_MARKER: Final = "✓ Workflow Simulation Result:"
_TX_HASH: Final = re.compile(r"0x([0-9a-fA-F]{64})", re.ASCII)
_NO_TX_HASH: Final = bytes(32)  # what a run without --broadcast returns
_STDOUT_BYTES_KEPT: Final = 1024 * 1024
_STDERR_BYTES_KEPT: Final = 16 * 1024
_READ_BYTES: Final = 64 * 1024
_REASON_CHARACTERS: Final = 300
