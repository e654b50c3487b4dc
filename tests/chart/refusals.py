"""Values that must be refused: refused/*.yaml by the chart's own words, one at a time; misspelt ones by its schema.

A file's first lines say what it is laid over (a values file of the chart's ci/, or nothing) and which sentences helm must
answer with, each of them once and no other.
"""

import concurrent.futures
import copy
import json
import re

import yaml

from rendering import CHART, HERE, ci, refusal, template


def every_file_is_refused_in_its_words():
    files = sorted((HERE / "refused").glob("*.yaml"))
    assert len(files) >= 15, "the files are not where they were"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(refused, files))
    failures = [failure for failure, _ in answers if failure]
    assert not failures, "\n".join(failures)
    heard = [problem for _, problems in answers for problem in problems]
    unheard = [words for words in words_of_the_chart() if not any(words.fullmatch(problem) for problem in heard)]
    assert not unheard, f"the chart can refuse so, and no file shows it: {unheard}"
    return f"{len(files)} files refused, each in its own words: all that the chart has"


def words_of_the_chart():
    """Every sentence of the template, as a pattern of what it says."""
    template_text = (CHART / "templates" / "_refusals.tpl").read_text()
    sentences = re.findall(r'append \$problems \(?(?:printf )?"((?:[^"\\]|\\.)*)"', template_text)
    assert len(sentences) == template_text.count("append $problems"), "a sentence that is not read here"
    for sentence in sentences:
        yield re.compile(re.sub(r"%[sd]", ".*", re.escape(sentence.replace('\\"', '"'))))


def refused(file):
    """What is wrong with how helm answers this file, or nothing; and what helm said."""
    base, sentences = "nothing", []
    for line in file.read_text().splitlines():
        if line.startswith("# over: "):
            base = line.removeprefix("# over: ")
        if line.startswith("# refused: "):
            sentences.append(line.removeprefix("# refused: "))
    assert sentences, f"{file.name} does not say which words are expected"
    try:
        said = refusal(*([] if base == "nothing" else [ci(base)]), file)
    except AssertionError as taken:
        return str(taken), []
    _, marker, problems = said.rpartition("license-gateway refuses these values: ")
    if not marker:
        return f"{file.name}: refused by something else: {said}", []
    problems = problems.partition(" Use --debug flag")[0].removeprefix("- ").split(" - ")
    missing = [sentence for sentence in sentences if not any(sentence in problem for problem in problems)]
    if missing or len(problems) != len(sentences):
        return f"{file.name}: expected {sentences}, and helm said {problems}", problems
    return None, problems


def unknown_keys_are_refused_everywhere():
    """A key that nobody knows, in every object of the values and in an entry of every list that has known keys."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    caller = {"identity": "a", "rpcs": ["ListServices"]}
    places = list(objects_of_ours(values, schema["properties"]))
    assert ("config", "central") in places and ("secrets", "jwt") in places, "the objects are not found"
    probes = [nested(place, {"surplus": 1}) for place in [(), *places]]
    probes += [
        {"config": {"callers": [caller | {"surplus": 1}]}},
        {"imagePullSecrets": [{"name": "x", "surplus": 1}]},
        {"extraEnv": [{"name": "X", "value": "y", "surplus": 1}]},
        {"resources": {"surplus": {}}},
        {"telemetry": {"env": {"surplus": "1"}}},
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for probe, said in zip(
            probes, pool.map(lambda probe: refusal(ci("one-gateway"), **probe), probes), strict=True
        ):
            assert "surplus" in said and "schema" in said, f"{probe}: {said}"
    return f"{len(probes)} places, an unknown key in each"


def objects_of_ours(values, schema, path=()):
    """The objects whose keys the chart knows: not labels and the like, nor what is Kubernetes' own."""
    for key, value in values.items():
        if isinstance(value, dict) and schema[key].get("additionalProperties") is False and "properties" in schema[key]:
            yield (*path, key)
            yield from objects_of_ours(value, schema[key]["properties"], (*path, key))


def nested(path, value):
    for key in reversed(path):
        value = {key: value}
    return copy.deepcopy(value)


# Where the schema knows better than to let the cluster or the gateway find out.
BAD_VALUES = [
    ({"replicaCount": "2"}, "replicaCount"),
    ({"replicaCount": 1.5}, "replicaCount"),
    ({"replicaCount": 101}, "replicaCount"),
    ({"podSecurityContext": {"runAsUser": 0}}, "runAsUser"),
    ({"config": {"central": {"cluster": "us-99"}}}, "cluster"),
    ({"config": {"central": {"base_url": "https://central.example.com/path"}}}, "base_url"),
    ({"config": {"central": {"timeout": "30"}}}, "timeout"),
    ({"config": {"central": {"timeout": 30}}}, "timeout"),
    ({"config": {"central": {"max_in_flight": 0}}}, "max_in_flight"),
    ({"config": {"quota": {"replicas": 2}}}, "replicas"),
    ({"config": {"audit": {"path": "/tmp"}}}, "path"),
    ({"config": {"log": {"filter": "loud"}}}, "filter"),
    ({"config": {"token_store": {"kind": "memory"}}}, "kind"),
    ({"config": {"credentials": {"client_secret": "no secret belongs here"}}}, "client_secret"),
    ({"config": {"callers": [{"identity": "*", "rpcs": ["ListServices"]}]}}, "identity"),
    ({"config": {"callers": [{"identity": "a", "rpcs": []}]}}, "rpcs"),
    ({"config": {"callers": [{"identity": "a", "rpcs": ["Everything"]}]}}, "rpcs"),
    (
        {
            "config": {
                "callers": [{"identity": "a", "rpcs": ["UnassignLicenses"], "scopes": ["include"], "services": "*"}]
            }
        },
        "customers",
    ),
    ({"config": {"callers": [{"identity": "a", "rpcs": ["ListServices"], "services": "advanced_ap"}]}}, "services"),
    ({"config": {"jwt": {"algorithms": "HS256"}}}, "algorithms"),
    ({"config": {"jwt": {"jwks_url": "http://issuer.example.com/keys"}}}, "jwks_url"),
    ({"image": {"digest": "sha256:short"}}, "digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"service": {"type": "ExternalName"}}, "type"),
    ({"service": {"port": 70000}}, "port"),
    ({"persistence": {"size": "2 GB"}}, "size"),
    ({"networkPolicy": {"centralCidrs": []}}, "centralCidrs"),
    ({"grpcRoute": {"methods": ["AssignLicenses"]}}, "methods"),
    ({"telemetry": {"env": {"OTEL_BSP_MAX_QUEUE_SIZE": 10}}}, "OTEL_BSP_MAX_QUEUE_SIZE"),
    ({"config": None}, "config"),
]


def bad_values_are_refused_by_name():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda bad: refusal(ci("one-gateway"), **bad[0]), BAD_VALUES)
        for (values, name), said in zip(BAD_VALUES, answers, strict=True):
            assert "schema" in said and name in said, f"{values}: {said}"
    # The other half of that: the file they are laid over is taken.
    template(ci("one-gateway"))
    return f"{len(BAD_VALUES)} bad values, each refused by its name"


CHECKS = [
    ("refusals in words", every_file_is_refused_in_its_words),
    ("unknown keys", unknown_keys_are_refused_everywhere),
    ("bad values", bad_values_are_refused_by_name),
]
