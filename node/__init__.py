"""Ask an EVM node, and believe nothing that is not well-formed.  The only code that speaks JSON-RPC.

The node is authoritative for the chain, but any single answer of it may be wrong: late, cut, of another branch, of
another chain, or made up.  What this package promises is about form: an answer is either parsed whole into frozen
values (hashes and addresses are bytes, logs in order and each once, everything from the block that was asked for), or
it is an error whose name says what to do next (``errors``).  Whether the content is true is for the caller to prove.

All calls are reads, so each may be repeated.  Only failures of the connection are repeated here, a few times and at
once; then the next endpoint is asked; waiting for better weather is the caller's.  What an endpoint's error text
suggests is never used for control (hard case 23), and no message holds its URL: the key of an account is in it.

No answer is cached, so that a crash costs nothing and a null near the tip is asked for again (hard case 32).  What is
kept is how each endpoint behaved, and what it can do; a restart forgets it, and learns it again.

Reading order: ``errors``, ``blocks`` (what an answer means), ``inconsistency`` and ``refusals`` (what is wrong with
it), ``exchange`` (HTTP, bounded in time and size), ``provider`` (web3's part), ``capabilities`` (what an endpoint can
do), ``endpoint`` (one URL); ``identity`` (which chain it must serve), ``health`` (whom to ask next), ``watchdog`` (what
must move), ``pool`` (several endpoints, and why a failover is safe); ``bloom`` (evidence of completeness), ``node``
(the questions); ``heads`` (the wake-up).
"""
