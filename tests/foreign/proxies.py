"""Whoever stands between caller and gateway and sends a call again: proxies, and the retries of libraries.

What may have been done is sent once. The judge is Central's own record.
"""

from concurrent import futures

import large
from case import LIBRARIES, REQUEST, UUID_V7, case
from cases import connected, refused_without_trailer
from envoy import MESH_RETRIES, mesh
from java_client import GrpcJavaClient
from python_client import GrpcioClient
from relay import relay

# As people copy it from a guide: the contract's own advice (clients/service-config.json) has none for changes.
COPIED_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
HEDGING = {
    "methodConfig": [
        {
            "name": [{}],
            "hedgingPolicy": {"maxAttempts": 3, "hedgingDelay": "0.3s", "nonFatalStatusCodes": ["UNAVAILABLE"]},
        }
    ]
}


# ---- a mesh's default policy, and every outcome that nobody knows ----

LOGIN = {"status": 200, "dialect": "html", "message": "Sign in"}
# What Central's caller gets to see, though Central has done it.
UNKNOWN = {
    "an_internal_error": {"answer": {"status": 500}},
    "a_bad_gateway": {"answer": {"status": 502}},
    "an_unavailable_central": {"answer": {"status": 503}},
    "a_gateway_timeout": {"answer": {"status": 504}},
    "a_reset_connection": "reset",
    "a_closed_connection": "close",
    "a_reset_within_the_answer": "reset_midway",
    "half_an_answer": "truncated",
    "a_redirect": {"answer": {"status": 303, "headers": [["location", "/elsewhere"]]}},
    "a_login_page": {"answer": LOGIN},
    "silence": "silence",
}


def register(name, reply):
    def run(world, client):
        assert client.list_services().code == "OK"  # the token and the services are at hand
        world.sandbox.does_it_and_replies(reply)
        with mesh(world.gateway.address) as envoy, connected(client, world, envoy.address) as caller:
            unknown_once(world, caller.unassign(REQUEST, timeout=20))

    run.__name__ = f"a_mesh_does_not_repeat_{name}"
    case(GrpcioClient, settings={"central.timeout": "1s"})(run)


for name, reply in UNKNOWN.items():
    register(name, reply)


@case(*LIBRARIES)
def a_mesh_does_not_repeat_what_a_deadline_cut(world, client):
    assert client.list_services().code == "OK"
    world.sandbox.does_it_and_replies("silence")
    with mesh(world.gateway.address) as envoy, connected(client, world, envoy.address) as caller:
        answer = caller.unassign(REQUEST, timeout=1)
        assert answer.code == "DEADLINE_EXCEEDED", answer
        assert len(world.sandbox.unassignments()) == 1, world.sandbox.unassignments()


@case(*LIBRARIES)
def a_mesh_and_a_library_together_do_not_repeat_a_lost_connection(world, client):
    world.sandbox.loses_connection()
    with mesh(world.gateway.address) as envoy, connected(client, world, envoy.address, COPIED_RETRIES) as caller:
        unknown_once(world, caller.unassign(REQUEST, timeout=20))


def unknown_once(world, answer):
    sent = world.sandbox.unassignments()
    assert len(sent) == 1, f"Central saw {len(sent)} DELETEs: {answer}"
    assert answer.details, f"no details: {answer}"
    assert answer.metadata["outcome"] == "unknown", answer
    assert UUID_V7.fullmatch(answer.metadata["operation_id"]), answer
    assert answer.code != "UNAVAILABLE", answer
    assert answer.pushback == -1, answer


@case(GrpcioClient)
def a_mesh_repeats_what_is_unavailable(world, client):
    # The control of all these: what does not say why it is unavailable is sent three times.
    with refused_without_trailer() as (address, seen), mesh(address) as envoy:
        with connected(client, world, envoy.address) as caller:
            assert caller.unassign(REQUEST, timeout=20).code == "UNAVAILABLE"
        assert envoy.repeated() == MESH_RETRIES["num_retries"]
    assert seen == {"UnassignLicenses": 3}, seen


@case(GrpcioClient)
def a_partial_outcome_of_a_thousand_passes_a_mesh(world, client):
    large.central_takes_half(world.sandbox)
    with mesh(world.gateway.address) as envoy, connected(client, world, envoy.address) as caller:
        large.partial_of_a_thousand(caller.unassign(large.LARGE, timeout=20))


# ---- attempts that are announced ----


@case(GrpcioClient)
def a_first_attempt_that_is_announced_is_a_call_like_any(world, client):
    with mesh(world.gateway.address, announces=True) as envoy, connected(client, world, envoy.address) as caller:
        assert caller.unassign(REQUEST, timeout=20).code == "OK"
    assert len(world.sandbox.unassignments()) == 1


@case(GrpcioClient)
def a_proxy_that_repeats_internal_errors_is_refused(world, client):
    world.sandbox.does_it_and_replies({"answer": {"status": 500}})
    eager = MESH_RETRIES | {"retry_on": "unavailable,internal,cancelled,deadline-exceeded"}
    with mesh(world.gateway.address, eager, announces=True) as envoy:
        with connected(client, world, envoy.address) as caller:
            answer = caller.unassign(REQUEST, timeout=20)
        repeated_once_refused(world, answer)
        assert envoy.repeated() == 1


@case(GrpcioClient)
def a_proxy_without_patience_is_refused(world, client):
    assert client.list_services().code == "OK"
    world.sandbox.takes(5)
    eager = MESH_RETRIES | {"retry_on": "5xx", "per_try_timeout": "0.5s"}
    with mesh(world.gateway.address, eager, announces=True) as envoy:
        with connected(client, world, envoy.address) as caller:
            answer = caller.unassign(REQUEST, timeout=20)
        repeated_once_refused(world, answer)
        assert envoy.repeated() == 1


@case(*LIBRARIES)
def a_copied_retry_policy_does_not_repeat_after_a_crash(world, client):
    # Central has done it and its answer is still to come when the gateway dies. The library knows nothing and sends the
    # call again, to the gateway that stands there next.
    assert client.list_services().code == "OK"
    world.sandbox.does_it_and_replies("normal", times=1, after={"gate": "answer"})
    with (
        relay(world.gateway.address) as between,
        connected(client, world, between.address, COPIED_RETRIES) as caller,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(caller.unassign, REQUEST, timeout=25)
        world.sandbox.has_seen_an_unassignment()
        between.leads_to(None)
        world.gateway.crashes_and_starts_again()
        between.leads_to(world.gateway.address)
        repeated_once_refused(world, call.result())


@case(GrpcJavaClient)
def hedging_does_not_multiply_a_change(world, client):
    assert client.list_services().code == "OK"
    world.sandbox.takes(3)
    with connected(client, world, world.gateway.address, HEDGING) as caller:
        repeated_once_refused(world, caller.unassign(REQUEST, timeout=20))


def repeated_once_refused(world, answer):
    """The repeated attempt is refused; what became of the first one is not known by it."""
    sent = world.sandbox.unassignments()
    assert len(sent) == 1, f"Central saw {len(sent)} DELETEs: {answer}"
    assert answer.details, f"no details: {answer}"
    assert (answer.code, answer.reason) == ("ABORTED", "REPEATED_BY_PROXY"), answer
    assert answer.metadata["outcome"] == "unknown", answer
    assert answer.pushback == -1, answer
