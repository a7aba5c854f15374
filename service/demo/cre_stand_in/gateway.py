"""The gateway's checks that need memory: jti seen, rate, ids in flight (protocol cre.md §1.5, §1.7, §2.3).

In memory only, so a restarted gateway has forgotten all of it, as the real one has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service.demo.cre_stand_in import protocol
from service.demo.cre_stand_in.clock import Clock
from service.demo.cre_stand_in.protocol import Claims, Request, Workflow

JTI_KEPT_SECONDS = 24 * 3600
# The reaper's period is 10 minutes as well, so the real gateway keeps an unanswered id for 10 to 20 minutes.
UNANSWERED_KEPT_SECONDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """One trigger a workflow every `seconds_per_trigger`, with `burst` at once after a pause (§1.7)."""

    seconds_per_trigger: float
    burst: int = 1


class Gateway:
    """Judge requests in the protocol's order; every method raises `Refused` where the gateway refuses."""

    def __init__(self, *, clock: Clock, workflows: Sequence[Workflow], rate_limit: RateLimit | None) -> None:
        self.workflows = list(workflows)
        self.rate_limit = rate_limit
        self._clock = clock
        self._jti_used_at: dict[str, float] = {}
        self._full_at: dict[bytes, float] = {}
        self._in_flight_since: dict[str, float] = {}

    def identify(self, request: Request) -> Workflow:
        """Check what needs no token: method, input, selector, workflow known."""
        protocol.check_method(request)
        protocol.check_input(request)
        protocol.check_selector(request)
        return protocol.find_workflow(request, self.workflows)

    def authenticate(self, request: Request) -> Claims:
        """Check the token by itself."""
        return protocol.verify_token(request, now=self._clock.now())

    def admit(self, request: Request, workflow: Workflow, claims: Claims) -> None:
        """Check the token against the memory, then rate and ids in flight.

        The jti is spent once the signer is authorised, so a retry after 429 or 409 needs a fresh one.
        """
        now = self._clock.now()
        if now - self._jti_used_at.get(claims.jti, -JTI_KEPT_SECONDS) < JTI_KEPT_SECONDS:
            raise protocol.replayed()
        protocol.check_authorized(claims, workflow)
        self._jti_used_at[claims.jti] = now
        self._take_slot(workflow.workflow_id, now)
        if now - self._in_flight_since.get(request.request_id, -UNANSWERED_KEPT_SECONDS) < UNANSWERED_KEPT_SECONDS:
            raise protocol.in_flight(request.request_id)

    def _take_slot(self, workflow_id: bytes, now: float) -> None:
        if self.rate_limit is None:
            return
        # The bucket as one instant: when it will be full again.  Each trigger moves that instant by one period, and
        # it may lie at most `burst` periods ahead.
        period = self.rate_limit.seconds_per_trigger
        full_at = max(self._full_at.get(workflow_id, now), now) + period
        if full_at - now > period * self.rate_limit.burst:
            raise protocol.rate_limited()
        self._full_at[workflow_id] = full_at

    def forwarded(self, request_id: str) -> None:
        """Hold the id until `answered`, or until the reaper finds it."""
        self._in_flight_since[request_id] = self._clock.now()

    def answered(self, request_id: str) -> None:
        """Forget the id: the nodes answered."""
        self._in_flight_since.pop(request_id, None)
