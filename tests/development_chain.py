"""Which anvil the tests run."""

import os
from pathlib import Path

from service.demo.anvil import find_or_install_anvil

CACHE_DIR = Path(__file__).parents[1] / ".cache"


def binary() -> Path:
    """ANVIL_BIN's, PATH's, or one that is installed into the checkout once."""
    configured = os.environ.get("ANVIL_BIN")  # noqa: TID251 - about the tests, no setting of the daemon
    return find_or_install_anvil(configured=Path(configured) if configured else None, cache_dir=CACHE_DIR)
