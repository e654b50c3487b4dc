"""A real Prometheus scrapes a real gateway while things happen to it: every query of the dashboard must return data, and
every alert must evaluate. `make test-prometheus` calls it.

    check.py [--binary PATH] [--pause SECONDS] [--save FILE]

--pause stretches the story; --save writes down what the dashboard's queries returned, for `scripts/draw-dashboard`.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOREIGN = ROOT / "tests" / "foreign"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"

sys.path.insert(0, str(FOREIGN))
from run import generate_stubs  # noqa: E402

INCLUDE_DIRS = generate_stubs()

from python_client import GrpcioClient  # noqa: E402
from server import RULES, Prometheus, fetch  # noqa: E402
from story import Story  # noqa: E402
from world import Gateway, Sandbox, Tools  # noqa: E402

# What Grafana puts in place of its variables, here.
RATE_INTERVAL = "15s"
VARIABLES = {"$__rate_interval": RATE_INTERVAL, "$__interval": "5s", "$instance": ".*"}


def main():
    parser = argparse.ArgumentParser(description="The shipped views at a real Prometheus.")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "debug" / "license-gateway")
    parser.add_argument("--pause", type=float, default=1.5, help="seconds that a quiet part of the story lasts")
    parser.add_argument("--save", type=pathlib.Path, help="write what the dashboard's queries returned")
    arguments = parser.parse_args()
    tools = Tools(
        here=FOREIGN,
        binary=arguments.binary.resolve(),
        buf=None,
        node_modules=None,
        target=ROOT / "target",
        include_dirs=INCLUDE_DIRS,
    )
    promtool("rules are well-formed", "check", "rules", str(RULES))
    promtool("every alert fires and does not fire", "test", "rules", str(HERE / "rules_test.yaml"))
    with tempfile.TemporaryDirectory(prefix="license-gateway-") as folder:
        with Stage(tools, pathlib.Path(folder)) as stage:
            began = time.time()
            stage.story(arguments.pause).tell()
            ended = time.time()
            check_scrape(stage)
            check_alerts(stage.prometheus)
            data = check_dashboard(stage.prometheus, began, ended)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.write_text(json.dumps({"began": began, "ended": ended, "panels": data}))
    print("ok: the views of docs/telemetry.md, at a real Prometheus", flush=True)
    # Not sys.exit: a thread of a client library that hangs must not keep us.
    os._exit(0)


class Stage:
    """The processes. What they said is shown when something fails."""

    def __init__(self, tools, folder):
        self.folder, self.started = folder, []
        try:
            self.sandbox = self.start(FaultySandbox(tools))
            self.gateway = self.start(Gateway(tools, self.sandbox, folder, {}))
            self.admin = admin_address(self.gateway)
            self.client = LeavingClient(self.gateway.address, tools)
            self.prometheus = self.start(Prometheus(folder, self.admin))
            self.prometheus.wait_for(
                "the first scrape", lambda: self.prometheus.instant("license_gateway_token_seed_needed == 0")
            )
        except BaseException:
            self.stop()
            raise

    def start(self, process):
        self.started.append(process)
        return process

    def story(self, pause):
        seed_file = self.folder / "refresh_token"
        return Story(self.sandbox, self.gateway, self.client, self.prometheus, seed_file, pause)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.stop()
        if kind is not None:
            for process in (self.sandbox, self.gateway):
                print(*(f"{process.name}: {line}" for line in process.said), sep="\n", file=sys.stderr)
            print(*(f"prometheus: {line}" for line in self.prometheus.log[-20:]), sep="\n", file=sys.stderr)

    def stop(self):
        for process in reversed(self.started):
            process.stop()


class FaultySandbox(Sandbox):
    """With what the story needs besides."""

    def revokes(self, what):
        self._control("POST", "tokens/revoke", {"what": what})

    def recovers(self):
        self._control("DELETE", "faults")

    def loses_connection(self, times=None):
        self._fault({"times": times, "reply": "reset", "applied": True})


class LeavingClient(GrpcioClient):
    """One that can leave before the answer."""

    def leave(self, request, after):
        from central.licensing.v1 import licensing_pb2
        from google.protobuf import json_format

        message = json_format.ParseDict(request, licensing_pb2.UnassignLicensesRequest())
        call = self.licensing.UnassignLicenses.future(message, timeout=20)
        time.sleep(after)
        assert not call.done(), "it left too late"
        call.cancel()


def admin_address(gateway):
    """From the gateway's log, where it stands right after the first line."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for line in list(gateway.said):
            if '"admin listening"' in line:
                return json.loads(line)["listen"]
        time.sleep(0.01)
    raise AssertionError("the gateway did not say where its admin listener is:\n" + "\n".join(gateway.said))


def promtool(name, *arguments, stdin=None):
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        sys.exit(f"promtool {' '.join(arguments)}: exit code {done.returncode}\n{said}")
    print(f"ok: {name} (promtool {' '.join(arguments[:2])})", flush=True)
    return said


def check_scrape(stage):
    status, metrics = fetch(stage.admin, "/metrics")
    assert status == 200, status
    said = promtool("metrics are as they should be", "check", "metrics", stdin=metrics)
    assert not said, said


def check_alerts(prometheus):
    """Each one evaluates, on metrics that are there; the one whose cause is in the story fires."""
    rules = prometheus.rules()
    for rule in rules:
        assert rule["health"] == "ok" and not rule.get("lastError"), rule
        prometheus.instant(rule["query"])
        metrics = set(re.findall(r"\b(?:license_gateway|rpc_server|http_client)_\w+", rule["query"]))
        assert metrics, f"{rule['name']} is about nothing"
        for metric in metrics:
            assert prometheus.instant(f"count({metric})"), f"{rule['name']}: there is no {metric}"
    firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
    assert firing == {"LicenseGatewayOutcomeUnknown"}, firing
    print(f"ok: {len(rules)} alerts evaluate, and of an unknown outcome one is fired", flush=True)


def check_dashboard(prometheus, began, ended):
    """What every query returned, by the id of its panel."""
    dashboard = json.loads(DASHBOARD.read_text())
    found, empty, queries = {}, [], 0
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            queries += 1
            series = prometheus.over_time(filled_in(target["expr"]), began, ended, max(0.5, (ended - began) / 300))
            if not any(math.isfinite(float(value)) for line in series for _, value in line["values"]):
                empty.append(f"{panel['title']}, {target['refId']}: {target['expr']}")
            found.setdefault(str(panel["id"]), {})[target["refId"]] = series
    assert not empty, "queries without data:\n" + "\n".join(empty)

    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            queries += 1
            assert prometheus.over_time(filled_in(annotation["expr"]), began, ended, 1), annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            queries += 1
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            assert prometheus.get(f"label/{label}/values", **{"match[]": metric}), variable["name"]
    print(f"ok: {queries} queries of the dashboard return data", flush=True)
    return found


def filled_in(query):
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query, f"an unknown variable: {query}"
    return query


if __name__ == "__main__":
    main()
