"""How often Python looks for cycles of garbage.

Its default, every 700 new objects, is made for programs that make few: the indexer makes a million rows a minute, none
of them in a cycle, and spent a quarter of its time on looking through them again and again (``bench/README.md``).
"""

import gc
from typing import Final

NEW_OBJECTS: Final = 100_000
"""At most so many objects, some 20 MB, are looked through late."""


def look_seldom() -> None:
    """Set it for this process."""
    gc.set_threshold(NEW_OBJECTS, 50, 100)
