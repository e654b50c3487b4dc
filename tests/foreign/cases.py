"""What foreign clients see. A case is written once and runs with every client it names.

A case gets `world.sandbox`, `world.gateway` and a connected `client`. Those start anew for every case, so nothing leaks
from one to the next: no breaker, no quota, no token.
"""

import collections
import contextlib
import dataclasses
import json
import re
import threading
import time
from concurrent import futures

import grpc

from buf_client import BufClient
from case import CUSTOMERS, EVERYONE, EXAMPLES, LIBRARIES, LICENSING, REQUEST, SERVICES, UUID_V7, case
from credentials import AUDIENCE, Authority, Issuer
from examples import ROOT
from go_client import GrpcGoClient
from node_client import GrpcJsClient
from python_client import GrpcioClient
from wire_client import WireClient

# ---- the calls ----


@case(*EVERYONE)
def a_request_becomes_one_delete(world, client):
    answer = client.unassign(REQUEST)
    assert answer.code == "OK", answer
    assert UUID_V7.fullmatch(answer.response.pop("operation_id")), answer
    # JSON leaves out what is false.
    assert answer.response.pop("replayed", False) is False, answer
    assert answer.response == {
        "scope": "SCOPE_KIND_INCLUDE_CUSTOMERS",
        "services": SERVICES,
        "customer_count": len(CUSTOMERS),
        "call_count": 1,
    } | unspoken(client), answer
    sent = world.sandbox.unassignments()
    assert [spelled(body) for body in sent] == [{"services": SERVICES, "include_customers": sorted(CUSTOMERS)}], sent


@case(*LIBRARIES, BufClient)
def a_thousand_customers_fit_in_one_request(world, client):
    # Ids of the greatest length: twice what HTTP/2 lets a client send before the server makes room.
    ids = [f"{number:0128}" for number in range(1000)]
    world.sandbox.becomes(unknown_customer="ignored")
    answer = client.unassign({"include_customers": {"customer_ids": ids}, "services": SERVICES})
    assert answer.code == "OK", answer
    assert answer.response["customer_count"] == 1000, answer
    assert [sorted(body["include_customers"]) for body in world.sandbox.unassignments()] == [ids]


@case(*EVERYONE, settings={"central.allow_open_scopes": "true"})
def everyone_is_hit_only_when_everyone_is_said(world, client):
    # A set member without fields is two bytes on the wire; whoever loses them has said no scope at all.
    request = {"all_customers": {}, "services": SERVICES}
    answer = client.unassign(request | {"etag": etag_of(world, request)})
    assert answer.code == "OK", answer
    assert answer.response["scope"] == "SCOPE_KIND_ALL_CUSTOMERS", answer
    assert "customer_count" not in answer.response, answer  # nobody named them
    assert answer.response["resolved_customer_count"] == 5, answer
    assert [spelled(body) for body in world.sandbox.unassignments()] == [{"services": SERVICES}]


@case(*EVERYONE, settings={"central.allow_open_scopes": "true"})
def everyone_except_is_said_in_centrals_words(world, client):
    request = {"exclude_customers": {"customer_ids": CUSTOMERS}, "services": SERVICES}
    answer = client.unassign(request | {"etag": etag_of(world, request)})
    assert answer.code == "OK", answer
    assert answer.response["scope"] == "SCOPE_KIND_EXCLUDE_CUSTOMERS", answer
    sent = world.sandbox.unassignments()
    assert [spelled(body) for body in sent] == [{"services": SERVICES, "exclude_customers": sorted(CUSTOMERS)}], sent


@case(GrpcioClient, settings={"central.allow_open_scopes": "true"})
def a_preview_binds_the_change_to_whom_it_has_shown(world, client):
    request = {"exclude_customers": {"customer_ids": CUSTOMERS[:1]}, "services": SERVICES}
    seen = client.preview(request | {"max_device_calls": 5})
    assert seen.code == "OK", seen
    assert seen.response["customer_count"] == 4 == len(seen.response["customers"]), seen
    assert seen.response["devices"]["is_complete"], seen
    codes = [warning["code"] for warning in seen.response["warnings"]]
    assert "PREVIEW_WARNING_CODE_MSP_DEVICES_IN_REACH" in codes, seen
    assert world.sandbox.unassignments() == []

    unbound = client.unassign(request)
    assert (unbound.code, unbound.reason) == ("FAILED_PRECONDITION", "PREVIEW_REQUIRED"), unbound
    other = client.unassign({"all_customers": {}, "services": SERVICES, "etag": seen.response["etag"]})
    assert (other.code, other.reason, other.pushback) == ("ABORTED", "PREVIEW_STALE", -1), other
    assert world.sandbox.unassignments() == []

    answer = client.unassign(request | {"etag": seen.response["etag"]})
    assert answer.code == "OK", answer
    assert answer.response["resolved_customer_count"] == 4, answer
    assert len(world.sandbox.unassignments()) == 1


@case(*EVERYONE)
def services_are_listed_by_name(world, client):
    answer = client.list_services()
    assert answer.code == "OK", answer
    names = [service["name"] for service in answer.response["services"]]
    assert names == sorted(names) and SERVICES[0] in names, answer
    assert answer.response["fetched_at"], answer


@case(GrpcioClient, GrpcJsClient, BufClient)
def a_release_is_watched_to_its_end(world, client):
    assert client.unassign(REQUEST).code == "OK"
    watch = {"include_customers": {"customer_ids": CUSTOMERS}, "services": SERVICES, "settle_seconds": 1}
    messages = client.watch_release(watch)
    *progress, last = messages
    assert progress and all(message["state"] == "RELEASE_STATE_WATCHING" for message in progress), messages
    assert (last["state"], last["end"]) == ("RELEASE_STATE_RELEASED", "WATCH_END_SEEN"), last
    assert last["released_customer_count"] == last["customer_count"] == len(CUSTOMERS), last
    assert last["held_devices"] == [] and last["resume_token"], last


# ---- failures, decoded ----


@case(*EVERYONE)
def every_bad_field_is_named(world, client):
    answer = client.unassign({"include_customers": {"customer_ids": [" ", CUSTOMERS[0], CUSTOMERS[0]]}, "services": []})
    assert answer.code == "INVALID_ARGUMENT", answer
    assert answer.detail("ErrorInfo")["domain"] == "license-gateway", answer
    assert answer.reason == "INVALID_REQUEST", answer
    assert answer.metadata["outcome"] == "not_applied", answer
    assert UUID_V7.fullmatch(answer.metadata["operation_id"]), answer
    assert answer.detail("RequestInfo")["request_id"], answer
    fields = {violation["field"] for violation in answer.detail("BadRequest")["field_violations"]}
    assert fields == {"include_customers.customer_ids[0]", "include_customers.customer_ids[2]", "services"}, fields
    assert answer.pushback == -1, answer
    assert world.sandbox.unassignments() == []


@case(*EVERYONE)
def no_scope_never_becomes_everyone(world, client):
    answer = client.unassign({"services": SERVICES})
    assert answer.code == "INVALID_ARGUMENT", answer
    fields = [violation["field"] for violation in answer.detail("BadRequest")["field_violations"]]
    assert fields == ["scope"], fields
    assert world.sandbox.unassignments() == []


@case(*EVERYONE)
def an_empty_list_never_becomes_everyone(world, client):
    for scope in ("include_customers", "exclude_customers"):
        answer = client.unassign({scope: {}, "services": SERVICES})
        assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST"), answer
        fields = [violation["field"] for violation in answer.detail("BadRequest")["field_violations"]]
        assert fields == [f"{scope}.customer_ids"], fields
    assert world.sandbox.unassignments() == []


@case(*EVERYONE)
def an_open_scope_is_refused_unless_allowed(world, client):
    for scope in ({"all_customers": {}}, {"exclude_customers": {"customer_ids": CUSTOMERS}}):
        answer = client.unassign(scope | {"services": SERVICES})
        assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "POLICY_DENIED"), answer
        assert answer.metadata["outcome"] == "not_applied", answer
        assert answer.pushback == -1, answer
    assert world.sandbox.unassignments() == []


@case(*EVERYONE)
def a_service_that_central_does_not_have_is_named(world, client):
    answer = client.unassign(REQUEST | {"services": ["no_such_service"]})
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST"), answer
    fields = [violation["field"] for violation in answer.detail("BadRequest")["field_violations"]]
    assert fields == ["services[0]"], fields
    assert world.sandbox.unassignments() == []


@case(*EVERYONE)
def an_unknown_customer_is_not_found(world, client):
    answer = client.unassign({"include_customers": {"customer_ids": ["0" * 32]}, "services": SERVICES})
    assert (answer.code, answer.reason) == ("NOT_FOUND", "CUSTOMER_NOT_FOUND"), answer
    assert answer.metadata["outcome"] == "not_applied", answer
    assert answer.metadata["http_status"] == "404", answer
    assert answer.detail("RequestInfo")["request_id"] == answer.metadata["operation_id"], answer
    assert answer.pushback == -1, answer


@case(*EVERYONE)
def a_spent_quota_says_when_to_come_back(world, client):
    # The day's last call is gone; the window opens again at 00:00 UTC.
    world.sandbox.answers(429, rate_headers="day_spent")
    answer = client.unassign(REQUEST)
    assert answer.code == "RESOURCE_EXHAUSTED", answer
    assert answer.reason == "CENTRAL_QUOTA_EXHAUSTED", answer
    assert answer.metadata["outcome"] == "not_applied", answer
    assert answer.metadata["http_status"] == "429", answer
    assert answer.detail("QuotaFailure")["violations"], answer
    wait = answer.detail("RetryInfo")["retry_delay"]
    assert 0 < wait <= 24 * 3600 + 60, answer
    assert answer.pushback == round(wait * 1000), answer


@case(*EVERYONE)
def a_partial_outcome_names_every_customer(world, client):
    # Too large for Central, so the gateway sends each half by itself; of the second nobody knows what became.
    done, lost = CUSTOMERS
    world.sandbox.answers(413, times=1)
    world.sandbox.answers(500, customer=lost)
    answer = client.unassign(REQUEST)
    assert answer.code == "INTERNAL", answer
    assert answer.reason == "CENTRAL_INTERNAL", answer
    assert answer.metadata["outcome"] == "partial", answer
    assert answer.details["central.licensing.v1.PartialOutcome"] == {
        "applied_customer_ids": [done],
        "not_applied_customer_ids": [],
        "unknown_customer_ids": [lost],
        "applied_count": 1,
        "not_applied_count": 0,
        "unknown_count": 1,
    }, answer
    assert answer.pushback == -1, answer


@case(*EVERYONE, settings={"central.base_url": "http://127.0.0.1:9"})
def an_unreachable_central_is_said_to_have_done_nothing(world, client):
    answer = client.unassign(REQUEST)
    assert answer.code == "UNAVAILABLE", answer
    # The token comes first, and from the same host.
    assert answer.reason == "CENTRAL_TOKEN_UNAVAILABLE", answer
    assert answer.metadata["outcome"] == "not_applied", answer
    assert answer.detail("RetryInfo")["retry_delay"] > 0, answer
    assert answer.pushback > 0, answer


# ---- deadlines ----


def central_is_slow(world, client):
    """From now on every DELETE takes longer than anybody waits, and the DELETE is all that is slow."""
    assert client.list_services().code == "OK"  # the token and the services are at hand
    world.sandbox.takes(5)


@case(WireClient)
def the_deadline_is_answered_by_the_server_in_time(world, client):
    # Wall-clock by intention, on a monotonic clock: the promise is about what callers wait. This client keeps no
    # deadline of its own, so the answer can only be the server's.
    central_is_slow(world, client)
    answer = client.unassign(REQUEST, timeout=0.3)
    assert answer.code == "DEADLINE_EXCEEDED", answer
    assert 0.25 <= answer.elapsed < 0.35, f"answered after {answer.elapsed:.3f} s"
    assert answer.reason == "DEADLINE_EXCEEDED", answer
    assert answer.metadata["outcome"] == "unknown", answer
    assert answer.pushback == -1, answer
    assert len(world.sandbox.unassignments()) == 1


@case(*LIBRARIES)
def a_library_learns_the_outcome_before_its_deadline(world, client):
    # The gateway answers a moment early, so that its answer wins against the library's own timer. On a machine that has
    # no moment to spare the timer wins; it does not win five times.
    central_is_slow(world, client)
    for _ in range(5):
        answer = client.unassign(REQUEST, timeout=0.3)
        assert answer.code == "DEADLINE_EXCEEDED", answer
        if answer.details:
            break
    assert answer.reason == "DEADLINE_EXCEEDED", answer
    assert answer.metadata["outcome"] == "unknown", answer
    assert answer.pushback == -1, answer


# ---- what must not be repeated ----


@case(*LIBRARIES, retries=True)
def an_eager_library_does_not_repeat_a_lost_connection(world, client):
    world.sandbox.loses_connection()
    unknown_once(world, client, "UNKNOWN", "CENTRAL_CONNECTION_LOST")


@case(*LIBRARIES, retries=True)
def an_eager_library_does_not_repeat_an_internal_error(world, client):
    world.sandbox.answers(500)
    unknown_once(world, client, "INTERNAL", "CENTRAL_INTERNAL")


@case(*LIBRARIES, retries=True)
def an_eager_library_does_not_repeat_an_unavailable_central(world, client):
    world.sandbox.answers(503)
    unknown_once(world, client, "UNKNOWN", "CENTRAL_UNAVAILABLE")


@case(*LIBRARIES, retries=True, settings={"central.timeout": "1s"})
def an_eager_library_does_not_repeat_a_timeout(world, client):
    central_is_slow(world, client)
    unknown_once(world, client, "DEADLINE_EXCEEDED", "CENTRAL_TIMEOUT")


def unknown_once(world, client, code, reason):
    answer = client.unassign(REQUEST)
    sent = world.sandbox.unassignments()
    assert len(sent) == 1, f"Central saw {len(sent)} DELETEs"
    assert answer.code == code, answer
    assert answer.reason == reason, answer
    assert answer.metadata["outcome"] == "unknown", answer
    assert answer.pushback == -1, answer


@case(*LIBRARIES)
def an_eager_library_does_repeat_without_the_trailer(world, client):
    # The control of the four cases above: against a server that sends no trailer the same policy calls five times.
    with refused_without_trailer() as (address, seen), connected(client, world, address, retries=True) as eager:
        assert eager.unassign(REQUEST).code == "UNAVAILABLE"
    assert seen == {"UnassignLicenses": 5}, seen


@case(*LIBRARIES)
def the_advised_service_config_repeats_reads_alone(world, client):
    # What a proxy answers has no trailer: then nothing but the configuration holds a library back.
    advised = json.loads((ROOT / "clients" / "service-config.json").read_text())
    with refused_without_trailer() as (address, seen), connected(client, world, address, retries=advised) as careful:
        assert careful.unassign(REQUEST).code == "UNAVAILABLE"
        assert careful.list_services().code == "UNAVAILABLE"
    assert seen == {"UnassignLicenses": 1, "ListServices": 4}, seen


@contextlib.contextmanager
def refused_without_trailer():
    """A server that is always unavailable and does not say more; how often it was called, by method."""
    seen = collections.Counter()

    def refuse(method):
        def handler(request, context):
            seen[method] += 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "come again")

        return grpc.unary_unary_rpc_method_handler(handler)

    server = grpc.server(futures.ThreadPoolExecutor(1))
    handlers = {method: refuse(method) for method in ("UnassignLicenses", "ListServices")}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(LICENSING, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", seen
    finally:
        server.stop(None)


@contextlib.contextmanager
def connected(client, world, address, retries=False):
    """Another client of the same library."""
    other = type(client)(address, world.tools, retries=retries)
    try:
        yield other
    finally:
        other.close()


# ---- what clients/ tells other teams to do ----

LOOK_FIRST = "look at the customers' licences before repeating"


@case(*EXAMPLES)
def the_example_takes_licences_away(world, client):
    code, lines = client.run(*SERVICES, *CUSTOMERS)
    assert code == 0, lines
    [line] = lines
    assert re.fullmatch(f"applied {UUID_V7.pattern}", line), line
    [sent] = world.sandbox.unassignments()
    assert sent == {"services": SERVICES, "include_customers": sorted(CUSTOMERS)}, sent


@case(*EXAMPLES)
def the_example_says_that_a_customer_is_unknown(world, client):
    example_fails(client.run(*SERVICES, "0" * 32), 2, "NOT_FOUND CUSTOMER_NOT_FOUND not_applied", "nothing was changed")
    assert len(world.sandbox.unassignments()) == 1


@case(*EXAMPLES, settings={"read_only": "true"})
def the_example_says_that_the_policy_is_against_it(world, client):
    example_fails(
        client.run(*SERVICES, *CUSTOMERS), 2, "PERMISSION_DENIED POLICY_DENIED not_applied", "nothing was changed"
    )
    assert world.sandbox.unassignments() == []


@case(*EXAMPLES)
def the_example_does_not_repeat_what_is_unknown(world, client):
    world.sandbox.loses_connection()
    example_fails(client.run(*SERVICES, *CUSTOMERS), 3, "UNKNOWN CENTRAL_CONNECTION_LOST unknown", LOOK_FIRST)
    assert len(world.sandbox.unassignments()) == 1


@case(*EXAMPLES)
def the_example_tells_who_may_be_repeated(world, client):
    done, lost = CUSTOMERS
    world.sandbox.answers(413, times=1)
    world.sandbox.answers(500, customer=lost)
    example_fails(
        client.run(*SERVICES, *CUSTOMERS),
        3,
        "INTERNAL CENTRAL_INTERNAL partial",
        f"applied: {done}",
        "may be repeated:",
        f"look first: {lost}",
    )


@case(*EXAMPLES, settings={"central.max_wait": "500ms"})
def the_example_repeats_after_the_wait_that_it_is_told(world, client):
    world.sandbox.answers(429, times=1)
    code, lines = client.run(*SERVICES, *CUSTOMERS)
    assert code == 0, lines
    failed, again, applied = lines
    assert failed.startswith("RESOURCE_EXHAUSTED CENTRAL_RATE_LIMITED not_applied "), lines
    assert re.fullmatch(r"again in \d+\.\d s", again), lines
    assert applied.startswith("applied "), lines


def example_fails(ended, code, failure, *conclusion):
    assert ended[0] == code, ended
    first, *rest = ended[1]
    assert re.fullmatch(f"{failure} {UUID_V7.pattern}", first), ended
    assert [line.rstrip() for line in rest] == list(conclusion), ended


# ---- health ----


def watch_serving(client, service=LICENSING):
    """A watch that has said SERVING: of the licensing service that takes a token of Central's."""
    stream = client.health_watch(service)
    while (status := stream.next()) != "SERVING":
        assert status == "NOT_SERVING", status
    return stream


@case(*LIBRARIES, BufClient)
def health_is_checked_by_name(world, client):
    watch_serving(client).cancel()
    for service in ("", LICENSING):
        answer = client.health_check(service)
        assert (answer.code, answer.response) == ("OK", {"status": "SERVING"}), answer
    assert client.health_check("no.such.Service").code == "NOT_FOUND"


# grpc-java's stub of health has no List yet.
@case(GrpcioClient, GrpcJsClient, GrpcGoClient, BufClient)
def health_lists_every_service(world, client):
    watch_serving(client).cancel()
    answer = client.health_list()
    assert answer.code == "OK", answer
    statuses = answer.response["statuses"]
    assert statuses[""] == statuses[LICENSING] == {"status": "SERVING"}, answer


@case(*LIBRARIES, BufClient)
def an_unknown_service_can_be_watched(world, client):
    stream = client.health_watch("no.such.Service")
    assert stream.next() == "SERVICE_UNKNOWN"
    stream.stays_open(for_seconds=0.5)
    stream.cancel()


@case(*LIBRARIES, BufClient)
def watchers_learn_of_the_end_and_do_not_delay_it(world, client):
    streams = [watch_serving(client, service) for service in ("", LICENSING)]
    world.gateway.terminate()
    assert [stream.next() for stream in streams] == ["NOT_SERVING", "NOT_SERVING"]
    assert world.gateway.exit_code(within=10) == 0


@case(*LIBRARIES)
def a_call_on_its_way_is_finished_before_the_end(world, client):
    world.sandbox.holds("end")
    watch = watch_serving(client)
    with futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.unassign, REQUEST, timeout=20)
        world.sandbox.has_seen_an_unassignment()
        world.gateway.terminate()
        assert watch.next() == "NOT_SERVING"
        world.sandbox.releases("end")
    assert answer.result().code == "OK", answer.result()
    assert world.gateway.exit_code(within=10) == 0


# ---- what a gRPC server owes everyone ----


@case(*LIBRARIES, BufClient)
def a_message_over_256_kib_is_refused(world, client):
    ids = [f"{number:0128}" for number in range(2100)]  # 130 bytes each on the wire
    answer = client.unassign({"include_customers": {"customer_ids": ids}, "services": SERVICES})
    assert (answer.code, answer.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"), answer
    assert answer.metadata["outcome"] == "not_applied", answer
    assert answer.pushback == -1, answer
    assert world.sandbox.unassignments() == []


@case(*LIBRARIES, WireClient)
def unknown_methods_and_services_are_unimplemented(world, client):
    for path in (f"/{LICENSING}/NoSuchMethod", "/no.such.Service/Method"):
        answer = client.call_unknown(path)
        assert (answer.code, answer.reason) == ("UNIMPLEMENTED", "NOT_IMPLEMENTED"), answer
        assert answer.pushback == -1, answer


@case(GrpcioClient)
def reflection_lists_the_services(world, client):
    assert_reflected(client.reflected_services())


@case(BufClient)
def reflection_speaks_both_versions(world, client):
    for version in ("grpc-v1", "grpc-v1alpha"):
        assert_reflected(client.reflected_services(version))
        methods = client.reflected_methods(version)
        assert f"{LICENSING}/UnassignLicenses" in methods, methods
        assert "grpc.health.v1.Health/Watch" in methods, methods


@case(*LIBRARIES)
def many_calls_share_a_connection(world, client):
    # Two at a time are enough to see streams interleave, few enough for Central's seven a second.
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.unassign(REQUEST))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.code for answer in answers] == ["OK", "OK"], answers
    assert len({answer.response["operation_id"] for answer in answers}) == 2, answers


# ---- who is calling ----


@case(*LIBRARIES, knows_callers=True)
def certificates_are_credentials(world, client):
    credentials = world.credentials
    assert client.health_check("").response["status"] == "SERVING"  # everyone who gets through the handshake
    nobody = client.unassign(REQUEST)
    assert (nobody.code, nobody.reason) == ("UNAUTHENTICATED", "CALLER_UNAUTHENTICATED"), nobody
    assert nobody.pushback == -1, nobody

    stranger = asked(world, client, credentials.certificate("spiffe://msp.test/stranger"))
    assert (stranger.code, stranger.reason) == ("PERMISSION_DENIED", "POLICY_DENIED"), stranger
    forged = asked(world, client, credentials.certificate(authority=Authority("callers")))
    assert forged.code == "UNAVAILABLE" and not forged.details, forged  # no handshake, no answer of the gateway
    assert world.sandbox.unassignments() == []

    good = asked(world, client, credentials.certificate())
    assert good.code == "OK", good
    assert len(world.sandbox.unassignments()) == 1


@case(*LIBRARIES, knows_callers=True)
def tokens_are_credentials(world, client):
    credentials, issuer = world.credentials, world.credentials.issuer
    past, ahead = int(time.time()) - 3600, int(time.time()) + 3600
    # Not the whole key: PyJWT itself refuses to take a public key for a secret.
    public = json.loads(issuer.key_set())["keys"][0]["n"].encode()
    bad = {
        "has expired": issuer.token(exp=past),
        "is not valid yet": issuer.token(nbf=ahead),
        "for another audience": issuer.token(aud="somebody-else"),
        "of another issuer": issuer.token(iss="https://evil.test"),
        "has no `sub`": issuer.token(sub=None),
        "has no `exp`": issuer.token(exp=None),
        "the signature of the bearer token is wrong": Issuer().token(),
        "by an algorithm that this gateway does not take": issuer.token("HS256", public),
        "no signed JSON Web Token": "hunter2",
    }
    for said, token in bad.items():
        answer = asked(world, client, credentials.token(token))
        assert (answer.code, answer.reason) == ("UNAUTHENTICATED", "CALLER_UNAUTHENTICATED"), (said, answer)
        assert said in answer.message and token not in answer.message, (said, answer)
    # A good certificate does not make up for a bad token.
    both = dataclasses.replace(credentials.certificate(), token=issuer.token(exp=past))
    assert asked(world, client, both).code == "UNAUTHENTICATED"
    stranger = asked(world, client, credentials.token(issuer.token(sub="system:serviceaccount:other:worker")))
    assert (stranger.code, stranger.reason) == ("PERMISSION_DENIED", "POLICY_DENIED"), stranger
    assert world.sandbox.unassignments() == []

    for algorithm in issuer.keys:
        good = asked(world, client, credentials.token(issuer.token(algorithm, aud=["other", AUDIENCE])))
        assert good.code == "OK", (algorithm, good)
    assert len(world.sandbox.unassignments()) == len(issuer.keys)


def asked(world, client, shown):
    """The same request by somebody else: a client of the same kind that shows this."""
    other = type(client)(world.gateway.address, world.tools, shown=shown)
    try:
        return other.unassign(REQUEST)
    finally:
        other.close()


def assert_reflected(services):
    # Reflection names itself too, by the version that was asked.
    assert {name for name in services if "reflection" not in name} == {LICENSING, "grpc.health.v1.Health"}, services


def spelled(body):
    """A body of Central's with its lists in order, whether it is recorded as text or as JSON."""
    parsed = json.loads(body) if isinstance(body, str) else body
    return {key: sorted(value) for key, value in parsed.items()}


def unspoken(client):
    """proto-loader adds a virtual field that names the set member of each oneof, also of `optional` ones."""
    return {"_customer_count": "customer_count"} if client.name == "grpc-js" else {}


def etag_of(world, request):
    """What a preview of this request gives, whichever client then sends it."""
    client = GrpcioClient(world.gateway.address, world.tools)
    try:
        answer = client.preview(request)
        assert answer.code == "OK", answer
        return answer.response["etag"]
    finally:
        client.close()
