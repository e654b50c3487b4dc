"""A real tracing backend, Phoenix, receives the traces of `license-gateway-demo`. `make trace-demo` calls it.

    check.py [--binary PATH] [--phoenix PATH] [--browser PROGRAM] [--picture FILE]

Asserted through Phoenix's API: the trace has the caller's span as its root, the server's below it, the calls to Central
below that. Phoenix forgets the kind of a span and its links. Those are read on the way: the spans go through a relay in this
script, which hands the very bytes on to Phoenix.
"""

import argparse
import json
import os
import pathlib
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector
from opentelemetry.proto.trace.v1 import trace_pb2

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "target" / "foreign-stubs"))
from central.licensing.v1 import licensing_pb2, licensing_pb2_grpc  # noqa: E402

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
RPC = "central.licensing.v1.LicensingService/UnassignLicenses"
DELETE = "DELETE /platform/licensing/v1/msp/subscriptions/devices/all"
CUSTOMER = "267958b55d5a463e94a302c20f4a6b68"
CALLER = "off-board Alpine Hotels"
Kind = trace_pb2.Span.SpanKind
# Straight there, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main():
    parser = argparse.ArgumentParser(description="The traces of the demo at a real tracing backend.")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "debug" / "license-gateway-demo")
    parser.add_argument("--phoenix", type=pathlib.Path, default=pathlib.Path(sys.executable).parent / "phoenix")
    parser.add_argument("--browser", help="a headless Chromium, for --picture")
    parser.add_argument("--picture", type=pathlib.Path, help="where to put a screenshot of the trace")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="license-gateway-") as folder:
        phoenix = Phoenix(arguments.phoenix, folder)
        relay = Relay(phoenix.collector)
        demo = Demo(arguments.binary, relay.endpoint)
        try:
            check_the_call(demo, relay, phoenix)
            check_a_shared_call(demo, relay, phoenix)
            if arguments.picture:
                screenshot(arguments.browser, phoenix.page_of(demo.trace_id), arguments.picture)
        except BaseException:
            print(*phoenix.log[-20:], *demo.said, sep="\n", file=sys.stderr)
            raise
        finally:
            demo.stop()
            relay.stop()
            phoenix.stop()
    print("ok: the traces of the demo, at a real Phoenix", flush=True)
    os._exit(0)  # not sys.exit: a thread of a library that hangs must not keep us


def check_the_call(demo, relay, phoenix):
    """The one call that the demo tells of; the demo names its caller's span, and this is the caller."""
    (served,) = wait_for("the server's span", lambda: [
        span for span in relay.spans() if span.name == RPC and span.trace_id.hex() == demo.trace_id
    ])  # fmt: skip
    # The demo's caller makes no span of its own: as long as the server's, and a millisecond before and after.
    began, ended = served.start_time_unix_nano - 1_000_000, served.end_time_unix_nano + 1_000_000
    relay.export(span_of_a_caller(CALLER, demo.trace_id, demo.caller_id, began, ended))
    spans = wait_for(
        "the trace of the demo",
        lambda: (found := phoenix.trace(demo.trace_id)) and {CALLER, RPC, DELETE} <= {span["name"] for span in found} and found,
    )
    (caller,) = [span for span in spans if span["name"] == CALLER]
    (server,) = [span for span in spans if span["name"] == RPC]
    (call,) = [span for span in spans if span["name"] == DELETE]
    assert caller["parent_id"] is None, caller
    assert server["parent_id"] == caller["context"]["span_id"], server
    assert call["parent_id"] == server["context"]["span_id"], call
    for span in spans:
        assert span is caller or span["parent_id"] in {other["context"]["span_id"] for other in spans}, span
    assert server["attributes"]["rpc.response.status_code"] == "OK", server
    assert server["attributes"]["license_gateway.outcome"] == "applied", server
    assert call["attributes"]["http.response.status_code"] == 200, call
    print(f"ok: Phoenix has {len(spans)} spans of the call, the caller's at the root, the call to Central in it", flush=True)

    sent = {span.span_id.hex(): span for span in relay.spans()}
    assert sent[server["context"]["span_id"]].kind == Kind.SPAN_KIND_SERVER
    for span in spans:
        if span["name"].split(" ")[0] in ("DELETE", "GET", "POST"):
            assert sent[span["context"]["span_id"]].kind == Kind.SPAN_KIND_CLIENT, span
    assert sent[call["context"]["span_id"]].kind == Kind.SPAN_KIND_CLIENT
    print("ok: on the way there the server's span was of kind SERVER, the calls of kind CLIENT", flush=True)


def check_a_shared_call(demo, relay, phoenix):
    """More requests at once than there are turns: those that wait travel together, each in the trace of its own caller."""
    stub = licensing_pb2_grpc.LicensingServiceStub(grpc.insecure_channel(demo.gateway, [("grpc.enable_http_proxy", 0)]))
    callers = [(secrets.token_hex(16), secrets.token_hex(8)) for _ in range(16)]

    def call(caller):
        trace_id, span_id = caller
        request = licensing_pb2.UnassignLicensesRequest(services=["advanced_ap"], reason="trace demo")
        request.include_customers.customer_ids.append(CUSTOMER)
        began = time.time_ns()
        stub.UnassignLicenses(request, timeout=30, metadata=[("traceparent", f"00-{trace_id}-{span_id}-01")])
        relay.export(span_of_a_caller("a caller among many", trace_id, span_id, began, time.time_ns()))

    with futures.ThreadPoolExecutor(len(callers)) as pool:
        list(pool.map(call, callers))

    ours = {trace_id for trace_id, _ in callers}

    def complete():
        spans = [span for span in relay.spans() if span.trace_id.hex() in ours]
        rpcs = [span for span in spans if span.name == RPC]
        calls = [span for span in spans if span.name == DELETE]
        members = sum(1 + len(span.links) for span in calls)
        return (rpcs, calls) if len(rpcs) == len(callers) and members == len(callers) else None

    rpcs, calls = wait_for("every request and its call", complete)
    shared = max(calls, key=lambda span: len(span.links))
    assert shared.links, "no call was shared"
    by_id = {span.span_id: span for span in rpcs}
    assert shared.parent_span_id in by_id, "the call is in the trace of one of them"
    for link in shared.links:
        member = by_id[link.span_id]
        assert member.trace_id == link.trace_id and member.trace_id != shared.trace_id
        assert any(back.span_id == shared.span_id for back in member.links), "and back"
    for trace_id, span_id in callers:
        wait_for(
            f"the caller's span and the server's of {trace_id}",
            lambda: {(span["name"], span["parent_id"]) for span in phoenix.trace(trace_id)}
            >= {("a caller among many", None), (RPC, span_id)},
        )
    print(f"ok: {len(callers)} requests made {len(calls)} calls; one is linked with {len(shared.links)} others, and back", flush=True)


class Phoenix:
    """`phoenix serve` with an empty store, on ports that were free a moment ago: it cannot choose them itself."""

    def __init__(self, program, folder):
        self.log = []
        self.web, self.collector = (f"127.0.0.1:{free_port()}" for _ in range(2))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PHOENIX_"))}
        environment |= {
            "PHOENIX_WORKING_DIR": folder,
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": self.web.split(":")[1],
            "PHOENIX_GRPC_PORT": self.collector.split(":")[1],
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        self.process = start([str(program), "serve"], environment, self.log.append)
        wait_for("Phoenix answers", self.is_up, within=180)

    def is_up(self):
        assert self.process.poll() is None, "Phoenix is gone:\n" + "\n".join(self.log)
        try:
            return DIRECT.open(f"http://{self.web}/healthz", timeout=5).status == 200
        except OSError:
            return False

    def get(self, path, **parameters):
        url = f"http://{self.web}/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.load(DIRECT.open(url, timeout=30))["data"]

    def trace(self, trace_id):
        return self.get("projects/default/spans", trace_id=trace_id, limit=1000)

    def page_of(self, trace_id):
        (project,) = [project for project in self.get("projects") if project["name"] == "default"]
        # With the server's span chosen: its attributes are shown.
        (server,) = [span for span in self.trace(trace_id) if span["name"] == RPC]
        return f"http://{self.web}/projects/{project['id']}/traces/{trace_id}?selectedSpanNodeId={server['id']}"

    def stop(self):
        self.process.kill()
        self.process.wait()


class Relay:
    """Takes what is exported, remembers it, and hands it on."""

    def __init__(self, target):
        self.received, self.lock = [], threading.Lock()
        channel = grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)])
        self.forward = channel.unary_unary(EXPORT)
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        handler = grpc.unary_unary_rpc_method_handler(self.take)
        service, method = EXPORT.strip("/").split("/")
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        self.endpoint = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def take(self, message, context):
        answer = self.forward(message, timeout=10)
        with self.lock:
            self.received.append(collector.ExportTraceServiceRequest.FromString(message))
        return answer

    def export(self, span):
        """A span of this script's own."""
        request = collector.ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        name = resource.resource.attributes.add(key="service.name")
        name.value.string_value = "off-boarding"
        resource.scope_spans.add().spans.append(span)
        self.take(request.SerializeToString(), None)

    def spans(self):
        with self.lock:
            return [
                span
                for request in self.received
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]

    def stop(self):
        self.server.stop(None)


class Demo:
    """`license-gateway-demo demo`, which goes on serving after its story."""

    def __init__(self, binary, endpoint):
        self.said = []
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LICENSE_"))}
        environment |= {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        self.process = start([str(binary), "demo"], environment, self.said.append)
        self.gateway = self.line(r"gateway +(\S+) \(gRPC\)")[1]
        traceparent = self.line(r"traceparent +00-(\w{32})-(\w{16})-01")
        self.trace_id, self.caller_id = traceparent[1], traceparent[2]
        self.line("8. Your turn")

    def line(self, pattern):
        return wait_for(
            f"the demo says {pattern}",
            lambda: next((found for line in list(self.said) if (found := re.search(pattern, line))), None),
        )

    def stop(self):
        self.process.kill()
        self.process.wait()


def span_of_a_caller(name, trace_id, span_id, began, ended):
    return trace_pb2.Span(
        trace_id=bytes.fromhex(trace_id),
        span_id=bytes.fromhex(span_id),
        name=name,
        kind=Kind.SPAN_KIND_CLIENT,
        start_time_unix_nano=began,
        end_time_unix_nano=ended,
    )


def start(command, environment, on_line):
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def read():
        for line in process.stdout:
            on_line(line.rstrip())

    threading.Thread(target=read, daemon=True).start()
    return process


def wait_for(what, look, within=60):
    """Looks until there is something, and gives it."""
    deadline = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.1)
    return found


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def screenshot(browser, page, picture):
    picture.unlink(missing_ok=True)
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1500,900",
            "--virtual-time-budget=30000", f"--screenshot={picture.resolve()}", page,
        ],
        check=True, timeout=180, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"{picture}: {picture.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
