"""Everything that the daemon needs around it, on one machine, without an account anywhere.

The daemon itself is not here and knows nothing of this package: it gets a node's URL, a gateway's URL and two contract
addresses, as it would in production.

* `anvil`: find, install and run a development chain that dies with us.
* `contracts`: deploy BSKT's contracts on it, play its users, its transmitters and its reorgs.
* `cre_stand_in`: Chainlink CRE, with its traps, behind one loopback port.
"""
