import itertools
from collections.abc import Iterator
from dataclasses import fields, replace
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
    reason_of,
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
    stray_report=st.booleans(),
    evidence=st.booleans(),
    quarantined=st.booleans(),
)


@given(FACTS)
def test_every_event_may_be_fed_to_every_state_and_at_most_one_rule_fires(facts: Facts) -> None:
    for event, state in itertools.product(Event, State):
        firing = [r for r in RULES if r.event is event and state in r.sources and r.guard(facts)]
        assert len(firing) <= 1, (event, state)
        assert decide(event, state, facts) == (firing[0].target if firing else None)


# -- guards: what each rule asks of the facts, said once more and apart from the table --------------------------------

BOOLEANS = [field.name for field in fields(Facts) if field.type == "bool"]
ON_CHAIN = (ChainStatus.CANONICAL, ChainStatus.FINALIZED)


class Asks:
    """What must be so; of all that is not named, nothing is asked."""

    def __init__(
        self,
        yes: str = "",
        no: str = "",
        *,
        chain: tuple[ChainStatus, ...] = tuple(ChainStatus),
        mints: tuple[int, ...] = (0, 1, 2),
    ) -> None:
        self.allowed: dict[str, tuple[object, ...]] = {
            **dict.fromkeys(BOOLEANS, (False, True)),
            **dict.fromkeys(yes.split(), (True,)),
            **dict.fromkeys(no.split(), (False,)),
            "chain_status": chain,
            "mints": mints,
        }

    def met_by(self, facts: Facts) -> bool:
        return all(getattr(facts, name) in allowed for name, allowed in self.allowed.items())

    def barely(self) -> Iterator[Facts]:
        """Facts that meet it, with as little and with as much else as possible, and each with one fact changed."""
        for choice in (0, -1):
            met = Facts(**{name: allowed[choice] for name, allowed in self.allowed.items()})  # type: ignore[arg-type]
            yield met
            yield from (replace(met, **{name: not getattr(met, name)}) for name in BOOLEANS)  # type: ignore[arg-type]
            yield from (replace(met, chain_status=status) for status in ChainStatus)
            yield from (replace(met, mints=mints) for mints in (0, 1, 2))


NOTHING_SPEAKS_AGAINST = "visible_mint rival_holds_reference stray_report"
S = State
ASKED: dict[tuple[Event, State, State], tuple[Asks, ...]] = {
    (Event.REPORT_ORPHANED, S.FAILED, S.ACCEPTED): (Asks("accepted_once holds_reference"),),
    (Event.REPORT_ORPHANED, S.FAILED, S.IN_DOUBT): (Asks("holds_reference", "accepted_once"),),
    (Event.MINT_ORPHANED, S.EXECUTED, S.ACCEPTED): (Asks("accepted_once holds_reference", mints=(0,)),),
    (Event.MINT_ORPHANED, S.EXECUTED, S.IN_DOUBT): (Asks("sent holds_reference", "accepted_once", mints=(0,)),),
    (Event.MINT_ORPHANED, S.EXECUTED, S.REVIEW): (
        Asks(no="holds_reference", mints=(0,)),
        Asks(no="sent accepted_once", mints=(0,)),
    ),
    (Event.LOST_SEND_FOUND, S.SEEN, S.FAILED): (Asks(no="orphaned_for_good"),),
    (Event.LOST_SEND_FOUND, S.SEEN, S.REVIEW): (Asks("orphaned_for_good"),),
    (Event.MINT_PROVEN, S.SEEN, S.EXECUTED): (Asks(no="orphaned_for_good"),),
    (Event.MINT_PROVEN, S.SEEN, S.REVIEW): (Asks("orphaned_for_good"),),
    (Event.CONTESTED, S.CONFIRMED, S.REVIEW): (Asks(no="sent"),),
    (Event.ORPHANED_FOR_GOOD, S.SEEN, S.DROPPED): (Asks(no="sent"),),
    (Event.ORPHANED_FOR_GOOD, S.SEEN, S.REVIEW): (Asks("sent"),),
    (Event.MINT_FINAL, S.EXECUTED, S.COMPLETED): (Asks("mint_is_final mint_is_right", mints=(1,)),),
    (Event.MINT_FINAL, S.EXECUTED, S.REVIEW): (
        Asks("mint_is_final", "mint_is_right"),
        Asks("mint_is_final", mints=(0, 2)),
    ),
    (Event.CLAIM, S.CONFIRMED, S.CLAIMED): (Asks(chain=ON_CHAIN),),
    (Event.ATTEMPT_STARTED, S.CLAIMED, S.IN_DOUBT): (Asks(chain=ON_CHAIN),),
    (Event.ALL_REFUSED, S.IN_DOUBT, S.CONFIRMED): (Asks(no="sent", chain=ON_CHAIN),),
    (Event.ALL_REFUSED, S.IN_DOUBT, S.SEEN): (Asks(no="sent", chain=(ChainStatus.ORPHANED,)),),
    (Event.RESEND, S.FAILED, S.IN_DOUBT): (
        Asks("sent holds_reference", f"quarantined {NOTHING_SPEAKS_AGAINST}", chain=ON_CHAIN),
    ),
    (Event.RETRY, S.FAILED, S.IN_DOUBT): (Asks("sent", NOTHING_SPEAKS_AGAINST, chain=ON_CHAIN),),
    (Event.RETRY, S.FAILED, S.CONFIRMED): (Asks("final_enough", f"sent {NOTHING_SPEAKS_AGAINST}", chain=ON_CHAIN),),
    (Event.RETRY, S.FAILED, S.SEEN): (Asks(no=f"sent final_enough {NOTHING_SPEAKS_AGAINST}", chain=ON_CHAIN),),
    (Event.CANCEL, S.SEEN, S.CANCELLED): (Asks(no="sent doubtful_mint quarantined"),),
    (Event.RELEASE, S.REJECTED, S.CONFIRMED): (
        Asks("final_enough", "visible_mint rival_holds_reference", chain=ON_CHAIN),
        Asks("final_enough evidence", "visible_mint quarantined", chain=ON_CHAIN),
    ),
    (Event.NEW_GENERATION, S.FAILED, S.CONFIRMED): (
        Asks("final_enough", f"sent quarantined {NOTHING_SPEAKS_AGAINST}", chain=ON_CHAIN),
        Asks("final_enough evidence", f"quarantined {NOTHING_SPEAKS_AGAINST}", chain=ON_CHAIN),
    ),
    (Event.RESOLVE_COMPLETED, S.REVIEW, S.COMPLETED): (Asks("mint_is_final mint_is_right", mints=(1, 2)),),
    (Event.RESOLVE_FAILED, S.REVIEW, S.FAILED): (Asks(no="doubtful_mint"),),
}


def test_a_rule_fires_for_the_facts_that_it_asks_for_and_for_no_others() -> None:
    cells = set()
    for rule in RULES:
        cell = rule.event, rule.sources[0], rule.target
        cells.add(cell)
        asked = ASKED.get(cell, (Asks(),))
        for source, facts in itertools.product(rule.sources, (facts for asks in asked for facts in asks.barely())):
            expected = any(asks.met_by(facts) for asks in asked)
            # The guard itself too: an earlier rule of the cell must not be what keeps a later one from firing.
            assert rule.guard(facts) == expected, (rule.event, source, facts)
            assert (decide(rule.event, source, facts) is rule.target) == expected, (rule.event, source, facts)
    assert set(ASKED) <= cells


def test_of_a_request_nothing_is_known_but_that_it_is_on_chain() -> None:
    assert {name: value for name in BOOLEANS if (value := getattr(Facts(), name))} == {}
    assert (Facts().chain_status, Facts().mints) == (ChainStatus.CANONICAL, 0)


def test_every_event_has_a_rule_and_every_state_a_meaning() -> None:
    assert {rule.event for rule in RULES} == set(Event)
    assert set(MEANING) == set(State)


def test_the_trigger_in_the_schema_is_the_one_that_the_table_generates() -> None:
    begin = "-- generated from datastore/lifecycle.py: transitions\n"
    text = SCHEMA.split(begin)[1].split("-- end of generated lines")[0]
    assert text.rstrip("\n") == trigger_rows()
    statuses = ", ".join(f"'{status.value}'" for status in ChainStatus)
    assert f"CHECK (chain_status IN ({statuses}))" in SCHEMA


@given(FACTS)
def test_a_sent_request_never_gives_up_its_reference(facts: Facts) -> None:
    for before, after in itertools.product(State, State):
        assert keeps_reference(before=before, after=after, sent=True, held=True)
        assert not keeps_reference(before=before, after=after, sent=facts.sent, held=False)


def test_what_was_never_sent_gives_its_reference_up_when_it_goes_back_or_ends() -> None:
    for before, after in itertools.product(State, State):
        gives_up = after is not before and after in {State.SEEN, State.DROPPED, State.CANCELLED}
        assert keeps_reference(before=before, after=after, sent=False, held=True) is not gives_up


def test_a_transition_s_reason_is_its_event_unless_nothing_backs_the_mint() -> None:
    unbacked = {Event.ORPHANED_FOR_GOOD, Event.MINT_PROVEN}
    for event, after in itertools.product(Event, State):
        expected = "unbacked" if event in unbacked and after is State.REVIEW else event.value
        assert reason_of(event, after) == expected


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
    _title, _generated, states, generated = text.rstrip("\n").split("\n\n", 3)
    _heading, _rule, *rows = states.splitlines()
    assert rows == [f"| `{state}` | {means} | {label} |" for state, (means, label) in MEANING.items()]
    assert generated == f"```mermaid\n{diagram()}\n```\n\n{table()}"
