"""The mint path, explored exhaustively within bounds: our design breaks no promise, and what it forbids does.

Driven by ``datastore.lifecycle``, the table that the schema's trigger is generated from.  See docs/protocol-model.md.
"""

import sys
from typing import Final

import pytest

from tests.model.search import DOUBLE_MINT, ENDED_BUT_LIVE, explore
from tests.model.world import Design, Scenario

OURS: Final = (
    Scenario(name="two workers", workers=2),
    Scenario(name="one worker, one reorg", reorgs=1),
    Scenario(name="two requests for one deposit", requests=2, shared=True),
    Scenario(name="two workers, CRE forgets what it ran", workers=2, forgets=True),
    Scenario(name="two workers, the workflow is redeployed", workers=2, workflows=2),
    Scenario(name="two workers, a failover loses the last commits", workers=2, failovers=1),
    Scenario(name="two requests for one deposit, and a person", requests=2, shared=True, people=True),
    Scenario(
        name="two contested requests, and a person",
        requests=2,
        shared=True,
        contested=True,
        people=True,
    ),
    Scenario(name="a failover, and a person", failovers=1, people=True),
    Scenario(name="a reorg, false reports, and a person", reorgs=1, false_reports=True, people=True),
)

BITES: Final = (
    (
        DOUBLE_MINT,
        Scenario(name="a fresh id for each attempt", design=Design(id_for_life=False, bytes_checked=False)),
    ),
    (
        DOUBLE_MINT,
        Scenario(
            name="the workflow of the settings, not the one of the first attempt",
            workflows=2,
            forgets=True,
            design=Design(workflow_pinned=False, bytes_checked=False),
        ),
    ),
    (
        DOUBLE_MINT,
        Scenario(
            name="a random nonce that is stored, a failover, and no quarantine",
            workers=2,
            failovers=1,
            design=Design(nonce_derived=False, quarantine="none"),
        ),
    ),
    (
        ENDED_BUT_LIVE,
        Scenario(
            name="the attempt is recorded after the send",
            requests=2,
            shared=True,
            reorgs=1,
            design=Design(attempt_before_send=False),
        ),
    ),
    (
        ENDED_BUT_LIVE,
        Scenario(
            name="only what was accepted counts as sent",
            requests=2,
            shared=True,
            reorgs=1,
            design=Design(sent="accepted only"),
        ),
    ),
)


@pytest.mark.parametrize("scenario", OURS, ids=[scenario.name for scenario in OURS])
def test_our_design_breaks_no_promise(scenario: Scenario) -> None:
    """No second mint, no lost request, nothing completed wrongly, nothing ended that may still mint."""
    report = explore(scenario)
    sys.stdout.write(f"{report}\n")  # states explored, for whoever runs it with -s
    assert not report.broken, str(report)
    assert report.states > 1_000


@pytest.mark.parametrize(("promise", "scenario"), BITES, ids=[scenario.name for _, scenario in BITES])
def test_what_the_design_forbids_breaks_a_promise(promise: str, scenario: Scenario) -> None:
    """The check is seen to bite: each of these is found, with its shortest trace."""
    report = explore(scenario, stop_at=lambda broken: broken == promise)
    sys.stdout.write(f"{report}\n")
    assert report.broken[promise]
