"""docs/operations.md: what it tells people to type is what works.

Its values are those of the chart's ci/; every helm command has flags that helm knows and, where it installs, is rendered; the
Secrets that it makes are those that the pod mounts; objects that it names are there. What it runs in the pod is run in the pod
by stories.py.
"""

import functools
import re
import shlex
import subprocess
import tempfile

import yaml

from rendering import CHART, HELM, ROOT, ci, template

DOCUMENT = ROOT / "docs" / "operations.md"
NAMES = {"one-gateway": "my-values.yaml", "two-gateways": "two-values.yaml"}


def commands():
    """Every line of its shell blocks, as words."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", DOCUMENT.read_text(), re.M | re.S)
    found = [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]
    assert len(found) > 20, "the commands are not found"
    return found


def commands_of_the_document():
    """What is run in the pod: its arguments, and whether a token is given to it. The first ones come in order."""
    for words in commands():
        if words[:1] == ["kubectl"] and "exec" in words:
            inside = words[words.index("--") + 1 :]
            assert inside[0] == "/license-gateway", inside
            given = "<" in inside
            yield [
                word
                for word in inside[1:]
                if not word.startswith((">", "<")) and not word.endswith((".json", ".jsonl"))
            ], given


def its_values_are_the_tested_ones():
    text = DOCUMENT.read_text()
    found = re.findall(r"<!-- values: ([\w-]+) -->\n```yaml\n(.*?)```", text, re.S)
    assert {name for name, _ in found} == NAMES.keys()
    assert len(found) == text.count("```yaml"), "a values file that nobody checks"
    for name, block in found:
        assert yaml.safe_load(block) == yaml.safe_load(ci(name).read_text()), f"{name}: not what is in ci/"
    return "as in ci/"


@functools.cache
def flags(*command):
    """The flags that helm knows for this command."""
    helped = subprocess.run([str(HELM), *command, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(?:^|\s)(--[a-z-]+)", helped))


def its_helm_commands_work():
    rendered, seen = 0, 0
    for words in commands():
        if words[0] != "helm":
            continue
        seen += 1
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= flags(words[1]), f"helm {words[1]} knows no {used - flags(words[1])}"
        if words[1] in ("install", "upgrade"):
            release, chart = words[2:4]
            assert (ROOT / chart).resolve() == CHART, chart
            render_as_said(release, words[4:])
            rendered += 1
    assert rendered >= 5
    return f"{seen} commands, {rendered} of them rendered"


def render_as_said(release, words):
    """The same files and values, without a cluster."""
    with tempfile.TemporaryDirectory() as folder:
        arguments, rest = [], iter(words)
        for word in rest:
            if word == "--values":
                file = next(rest)
                name = next(name for name, known in NAMES.items() if known == file)
                arguments += ["--values", str(ci(name))]
            elif word == "--set":
                arguments += ["--set", next(rest)]
            elif word in ("--namespace", "--timeout"):
                next(rest)
        return template(release=release, more=arguments)


def its_secrets_are_what_the_pod_mounts():
    made = {}
    for words in commands():
        if words[0] == "kubectl" and "create" in words and words[words.index("create") + 1] in ("secret", "configmap"):
            at = words.index("create")
            name = words[at + 3] if words[at + 1] == "secret" else words[at + 2]
            made[name] = {word.split("=")[1] for word in words if word.startswith("--from-file=")}
    needed = {}
    other = render_as_said(
        "license-gateway-eu", next(words for words in commands() if "license-gateway-eu" in words[:3])[4:]
    )
    for rendered in (template(ci("one-gateway")), template(ci("two-gateways")), other):
        for volume in rendered.pod()["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                ((_, body),) = source.items()
                needed.setdefault(body["name"], set()).update(item["key"] for item in body["items"])
        for volume in rendered.one("Pod")["spec"].get("volumes", []):
            needed.setdefault(volume["secret"]["secretName"], set()).update(
                item["key"] for item in volume["secret"]["items"]
            )
    token = template(ci("two-gateways")).one("Role")["rules"][0]["resourceNames"]
    needed |= {name: set() for name in token}
    assert made == needed, f"made {made}\nneeded {needed}"
    return f"{len(made)} objects with {sum(map(len, made.values()))} keys"


def objects_that_it_names_are_there():
    kinds = {"deployment": "Deployment", "persistentvolumeclaim": "PersistentVolumeClaim", "service": "Service"}
    there = template(ci("one-gateway")).named() | template(ci("two-gateways")).named()
    seen = 0
    for words in commands():
        if words[0] != "kubectl":
            continue
        assert words[1:3] == ["--namespace", "msp"] or words[1] == "create", f"where? {words}"
        for word in words:
            kind, slash, name = word.partition("/")
            if slash and kind in kinds:
                assert (kinds[kind], name) in there, word
                seen += 1
    assert seen >= 5
    for name in re.findall(r"`(license-gateway-(?:data|headless)[\w.-]*?)`", DOCUMENT.read_text()):
        assert any(known == name for _, known in there), name
    assert "dns:///license-gateway-headless.msp.svc:50051" in DOCUMENT.read_text()
    return f"{seen} names"


def its_numbers_are_the_measured_ones():
    """The table under "Capacity" says what docs/performance.md measured, rounded. The trail's: stories.py."""
    measured = (ROOT / "docs" / "performance.md").read_text()
    text = DOCUMENT.read_text()

    def cell(row, column):
        found = re.search(rf"^\| {re.escape(row)} \|(.*)\|$", measured, re.M)
        assert found, f"docs/performance.md has no row {row!r}"
        number = found[1].split("|")[column].split("(")[0]
        return round(float(number))

    for said, number in (
        ("{} MiB when idle", cell("memory when idle, after one request, MiB", 0)),
        ("{} with 1,000 callers at once", cell("the same services", 7)),
        ("{} ms to the first answer", cell("start to the first answer (health), ms", 0)),
        ("{} seconds for 10,000 requests that each make a call", cell("one by one, 64 callers", 3)),
    ):
        assert said.format(number) in text, f"measured: {said.format(number)}"
    peak = re.search(r"^\| memory before, peak, after, MiB \| [\d.]+, ([\d.]+),", measured, re.M)
    assert f"{round(float(peak[1]))} under ten times the load" in text, f"measured: {peak[1]}"
    return "five of docs/performance.md"


def links_lead_somewhere():
    for document in (DOCUMENT, CHART / "README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
    return "of the page and of the chart's README"


CHECKS = [
    (function.__name__.replace("_", " "), function)
    for function in (
        its_values_are_the_tested_ones,
        its_helm_commands_work,
        its_secrets_are_what_the_pod_mounts,
        objects_that_it_names_are_there,
        its_numbers_are_the_measured_ones,
        links_lead_somewhere,
    )
]
