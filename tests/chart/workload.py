"""What the chart makes of values in a pod, one function for each thing that it promises."""

import re

import yaml

from rendering import CHART, ROOT, VALUES_FILES, ci, selects, template

LICENSING = "central.licensing.v1.LicensingService"


def pods_are_restricted():
    """The profile "restricted" of the Pod Security Standards, and a root file system that cannot be written."""
    seen = 0
    for file in VALUES_FILES:
        for each in template(file).objects:
            pod = each["spec"] if each["kind"] == "Pod" else each.get("spec", {}).get("template", {}).get("spec")
            if not pod or "containers" not in pod:
                continue
            security = pod["securityContext"]
            assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
            assert pod["enableServiceLinks"] is False, "LICENSE_GATEWAY_PORT and the like"
            for container in pod["containers"]:
                if container["image"].startswith("registry.example.com/shipper"):
                    continue  # not ours
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, container["name"]
                assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
                seen += 1
            kinds = {next(key for key in volume if key != "name") for volume in pod.get("volumes", [])}
            assert kinds <= {"configMap", "projected", "emptyDir", "persistentVolumeClaim", "secret"}, kinds
    usual, openshift = template(ci("one-gateway")).pod(), template(ci("everything")).pod()
    ids = {key: usual["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")}
    assert set(ids.values()) == {65532}, ids
    assert openshift["securityContext"]["runAsUser"] == 1000650000
    assert "fsGroup" not in openshift["securityContext"], "the cluster chooses"
    return f"{seen} containers"


def probes_ask_what_they_should():
    plain, secure = template(ci("sandbox")).container(), template(ci("one-gateway")).container()
    assert plain["startupProbe"]["grpc"] == {"port": 50051} == plain["livenessProbe"]["grpc"]
    assert plain["readinessProbe"]["grpc"] == {"port": 50051, "service": LICENSING}
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert secure[name]["httpGet"] == {"path": path, "port": "admin"}, "the kubelet's gRPC probes speak no TLS"
        assert "grpc" not in secure[name]
    # The name is one that the gateway has.
    assert f'"{LICENSING}"' in (ROOT / "src" / "server" / "health.rs").read_text()
    return 'gRPC on "" and on the service; the admin port with TLS'


def drain_and_grace_fit():
    for file in VALUES_FILES:
        rendered = template(file)
        pod, container = rendered.pod(), rendered.container()
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = seconds(rendered.settings()["server"]["drain_timeout"])
        assert pod["terminationGracePeriodSeconds"] >= pause + drain + 35 + 5, file.name
    longest = template(
        ci("one-gateway"), config={"server": {"drain_timeout": "1m 29s 500ms"}}, termination={"gracePeriodSeconds": 135}
    )
    assert longest.pod()["terminationGracePeriodSeconds"] == 135, "5 + 90 + 35 + 5"
    assert "lifecycle" not in template(ci("one-gateway"), termination={"preStopSeconds": 0}).container()
    return "sleep, drain, an exchange of tokens and flush are shorter than the grace period"


def seconds(text):
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    return sum(int(number) * factor[unit] for number, unit in re.findall(r"(\d+)(ms|s|m|h)", text))


def volumes_outlive_what_they_must():
    one, two, trial = template(ci("one-gateway")), template(ci("two-gateways")), template(ci("sandbox"))
    data = lambda rendered: next(volume for volume in rendered.pod()["volumes"] if volume["name"] == "data")
    assert data(one)["persistentVolumeClaim"] == {"claimName": "license-gateway-data"}
    assert one.one("PersistentVolumeClaim")["metadata"]["name"] == "license-gateway-data"
    assert "emptyDir" in data(two) and not two.all("PersistentVolumeClaim")
    assert two.deployment()["spec"]["strategy"]["type"] == "RollingUpdate"
    assert "emptyDir" in data(trial) and trial.deployment()["spec"]["strategy"]["type"] == "Recreate"
    theirs = template(ci("everything"))
    assert data(theirs)["persistentVolumeClaim"] == {"claimName": "licences-state"} and not theirs.all(
        "PersistentVolumeClaim"
    )
    # A shared store with the trail in files: one gateway, on a claim.
    trail = template(ci("two-gateways"), replicaCount=1, config={"audit": {"path": "/var/lib/license-gateway/audit"}})
    assert "persistentVolumeClaim" in data(trail) and trail.deployment()["spec"]["strategy"]["type"] == "Recreate"
    for rendered in (one, two, trial, theirs):
        mounts = {mount["name"]: mount for mount in rendered.container()["volumeMounts"]}
        assert mounts["data"]["mountPath"] == "/var/lib/license-gateway" and not mounts["data"].get("readOnly")
        assert mounts["config"]["readOnly"] and mounts["secrets"]["readOnly"]
        assert not any(
            "subPath" in mount for mount in mounts.values()
        ), "a subPath never changes, and rotation would end"
        settings = rendered.settings()
        assert settings["token_store"]["path"].startswith("/var/lib/license-gateway/")
    return "a claim for what is kept in files, an emptyDir for the rest"


def secrets_come_from_existing_ones():
    rendered = template(ci("redis"))
    assert not rendered.all("Secret"), "the release owns no secret"
    sources = next(volume for volume in rendered.pod()["volumes"] if volume["name"] == "secrets")["projected"]
    assert sources["defaultMode"] == 0o440
    found = {}
    for source in sources["sources"]:
        ((kind, body),) = source.items()
        for item in body["items"]:
            found[item["path"]] = (kind, body["name"], item["key"], body.get("optional", False))
    assert found == {
        "credentials/client_secret": ("secret", "central", "secret", False),
        "credentials/password": ("secret", "central", "pass", False),
        "seed/refresh_token": ("secret", "seed", "token.json", True),
        "central-ca/ca.crt": ("configMap", "private-ca", "bundle.pem", False),
        "redis/password": ("secret", "redis", "password", False),
        "redis/ca.crt": ("secret", "redis", "ca", False),
        "redis/client.crt": ("secret", "redis", "crt", False),
        "redis/client.key": ("secret", "redis", "key", False),
        "otlp/ca.crt": ("secret", "collector", "ca", False),
    }
    # Whatever file a setting names is there.
    for file in VALUES_FILES:
        each = template(file)
        sources = next(volume for volume in each.pod()["volumes"] if volume["name"] == "secrets")["projected"][
            "sources"
        ]
        there = {item["path"] for source in sources for body in source.values() for item in body.get("items", [body])}
        named = {
            value.removeprefix("/run/secrets/license-gateway/")
            for section in each.settings().values()
            if isinstance(section, dict)
            for key, value in section.items()
            if key.endswith("_file")
        }
        assert named, file.name
        assert named <= there, f"{file.name}: {named - there} are named and not mounted"
        assert there - named <= {"otlp/ca.crt"}, f"{file.name}: {there - named} are mounted and not named"
    variables = {each["name"]: each for each in rendered.container()["env"]}
    assert variables["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"]["secretKeyRef"] == {
        "name": "collector",
        "key": "headers",
    }
    keys = template(ci("key-set")).settings()["jwt"]
    assert keys == {
        "issuer": "https://issuer.example.com",
        "audience": "licences",
        "algorithms": "ES256",
        "jwks_file": "/run/secrets/license-gateway/jwt/jwks.json",
    }
    tokens = template(ci("tokens"))
    assert {"serviceAccountToken": {"path": "jwt/token", "expirationSeconds": 3600}} in next(
        volume for volume in tokens.pod()["volumes"] if volume["name"] == "secrets"
    )["projected"]["sources"]
    return "every file that a setting names is mounted, and no other"


def numbers_are_whole():
    """Helm's numbers are floats: 1073741824 must not become 1.073741824e+09."""
    rendered = template(ci("redis"))
    settings = rendered.settings()
    assert settings["audit"]["max_file_bytes"] == 1073741824
    assert settings["quota"] == {"per_second": 4, "reserve": 100, "replicas": 3}
    numbers = [
        value
        for section in settings.values()
        if isinstance(section, dict)
        for value in section.values()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    assert numbers and all(isinstance(number, int) for number in numbers)
    by_flag = template(
        ci("one-gateway"),
        more=["--set", "config.audit.max_file_bytes=16777216", "--set", "config.central.max_in_flight=7"],
    )
    assert (
        by_flag.settings()["audit"]["max_file_bytes"] == 16777216
        and by_flag.settings()["central"]["max_in_flight"] == 7
    )
    odd = 'x"y\\z<&>é'
    quoted = template(ci("redis"), config={"token_store": {"key": odd}})
    assert quoted.settings()["token_store"]["key"] == odd
    return "in the file as in the values"


def quota_is_shared_among_all():
    for values, replicas in (
        ({}, 2),
        ({"replicaCount": 5}, 5),
        ({"replicaCount": 0}, 1),
        ({"autoscaling": {"enabled": True, "maxReplicas": 7}}, 7),
    ):
        rendered = template(ci("two-gateways"), **values)
        assert rendered.settings()["quota"]["replicas"] == replicas, values
        spec = rendered.deployment()["spec"]
        assert ("replicas" in spec) != bool(values.get("autoscaling")), "the autoscaler's number is the autoscaler's"
    return "quota.replicas from replicaCount or autoscaling.maxReplicas"


def changes_roll_pods_and_policy_does_not():
    annotations = lambda **values: template(ci("one-gateway"), **values).deployment()["spec"]["template"]["metadata"][
        "annotations"
    ]
    as_it_is = annotations()
    assert re.fullmatch("[0-9a-f]{64}", as_it_is["checksum/config"])
    for values in (
        {"config": {"central": {"timeout": "31s"}}},
        {"config": {"log": {"filter": "debug"}}},
        {"secrets": {"centralCa": {"existingSecret": "x"}}},
    ):
        assert annotations(**values)["checksum/config"] != as_it_is["checksum/config"], values
    for values in ({"config": {"read_only": True}}, {"config": {"callers": []}}):
        assert annotations(**values) == as_it_is, f"{values} is read by running gateways"
        assert template(ci("one-gateway"), **values).settings() != template(ci("one-gateway")).settings()
    assert "checksum/sandbox" in template(ci("sandbox")).deployment()["spec"]["template"]["metadata"]["annotations"]
    # A new chart around the same gateway starts nothing anew.
    assert "helm.sh/chart" not in template(ci("one-gateway")).deployment()["spec"]["template"]["metadata"]["labels"]
    return "a setting rolls, read_only and callers are followed"


def budgets_and_autoscaling():
    one = template(ci("one-gateway")).one("PodDisruptionBudget")["spec"]
    assert one["maxUnavailable"] == 1 and one["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    shared = template(ci("redis"))
    budget, scaler = shared.one("PodDisruptionBudget")["spec"], shared.one("HorizontalPodAutoscaler")["spec"]
    assert budget["minAvailable"] == 1 and "maxUnavailable" not in budget
    assert selects(budget["selector"]["matchLabels"], shared.deployment())
    assert scaler["scaleTargetRef"]["name"] == shared.deployment()["metadata"]["name"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 3)
    return "PodDisruptionBudget and HorizontalPodAutoscaler"


def pods_go_where_they_should():
    usual = template(ci("two-gateways"))
    for constraint in usual.pod()["topologySpreadConstraints"]:
        assert selects(constraint["labelSelector"]["matchLabels"], usual.deployment()), "a selector of its own"
    rendered = template(ci("everything"))
    pod, container = rendered.pod(), rendered.container()
    assert pod["topologySpreadConstraints"][0]["labelSelector"] == {"matchLabels": {"app": "x"}}, "theirs stays"
    assert (
        pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
        and pod["tolerations"]
        and pod["affinity"]["podAntiAffinity"]
    )
    assert pod["priorityClassName"] == "platform"
    assert [each["name"] for each in pod["containers"]] == ["gateway", "audit-shipper"]
    assert [each["name"] for each in pod["initContainers"]] == ["wait"]
    assert {"name": "RUST_BACKTRACE", "value": "1"} in container["env"]
    assert {"name": "scratch", "mountPath": "/scratch"} in container["volumeMounts"]
    metadata = rendered.deployment()["spec"]["template"]["metadata"]
    assert metadata["labels"]["example.com/tier"] == "edge" and metadata["annotations"]["example.com/scrape"] == "no"
    assert rendered.deployment()["metadata"]["annotations"]["example.com/owner"] == "platform"
    assert rendered.one("ServiceAccount")["metadata"]["name"] == "licences-gateway" == pod["serviceAccountName"]
    return "spread, affinity, taints, priority; extra containers, volumes, variables"


def images_are_named_exactly():
    assert template(ci("one-gateway")).container()["image"] == "license-gateway:0.1.0"
    pinned = template(ci("redis")).container()["image"]
    assert (
        pinned == f"registry.example.com/platform/license-gateway@sha256:{'0123456789abcdef' * 3}0123456789abcdef"
    ), "the digest wins"
    trial = template(ci("sandbox"))
    sandbox = trial.one("Deployment", "license-gateway-sandbox")["spec"]["template"]["spec"]["containers"][0]
    assert sandbox["image"] == "license-gateway-sandbox:0.1.0" and sandbox["args"][0] == "sandbox"
    assert trial.container()["image"] == "license-gateway:0.1.0", "the gateway before it is the production one"
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == values["image"]["tag"] == version
    return f"tag, digest; chart, program and default tag are {version}"


CHECKS = [
    (function.__name__.replace("_", " "), function)
    for function in (
        pods_are_restricted,
        probes_ask_what_they_should,
        drain_and_grace_fit,
        volumes_outlive_what_they_must,
        secrets_come_from_existing_ones,
        numbers_are_whole,
        quota_is_shared_among_all,
        changes_roll_pods_and_policy_does_not,
        budgets_and_autoscaling,
        pods_go_where_they_should,
        images_are_named_exactly,
    )
]
