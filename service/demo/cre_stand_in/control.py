"""The stand-in's remote control: what a test does in process by methods, as JSON over loopback.

GET    /control/ledger              everything seen and done
POST   /control/faults              {"fault": "answer_lost", "arguments": {}, "count": 1} for the next calls,
                                    with "request_id" for the calls of one id, or
                                    {"chances": {"answer_lost": 0.2}, "seed": 1}
DELETE /control/faults              let everything go well
POST   /control/clock               {"advance_seconds": 86400}
POST   /control/deliveries/hold     then /release; /check looks at the chain at once
"""

from collections.abc import Mapping

from aiohttp import web

from service.demo.cre_stand_in.clock import Clock
from service.demo.cre_stand_in.deliveries import Deliveries
from service.demo.cre_stand_in.faults import FAULTS, Fault, FaultPlan
from service.demo.cre_stand_in.ledger import Ledger


def control_routes(*, ledger: Ledger, faults: FaultPlan, clock: Clock, deliveries: Deliveries) -> list[web.RouteDef]:
    """Build the routes; a request that makes no sense is answered 400 with a sentence, and changes nothing."""

    async def show_ledger(_request: web.Request) -> web.Response:
        return web.json_response(ledger.as_json())

    async def plan_faults(request: web.Request) -> web.Response:
        order = await _order(request)
        try:
            _plan(faults, order)
        except (KeyError, TypeError, ValueError) as error:
            raise _senseless(f"{error!r}") from error
        return web.json_response({})

    async def clear_faults(_request: web.Request) -> web.Response:
        faults.clear()
        return web.json_response({})

    async def advance_clock(request: web.Request) -> web.Response:
        seconds = (await _order(request)).get("advance_seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise _senseless("advance_seconds must be a number")
        clock.advance(seconds)
        return web.json_response({"now": clock.now()})

    async def hold(_request: web.Request) -> web.Response:
        deliveries.hold()
        return web.json_response({})

    async def release(_request: web.Request) -> web.Response:
        await deliveries.release()
        return web.json_response({})

    async def check(_request: web.Request) -> web.Response:
        await deliveries.check()
        return web.json_response({})

    return [
        web.get("/control/ledger", show_ledger),
        web.post("/control/faults", plan_faults),
        web.delete("/control/faults", clear_faults),
        web.post("/control/clock", advance_clock),
        web.post("/control/deliveries/hold", hold),
        web.post("/control/deliveries/release", release),
        web.post("/control/deliveries/check", check),
    ]


def _plan(plan: FaultPlan, order: Mapping[str, object]) -> None:
    if isinstance(chances := order.get("chances"), dict):
        plan.at_random(
            {FAULTS[name](): float(chance) for name, chance in chances.items()}, seed=int(str(order["seed"]))
        )
        return
    count = int(str(order.get("count", 1)))
    fault = _fault(str(order["fault"]), order.get("arguments"))
    if isinstance(request_id := order.get("request_id"), str):
        plan.for_request(request_id, *[fault] * count)
    else:
        plan.next(fault, count=count)


def _fault(name: str, arguments: object) -> Fault:
    return FAULTS[name](**arguments) if isinstance(arguments, dict) else FAULTS[name]()


async def _order(request: web.Request) -> dict[str, object]:
    try:
        order = await request.json()
    except ValueError as error:
        raise _senseless(f"the body is not JSON: {error}") from error
    if not isinstance(order, dict):
        raise _senseless("the body must be an object")
    return order


def _senseless(sentence: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=sentence)
