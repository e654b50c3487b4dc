"""Answers that are about a thousand customers: they arrive at libraries with default limits, and harm no other call.

Where trailers are larger than a client takes, libraries drop the call's reason, hang, or end the whole connection.
"""

from concurrent import futures

from case import CUSTOMERS, LIBRARIES, REQUEST, SERVICES, UUID_V7, case
from wire_client import WireClient

# Half of what Java's netty takes for all headers together by default: proxies on the way add theirs.
MOST_TRAILER_BYTES = 4096

IDS = [f"{number:032x}" for number in range(1000)]
LARGE = {"include_customers": {"customer_ids": IDS}, "services": SERVICES, "reason": "foreign client"}
# Each of the ids has a blank, which no id may have.
WRONG = LARGE | {"include_customers": {"customer_ids": [f"{ident} " for ident in IDS]}}


def central_takes_half(sandbox):
    """A call may name some 550 customers; what names the last one is refused."""
    sandbox.becomes(unknown_customer="ignored", max_body_bytes=20_000)
    sandbox.answers(403, customer=IDS[-1])


@case(*LIBRARIES)
def a_partial_outcome_of_a_thousand_harms_no_other_call(world, client):
    central_takes_half(world.sandbox)
    answer = beside_another_call(world, client, LARGE)
    partial_of_a_thousand(answer)
    assert answer.pushback == -1, answer


@case(*LIBRARIES)
def a_thousand_violations_harm_no_other_call(world, client):
    answer = beside_another_call(world, client, WRONG)
    a_thousand_violations(answer)
    assert answer.pushback == -1, answer


@case(WireClient)
def the_trailers_of_a_partial_outcome_are_small(world, client):
    central_takes_half(world.sandbox)
    answer = client.unassign(LARGE)
    partial_of_a_thousand(answer)
    assert answer.trailer_bytes <= MOST_TRAILER_BYTES, f"{answer.trailer_bytes} bytes of trailers"


@case(WireClient)
def the_trailers_of_violations_are_small(world, client):
    answer = client.unassign(WRONG)
    a_thousand_violations(answer)
    assert answer.trailer_bytes <= MOST_TRAILER_BYTES, f"{answer.trailer_bytes} bytes of trailers"


def beside_another_call(world, client, request):
    """What the client is answered while another of its calls waits at Central; that one must still end well."""
    assert client.list_services().code == "OK"  # connected, and the token and the services are at hand
    world.sandbox.holds("other", customer=CUSTOMERS[0])
    with futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(client.unassign, REQUEST, timeout=25)
        world.sandbox.has_seen_an_unassignment()
        try:
            answer = client.unassign(request, timeout=10)
        finally:
            world.sandbox.releases("other")
        assert other.result().code == "OK", f"the other call on the connection: {other.result()}"
    return answer


def partial_of_a_thousand(answer):
    assert answer.code == "PERMISSION_DENIED", brief(answer)
    assert answer.details, f"no details: {brief(answer)}"
    assert answer.reason == "CENTRAL_PERMISSION_DENIED", brief(answer)
    assert answer.metadata["outcome"] == "partial", brief(answer)
    assert UUID_V7.fullmatch(answer.metadata["operation_id"]), brief(answer)
    # Which of them may be shortened; that there are both is said in any case.
    parts = answer.details["central.licensing.v1.PartialOutcome"]
    done, rest = parts["applied_customer_ids"], parts["not_applied_customer_ids"]
    assert done and rest and not set(done) & set(rest), brief(answer)
    assert set(done) | set(rest) <= set(IDS) and IDS[-1] not in done, brief(answer)


def a_thousand_violations(answer):
    assert answer.code == "INVALID_ARGUMENT", brief(answer)
    assert answer.details, f"no details: {brief(answer)}"
    assert answer.reason == "INVALID_REQUEST", brief(answer)
    assert answer.metadata["outcome"] == "not_applied", brief(answer)
    assert UUID_V7.fullmatch(answer.metadata["operation_id"]), brief(answer)
    assert answer.detail("BadRequest")["field_violations"][0]["field"] == "include_customers.customer_ids[0]"


def brief(answer):
    text = str(answer)
    return text if len(text) < 600 else f"{text[:600]} … ({len(text)} characters)"
