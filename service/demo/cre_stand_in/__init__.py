"""A stand-in for Chainlink CRE that obeys the protocol: gateway, nodes, engine and delivery on one loopback port.

It exists so that the demo and the end-to-end tests can ask the daemon every question that the real CRE asks, and can
count what came of it.  It shares no code with the daemon: it would share the daemon's mistakes.

The layers are CRE's, each with its own memory, because a repeated id is treated by each in its own way (cre.md §2.4):

* `protocol`: what a right request and a right answer are; pure.
* `gateway`: jti seen, rate, ids in flight; forgets an id as soon as it is answered.
* `nodes`: the answer of each id for 24 hours, then the engine: 5 runs an owner, a queue, silent drops.
* `workflow`: what the BSKT workflow does with its input, traps included; pure.
* `deliveries`: a signed report until it is deep in the chain, sent again after a reorg.
* `exchange`: one call through these layers, without its HTTP, for tests that need a hundred thousand of them.
* `faults`: what goes wrong on request.  `ledger`: what was seen, for tests to ask.
* `server`, `control`: the two HTTP faces.  `python -m service.demo.cre_stand_in` runs it as its own process, so
  that it survives the death of the daemon.

Memory is lost with the process, as a gateway's is.  Time is `clock`'s and can be advanced.
"""

from service.demo.cre_stand_in.clock import Clock
from service.demo.cre_stand_in.gateway import RateLimit
from service.demo.cre_stand_in.protocol import Workflow
from service.demo.cre_stand_in.server import CreStandIn

__all__ = ["Clock", "CreStandIn", "RateLimit", "Workflow"]
