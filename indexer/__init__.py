"""Follow one EVM chain and keep its events in the datastore.

The node is authoritative for the chain; the datastore is authoritative for what is indexed.  This package never keeps a
third opinion: every tick starts from the rows, so a crash at any point costs a repeated read.

What holds after every committed transaction:

* the canonical rows of ``block`` above finality are linked, ``parent_hash`` to ``hash``, without a gap;
* for every block up to the cursor, every log of known origin is a row, and so is what it says: a basket, a request, a
  mint, a report; what cannot be decoded is a row too, with the reason;
* no row of a finalized block ever changes its place.

There are two regimes and one commit.  Below the chain's finalized block, logs are read by range.  Above it, one block
at a time is linked by its parent's hash and its logs are read by that hash, so that no answer about another branch can
be mistaken for this one.  A fork is searched by parent hash; nothing is written until the common ancestor is proven.

Reading order: ``continuity`` (what a branch means), ``ranges`` (how much to ask for), ``decoding`` (what a log says),
``policy`` (what is refused), ``observation`` (logs to rows), ``final_zone`` (reading by range), ``forks`` (who denies
what is final), ``follower`` (the shell), ``backfill``.
"""
