"""Errors of the datastore, named by what the caller should do."""

from __future__ import annotations


class DatastoreError(Exception):
    """Root of what this package raises on purpose."""


class DatastoreUnavailable(DatastoreError):
    """Postgres could not do it now, or the outcome is not known.  Read again, then repeat the whole unit."""


class CursorMoved(DatastoreError):
    """Another follower committed first.  Nothing was written; start the tick again from the rows."""


class BlockMisplaced(DatastoreError):
    """A block has the hash of one that is held at another number, which no chain has: whoever said so is wrong.

    Nothing was written; ask again, better somebody else.
    """


class FinalityViolated(DatastoreError):
    """A reorg would orphan finalized rows.  Nothing was written; do not call again: a person must look."""


class DatastoreUnsuitable(DatastoreError):
    """The database is not the one for this daemon, or is unsafe.  Do not run; the message has the remedy."""


class SchemaMismatch(DatastoreUnsuitable):
    """The schema is missing, older or newer than this program.  Do not run on it."""
