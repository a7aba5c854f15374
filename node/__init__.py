"""Ask Ethereum nodes, and believe no more of an answer than what it proves.

The only package that speaks JSON-RPC.  It knows the chain's own things (headers, logs, receipts) and nothing of baskets
or mints, and it keeps no state that a caller relies on: every question can be asked again.

What holds for every answer that a caller gets:

* it was complete, within the size and time allowed, and every member had exactly the form that the specification
  promises; otherwise nothing of it is used (``NodeAnswerInvalid``);
* logs asked by block hash are of that block, logs asked by range are inside that range, headers have the number or the
  hash that was asked for; logs are in chain order and none is there twice;
* an error is named by what the caller should do: call again (``NodeUnavailable``), ask for less (``RangeRefused``),
  read the tip again (``BlockUnknown``), give up the call (``CallReverted``) or the endpoint (``ChainMismatch``);
* no error, log line or metric holds an endpoint's URL.

What an answer does not prove: that an empty list is really empty.  Callers compare with the bloom and with receipts.

Reading order: ``blocks`` (what is told, pure), ``errors``, ``refusals`` (what an error means, pure), ``endpoint`` (one
URL), ``provider`` (web3's part in it), ``node`` (the questions).
"""
