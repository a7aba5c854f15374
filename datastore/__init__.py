"""The only code that speaks SQL, and the lifecycle of a mint request.

Postgres is the only meeting place of the daemon's parts: the indexer writes what it sees, the invocator claims what is
due, people steer through the operator's functions, and nobody keeps state anywhere else.

What holds after every committed transaction:

* the cursor names the last indexed block, and every row up to it is there (one transaction a commit, and the cursor
  moves by compare-and-swap, so that of two followers one gets nothing);
* each ``MintRequested`` that is or ever was canonical is one row of ``mint_request``, found again by its identity;
* each change of a request's state is allowed by ``lifecycle.RULES`` for the acting role, and is a row of
  ``mint_transition`` (a trigger holds both);
* at most one request holds a bank reference; at most one frozen body exists for a nonce; each call to CRE has an
  ``attempt`` row that was committed before its socket opened.

Locks are taken in one order, so that no two transactions wait for each other:

1. ``cursor`` of the chain (``connection.lock_chain``): by each unit that works on several requests, or on requests and pauses
   of baskets.  There is one such unit a chain at a time: the indexer's commits and steps, the invocator's sweep, people.
2. ``control`` of the chain.
3. ``mint_request``, each statement in the order of bank reference and id; ``basket_pause``, with the cursor only.  A unit
   without the cursor locks one request, or several with ``SKIP LOCKED``, and waits for no second one.  Of another chain's
   requests, a judgement locks only those that are free; an operator's unit and a mint's rivals wait for one holder.
4. ``attempt``, ``trigger_gate``, ``breaker``, ``workflow_slot``, ``workflow_turn``; ``basket_turn`` and ``requester_turn`` in
   the order of their keys.
5. An ``alarm`` that is counted up, last.

What is only inserted (transitions, other alarms, ``tally_delta``, ``unsettled_reference``) makes no transaction wait.

A crash costs the transaction that was open.  After an unknown outcome of a commit the caller reads again: every write
is idempotent by a natural key.

Reading order: ``lifecycle`` (the table), ``identity``, ``reference`` and ``mint_amount`` (pure rules of what a request
is), ``judgement`` (who keeps a bank reference), ``rows`` (what the indexer hands over), ``following`` (its commit, and
what it leaves to bounded steps), ``claims`` (the invocator's statements), ``operators``, ``status``, ``tally``;
``connection`` and ``schema`` underneath.
"""
