import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from datastore.lifecycle import (
    MEANING,
    RULES,
    Actor,
    ChainStatus,
    Event,
    Facts,
    State,
    allowed_transitions,
    decide,
    diagram,
    keeps_reference,
    table,
    trigger_rows,
)

SCHEMA = (Path(__file__).parents[2] / "schema.sql").read_text()

FACTS = st.builds(
    Facts,
    chain_status=st.sampled_from(ChainStatus),
    orphaned_for_good=st.booleans(),
    sent=st.booleans(),
    accepted_once=st.booleans(),
    final_enough=st.booleans(),
    mints=st.integers(0, 3),
    visible_mint=st.booleans(),
    doubtful_mint=st.booleans(),
    mint_is_right=st.booleans(),
    mint_is_final=st.booleans(),
    holds_reference=st.booleans(),
    rival_holds_reference=st.booleans(),
    evidence=st.booleans(),
    quarantined=st.booleans(),
)


@given(FACTS)
def test_every_event_may_be_fed_to_every_state_and_at_most_one_rule_fires(facts: Facts) -> None:
    for event, state in itertools.product(Event, State):
        firing = [r for r in RULES if r.event is event and state in r.sources and r.guard(facts)]
        assert len(firing) <= 1, (event, state)
        assert decide(event, state, facts) == (firing[0].target if firing else None)


def test_every_event_has_a_rule_and_every_state_a_meaning() -> None:
    assert {rule.event for rule in RULES} == set(Event)
    assert set(MEANING) == set(State)


def test_the_trigger_in_the_schema_is_the_one_that_the_table_generates() -> None:
    begin = "-- generated from datastore/lifecycle.py: transitions\n"
    text = SCHEMA.split(begin)[1].split("-- end of generated lines")[0]
    assert text.rstrip("\n") == trigger_rows()


@given(FACTS)
def test_a_sent_request_never_gives_up_its_reference(facts: Facts) -> None:
    for before, after in itertools.product(State, State):
        assert keeps_reference(before=before, after=after, sent=True, held=True)
        assert not keeps_reference(before=before, after=after, sent=facts.sent, held=False)


def test_only_the_invocator_sends_and_only_a_person_ends_what_was_refused() -> None:
    sends = {
        actor for actor, source, target in allowed_transitions() if (source, target) == (State.CLAIMED, State.IN_DOUBT)
    }
    cancels = {actor for actor, _, target in allowed_transitions() if target is State.CANCELLED}
    assert sends == {Actor.INVOCATOR}
    assert cancels == {Actor.OPERATOR}


@given(FACTS)
def test_nothing_is_sent_for_an_orphaned_request(facts: Facts) -> None:
    """Hard cases 72 and 100."""
    if facts.chain_status is ChainStatus.ORPHANED:
        assert all(decide(Event.CLAIM, state, facts) is None for state in State)
        assert all(decide(Event.ATTEMPT_STARTED, state, facts) is None for state in State)


@given(FACTS)
def test_what_gave_its_reference_up_is_not_under_way_again_by_itself(facts: Facts) -> None:
    """The schema refuses it, and a refused commit would stop the indexer for good."""
    people = {Event.RETRY, Event.RELEASE, Event.NEW_GENERATION, Event.JUDGED_ALLOWED}
    under_way = {State.CONFIRMED, State.CLAIMED, State.IN_DOUBT, State.ACCEPTED}
    if not facts.holds_reference:
        for event, state in itertools.product(set(Event) - people, set(State) - under_way):
            assert decide(event, state, facts) not in under_way, (event, state)


@given(FACTS)
def test_no_person_cancels_what_was_sent_or_retries_what_has_a_visible_mint(facts: Facts) -> None:
    if facts.sent or facts.doubtful_mint:
        assert all(decide(Event.CANCEL, state, facts) is None for state in State)
    if facts.visible_mint:
        assert all(decide(Event.RETRY, state, facts) is None for state in State)


def test_the_diagram_and_the_table_in_the_docs_are_the_generated_ones() -> None:
    text = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()
    assert diagram() in text
    assert table() in text
