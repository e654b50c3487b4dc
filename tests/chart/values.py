"""values.yaml, its schema, its README and the gateway's own list of settings say the same."""

import json
import re
import subprocess

import yaml

from rendering import CHART, HERE, ROOT, TOOLS, VALUES_FILES, tool

# Settings that follow from other values, and where from: nobody writes them into `config`.
FOLLOWS = {
    "server.listen": "ports are the chart's",
    "admin.listen": "ports are the chart's",
    "tls.certificate_file": "secrets.tls",
    "tls.key_file": "secrets.tls",
    "tls.client_ca_file": "secrets.clientCa",
    "central.ca_file": "secrets.centralCa",
    "credentials.client_secret_file": "secrets.credentials",
    "credentials.refresh_token_file": "secrets.seed",
    "credentials.password_file": "secrets.credentials",
    "token_store.path": "persistence",
    "token_store.password_file": "secrets.redis",
    "token_store.ca_file": "secrets.redis",
    "token_store.client_certificate_file": "secrets.redis",
    "token_store.client_key_file": "secrets.redis",
    "quota.replicas": "replicaCount, autoscaling",
    "jwt.jwks_file": "secrets.jwt",
    "jwt.ca_file": "secrets.jwt",
    "jwt.token_file": "secrets.jwt",
}
# Where the chart's default is not the gateway's, on purpose.
OTHER_DEFAULT = {
    "audit.path": "an absolute path, on the volume",
    "token_store.key": "empty: the gateway's; with another kind it must not be set",
    "token_store.name": "empty: after the release; with another kind it must not be set",
    "jwt.algorithms": "empty: the gateway's; without an issuer it must not be set",
    "jwt.refresh_interval": "empty: the gateway's; without a URL it must not be set",
}


def every_setting_is_a_value(binary):
    settings = dict(listed(binary))
    assert len(settings) > 40, "the list is not read as it is printed"
    values = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    schema = json.loads((CHART / "values.schema.json").read_text())
    ours = dict(scalars(values))
    known = settings.keys() - FOLLOWS.keys()
    missing = known - ours.keys()
    assert not missing, f"the gateway has {sorted(missing)}, and neither `config` nor FOLLOWS does"
    has_jwt = any(name.startswith("jwt.") for name in settings)
    surplus = {name for name in ours.keys() - settings.keys() if has_jwt or not name.startswith("jwt.")}
    assert not surplus, f"the gateway does not know {sorted(surplus)}"
    gone = {name for name in FOLLOWS.keys() - settings.keys() if has_jwt or not name.startswith("jwt.")}
    assert not gone, f"the gateway does not know {sorted(gone)}"
    for name in sorted(known & ours.keys()):
        default, allowed = settings[name]
        if name not in OTHER_DEFAULT:
            said = ours[name]
            said = json.dumps(said) if isinstance(said, (bool, int)) else said
            assert said == (default or ""), f"{name}: the chart says {said!r} and the gateway {default!r}"
        holds_to_the_bounds(name, allowed, schema)
    return f"{len(known & ours.keys())} settings, {len(FOLLOWS) - (0 if has_jwt else 3)} follow from other values"


def listed(binary):
    """Each setting of the gateway: its default, if it has one, and what it allows."""
    text = subprocess.run([binary, "check-config", "--list"], capture_output=True, text=True, check=True).stdout
    for block in text.strip().split("\n\n"):
        name, _, rest = block.partition(" ")
        default = re.match(r"\s*\(default (.*?)\)\n", rest)
        allowed = re.search(r"^ *Allowed: (.*)$", block, re.M)
        if allowed:  # the last block is a remark
            yield name, (default[1] if default else None, allowed[1])


def scalars(values, path=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{path}{key}.")
        elif not isinstance(value, list):
            yield f"{path}{key}", value


def holds_to_the_bounds(name, allowed, schema):
    """What the gateway would refuse at its start, helm refuses before."""
    place = schema["properties"]["config"]
    for key in name.split("."):
        place = place["properties"][key]
    numbers = re.fullmatch(r"(\d+) to (\d+)", allowed)
    lengths = re.fullmatch(r"(\d+m?s|\d+[mh]) to (\d+m?s|\d+[mh])", allowed)
    words = allowed.split(", ")
    if numbers:
        assert (place["minimum"], place["maximum"]) == tuple(map(int, numbers.groups())), f"{name}: {allowed}"
    elif allowed == "true, false":
        assert place["type"] == "boolean", name
    elif lengths:
        refusals = (CHART / "templates" / "_refusals.tpl").read_text()
        bound = rf'\(list "config\.{re.escape(name)}" \S.*\S "{lengths[1]}" "{lengths[2]}"\)'
        assert re.search(bound, refusals), f"{name}: {allowed}"
    elif len(words) > 1 and all(re.fullmatch(r"[a-z0-9-]+", word) for word in words):
        assert set(place["enum"]) - {""} == set(words), f"{name}: {allowed}"


def values_and_schema_have_the_same_keys():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    compared = 0

    def compare(value, place, path):
        nonlocal compared
        if not isinstance(value, dict) or "properties" not in place:
            return
        keys = place["properties"].keys() - ({"global"} if not path else set())
        assert keys == value.keys(), f"{path or 'the top'}: {keys ^ value.keys()} stand in one of both"
        assert place["additionalProperties"] is False, path
        needed = {
            key for key, below in value.items() if isinstance(below, dict) and "properties" in place["properties"][key]
        }
        assert needed == set(place.get("required", [])), f"{path}: the templates look into {needed}"
        compared += len(keys)
        for key, below in value.items():
            compare(below, place["properties"][key], f"{path}.{key}".strip("."))

    compare(values, schema, "")
    tool(
        "check-jsonschema",
        "--check-metaschema",
        CHART / "values.schema.json",
        *sorted((HERE / "schemas").glob("*.json")),
    )
    return f"{compared} keys"


def readme_says_what_the_values_say():
    done = subprocess.run(
        [TOOLS / "python", ROOT / "scripts" / "chart-readme", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return "every value with its comment"


def yaml_is_tidy():
    files = [CHART / "Chart.yaml", CHART / "values.yaml", *VALUES_FILES, *sorted((HERE / "refused").glob("*.yaml"))]
    tool("yamllint", "--strict", "--config-file", HERE / "yamllint.yaml", *files)
    return f"{len(files)} files"


CHECKS = [
    (function.__name__.replace("_", " "), function)
    for function in (
        values_and_schema_have_the_same_keys,
        readme_says_what_the_values_say,
        yaml_is_tidy,
    )
]
CHECKS_OF_THE_BINARY = [("every setting is a value", every_setting_is_a_value)]
