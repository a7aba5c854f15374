from hypothesis import given
from hypothesis import strategies as st

from invocator.workflow_pool import resend_seconds, resends_within

TIMEOUTS = st.floats(1, 600)


@given(timeout_seconds=TIMEOUTS, attempt_no=st.integers(1, 10**9))
def test_a_back_off_never_shrinks_and_ends_at_half_an_hour_however_many_attempts_there_were(
    timeout_seconds: float, attempt_no: int
) -> None:
    seconds = resend_seconds(attempt_no, timeout_seconds=timeout_seconds)
    assert timeout_seconds < seconds <= max(1_800, timeout_seconds + 5)
    assert seconds <= resend_seconds(attempt_no + 1, timeout_seconds=timeout_seconds)


@given(timeout_seconds=TIMEOUTS, give_up_seconds=st.floats(0, 10**6))
def test_the_resends_of_a_time_fit_into_it_and_one_more_does_not(
    timeout_seconds: float, give_up_seconds: float
) -> None:
    resends = resends_within(give_up_seconds, timeout_seconds=timeout_seconds)
    pauses = [resend_seconds(number, timeout_seconds=timeout_seconds) for number in range(1, resends + 2)]
    assert sum(pauses[:-1]) < give_up_seconds or resends == 0
    assert sum(pauses) >= give_up_seconds
