"""What the chart renders, run for real: `unshare --net --mount python stories.py BINARY`. Prints a line for each story.

`check.py` calls it; pods without a cluster are made by pod.py.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from rendering import ROOT, VALUES_FILES, ci, template

sys.path.insert(0, str(ROOT / "tests" / "foreign"))
from run import generate_stubs  # noqa: E402

generate_stubs()
from pod import HERE, Central, Node, own_namespace  # noqa: E402
from python_client import GrpcioClient  # noqa: E402

from objects import said_on_install  # noqa: E402
from operations import commands_of_the_document  # noqa: E402
from surroundings import Redis, make_certificates, plausible_secrets  # noqa: E402

ALPINE_HOTELS = "267958b55d5a463e94a302c20f4a6b68"
REQUEST = {"includeCustomers": {"customerIds": [ALPINE_HOTELS]}, "services": ["advanced_ap"], "reason": "chart"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("words", nargs="*", metavar="WORD")
    arguments = parser.parse_args()
    own_namespace()
    failed = False
    for story in STORIES:
        name = story.__name__.replace("_", " ")
        if arguments.words and not any(word in name for word in arguments.words):
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="license-gateway-", ignore_cleanup_errors=True) as folder:
            try:
                told = story(pathlib.Path(folder), arguments.binary.resolve())
            except Exception:
                failed, told = True, "FAILED\n" + traceback.format_exc()
        print(f"{name}\t{time.monotonic() - began:.1f}\t{told}", flush=True)
    # Not sys.exit: a client library's thread that hangs must not keep us.
    os._exit(1 if failed else 0)


# ---- one value, and everything works ----


def a_release_with_the_sandbox_works(folder, binary):
    """From `helm install --set sandbox.enabled=true` to the end of the pod."""
    rendered = template(ci("sandbox"))
    with Node(folder, binary, rendered) as node:
        sandbox = node.deployment("license-gateway-sandbox").start()
        sandbox.wait_for("the sandbox is ready", lambda: sandbox.probe("readinessProbe"))
        credentials_are_the_sandboxs(rendered, Central(f"{HERE}:8085"))
        gateway = node.deployment("license-gateway")
        checked = gateway.exec("check-config")
        assert checked.returncode == 0, checked.stderr
        gateway.start().becomes_ready()
        gateway.is_confined()
        helm_test_passes(node, rendered)
        first_call_of_the_notes(gateway)

        central, client = Central(f"{HERE}:8085"), GrpcioClient(f"{HERE}:50051", None)
        answer = client.unassign(REQUEST, timeout=20)
        assert answer.code == "OK", answer
        small, large = growth_of_the_trail(gateway, client)
        policy_is_followed(gateway, client)
        lost_tokens_come_back(node, gateway, client)
        client.close()
        gateway = a_new_pod_begins_anew(node, gateway)
        client = GrpcioClient(f"{HERE}:50051", None)
        took = drains_within_the_grace_period(gateway, client, central)
        client.close()
    return (
        f"confined as uid {gateway.uid}; probes, helm test, NOTES, a call by grpcio, read_only without a restart, end after"
        f" {took:.1f} s; audit trail: {small} bytes for an operation on one customer, {large} on 1,000"
    )


def credentials_are_the_sandboxs(rendered, central):
    """What the chart gives the gateway is what a fresh sandbox knows: or it would begin with a login."""
    known, given = central.credentials(), rendered.one("Secret")["stringData"]
    for name in ("client_secret", "refresh_token"):
        assert given[name] == known[name], name
    assert rendered.settings()["credentials"]["client_id"] == known["client_id"]


def helm_test_passes(node, rendered):
    spec = rendered.one("Pod")["spec"]
    test = node.pod(spec, "helm-test")
    asked = test.exec(*test.container["args"])
    assert (asked.returncode, asked.stdout.strip()) == (0, "SERVING"), asked


def first_call_of_the_notes(gateway):
    """The commands of NOTES, as they stand there: port-forward leads here anyway."""
    notes = said_on_install(ci("sandbox"))
    commands = [line.split() for line in notes.splitlines() if line.startswith("  license-gateway ")]
    commands += [line.split(" -- /")[1].split() for line in notes.splitlines() if "exec" in line and "<" not in line]
    assert len(commands) == 3, notes
    for command in commands:
        done = gateway.exec(*command[1:])
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def growth_of_the_trail(gateway, client):
    """For docs/operations.md, "Capacity". A thousand of whom Central knows none: refused, and recorded all the same."""

    def size():
        return sum(file.stat().st_size for file in (gateway.data / "audit").glob("*.jsonl"))

    sizes = [size()]
    for customers in ([ALPINE_HOTELS], [f"{number:032x}" for number in range(1000)]):
        client.unassign(REQUEST | {"includeCustomers": {"customerIds": customers}}, timeout=20)
        sizes.append(size())
    small, large = sizes[1] - sizes[0], sizes[2] - sizes[1]
    said = f"{small / 1000:.1f} KB for an operation on one customer, {large / 1000:.0f} KB for one on 1,000"
    assert said in (ROOT / "docs" / "operations.md").read_text(), f"measured: {said}"
    return small, large


def policy_is_followed(gateway, client):
    gateway.update_config(template(ci("sandbox"), config={"read_only": True}))
    gateway.wait_for("read_only holds", lambda: client.unassign(REQUEST, timeout=20).code == "PERMISSION_DENIED")
    gateway.update_config(template(ci("sandbox")))
    gateway.wait_for("it holds no longer", lambda: client.unassign(REQUEST, timeout=20).code == "OK")


def lost_tokens_come_back(node, gateway, client):
    """The sandbox's pod is replaced, and remembers no token: the gateway logs in. Both are then no worse than before."""
    node.pods[0].kill()
    sandbox = node.deployment("license-gateway-sandbox").start()
    sandbox.wait_for("the sandbox is ready", lambda: sandbox.probe("readinessProbe"))
    gateway.wait_for("the gateway has logged in", lambda: client.unassign(REQUEST, timeout=20).code == "OK", within=60)


def a_new_pod_begins_anew(node, gateway):
    """Its emptyDir is empty and the seed is spent: it logs in as well."""
    gateway.terminate()
    again = node.deployment("license-gateway").start()
    again.becomes_ready(within=60)
    return again


def drains_within_the_grace_period(gateway, client, central):
    """A request is on its way when the pod is told to stop: it gets its answer, and the process ends in time."""
    central.forget_calls()
    central.holds("told-to-stop")
    answers = []
    caller = threading.Thread(target=lambda: answers.append(client.unassign(REQUEST, timeout=30)))
    caller.start()
    central.has_seen_an_unassignment()
    ender = threading.Thread(target=lambda: answers.append(gateway.terminate()))
    ender.start()
    gateway.wait_for("it is not ready any more", lambda: not gateway.probe("readinessProbe"))
    central.releases("told-to-stop")
    caller.join()
    ender.join()
    assert len(answers) == 2, "the pod did not end as it should"
    took = next(answer for answer in answers if isinstance(answer, float))
    answer = next(answer for answer in answers if not isinstance(answer, float))
    assert answer.code == "OK", f"it was on its way: {answer}"
    return took


# ---- as it is installed for an account ----


def one_gateway_with_certificates_keeps_its_tokens(folder, binary):
    """The values of docs/operations.md, with the sandbox at Central's address; the document's commands; a new pod."""
    values = {
        "config": {
            "central": {"cluster": "", "base_url": "http://central:8085", "allow_plaintext": True},
            "credentials": {"client_id": "SandboxClientIdNumberOne00000001"},
        },
        "networkPolicy": {"enabled": False},
    }
    rendered = template(ci("one-gateway"), **values)
    trial = template(ci("sandbox"))
    toy = trial.one("Secret", "license-gateway-sandbox-credentials")["stringData"]
    certificates = make_certificates(folder / "certificates")
    central_secret = {"client_secret": toy["client_secret"]}
    secrets = {
        "license-gateway-central": central_secret,
        "license-gateway-tls": {
            "tls.crt": certificates["server.crt"],
            "tls.key": certificates["server.key"],
            "ca.crt": certificates["ca.crt"],
        },
        "license-gateway-callers-ca": {"ca.crt": certificates["ca.crt"]},
    }
    with Node(folder, binary, rendered, secrets) as node:
        node.names = lambda names=list(node.names()): [*names, "central"]
        sandbox = node.pod(
            trial.one("Deployment", "license-gateway-sandbox")["spec"]["template"]["spec"], "central"
        ).start()
        sandbox.wait_for("the sandbox is ready", lambda: sandbox.probe("readinessProbe"))
        claim = folder / "claim"
        gateway = node.deployment("license-gateway", data=claim).start()
        # Without a seed it is alive, and not ready.
        gateway.wait_for("it is alive", lambda: gateway.probe("startupProbe") and gateway.probe("livenessProbe"))
        assert not gateway.probe("readinessProbe"), "nobody has seeded it"
        ran = 0
        for command, given in commands_of_the_document():
            done = gateway.exec(*command, given=Central(f"{HERE}:8085").another_refresh_token() if given else None)
            # The one question that a gateway without a seed answers with 1.
            assert done.returncode == 0 or (ran == 0 and command == ["token", "status"]), f"{command}: {done}"
            ran += 1
        assert ran >= 5, "the document's commands are not found"
        gateway.becomes_ready()
        assert not (
            gateway.home / "volumes" / "secrets" / "seed"
        ).exists(), "the seed is optional, and here there is none"
        helm_test_passes(node, rendered)
        calls_by_certificate(gateway, certificates, folder)
        gateway.terminate()
        # The next pod has the same volume and no seed: what the first one stored is enough.
        again = node.deployment("license-gateway", data=claim).start()
        again.becomes_ready()
        verified = again.exec("audit", "verify")
        assert verified.returncode == 0, verified
        took = again.terminate()
    return f"mutual TLS, {ran} commands of docs/operations.md, a second pod on the same volume; end after {took:.1f} s"


# ---- several ----


def two_gateways_share_their_tokens(folder, binary):
    """A rolling update as the chart asks for it: two pods at once on one Redis, with one seed between them."""
    rendered = template(
        ci("sandbox"),
        replicaCount=2,
        config={
            "token_store": {"kind": "redis", "url": "redis://redis:6379", "key": "try:token"},
            "audit": {"path": "stdout"},
        },
        secrets={"redis": {"existingSecret": "redis"}},
    )
    assert rendered.deployment()["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    password = "a password of this test"
    with Node(folder, binary, rendered, {"redis": {"password": password}}) as node, Redis(folder, password):
        node.names = lambda names=list(node.names()): [*names, "redis"]
        sandbox = node.deployment("license-gateway-sandbox").start()
        sandbox.wait_for("the sandbox is ready", lambda: sandbox.probe("readinessProbe"))
        old = node.deployment("license-gateway").start()
        old.becomes_ready()
        # Both have this machine's one address here, so the other one gets another port: the pods' own would do in a cluster.
        new = node.deployment("license-gateway")
        new.container["env"] = [
            *new.container["env"],
            {"name": "LICENSE_GATEWAY__SERVER__LISTEN", "value": f"{HERE}:50052"},
            {"name": "LICENSE_GATEWAY__ADMIN__LISTEN", "value": f"{HERE}:9465"},
        ]
        new.start()
        clients = [GrpcioClient(f"{HERE}:{port}", None) for port in (50051, 50052)]
        for client in clients:
            old.wait_for("it serves", lambda client=client: client.unassign(REQUEST, timeout=20).code == "OK")
        old.terminate()
        assert clients[1].unassign(REQUEST, timeout=20).code == "OK", "the other one goes on"
        exchanges = Central(f"{HERE}:8085").token_exchanges()
        assert exchanges == 1, f"{exchanges} exchanges: one seed, presented once"
        records = [line for line in old.said() if '"type":"OUTCOME"' in line]
        assert records, "the audit trail is on standard output"
        new.terminate()
        for client in clients:
            client.close()
    return "two pods on one Redis with a password, audit on stdout, one exchange of tokens for both"


def calls_by_certificate(gateway, certificates, folder):
    """By the command for people: the caller that the policy knows may, another one may not."""
    for who, expected in (("offboarding", 0), ("dashboard", 2)):
        for name in ("ca.crt", f"{who}.crt", f"{who}.key"):
            # The machine of a caller, for once inside the gateway's own file system: its volume.
            (gateway.data / name).write_text(certificates[name])
            os.chown(gateway.data / name, gateway.uid, gateway.fs_group)
        at = "/var/lib/license-gateway"
        done = gateway.exec(
            "unassign",
            "--address",
            "https://localhost:50051",
            "--ca-file",
            f"{at}/ca.crt",
            "--cert-file",
            f"{at}/{who}.crt",
            "--key-file",
            f"{at}/{who}.key",
            "--include",
            ALPINE_HOTELS,
            "--service",
            "advanced_ap",
            "--reason",
            "chart",
        )
        assert done.returncode == expected, f"{who}: {done}"


# ---- every values file ----


def every_values_file_is_a_configuration(folder, binary):
    """`check-config` in the pod of each, with secrets of the kind that its keys ask for."""
    listed = subprocess.run([binary, "check-config", "--list"], capture_output=True, text=True, check=True).stdout
    certificates = make_certificates(folder / "certificates")
    checked, ahead = 0, []
    for number, file in enumerate(VALUES_FILES):
        rendered = template(file)
        if "jwt" in rendered.settings() and "jwt." not in listed:
            ahead.append(file.name)
            continue
        place = folder / str(number)
        place.mkdir()
        with Node(place, binary, rendered, plausible_secrets(rendered, certificates)) as node:
            pod = node.pod(rendered.pod(), "gateway")
            done = pod.exec("check-config")
            if rendered.settings().get("token_store", {}).get("kind") == "kubernetes":
                # There is no API server here: the one thing that a start would refuse.
                refused = done.returncode == 64 and "cannot find its cluster" in done.stderr
                assert refused and len(done.stderr.strip().splitlines()) == 2, f"{file.name}: {done.stdout}{done.stderr}"
                checked += 1
                continue
            assert done.returncode == 0, f"{file.name}: {done.stdout}{done.stderr}"
            # It looks at what it is told to look at.
            broken = rendered.settings()["central"]
            assert str(broken.get("base_url") or broken["cluster"]) in done.stdout, done.stdout
        checked += 1
    told = f"{checked} values files"
    if ahead:
        told += f"; NOT CHECKED: {', '.join(ahead)}, because this binary has no section jwt"
    return told


STORIES = [
    every_values_file_is_a_configuration,
    a_release_with_the_sandbox_works,
    one_gateway_with_certificates_keeps_its_tokens,
    two_gateways_share_their_tokens,
]

if __name__ == "__main__":
    main()
