"""What the chart makes of values, object by object: one function for each thing that it promises."""

import json
import pathlib
import re
import shutil
import tarfile
import tempfile

import yaml

from rendering import CHART, HERE, ROOT, VALUES_FILES, ci, template, tool

KUBERNETES = ["1.33", "1.34", "1.35", "1.36", "1.37"]
LICENSING = "central.licensing.v1.LicensingService"


def every_object_is_valid():
    """Against the schemas of five Kubernetes versions, strictly; custom kinds against ours."""
    import jsonschema
    import kubernetes_validate

    schemas = {
        file.stem: jsonschema.Draft202012Validator(json.loads(file.read_text()))
        for file in (HERE / "schemas").glob("*.json")
    }
    counted, custom = 0, {kind: 0 for kind in schemas}
    for file in VALUES_FILES:
        for each in template(file).objects:
            where = f"{file.name}: {each['kind']} {each['metadata']['name']}"
            if each["kind"] in schemas:
                problems = [f"{error.json_path}: {error.message}" for error in schemas[each["kind"]].iter_errors(each)]
                assert not problems, f"{where}: {problems}"
                custom[each["kind"]] += 1
                continue
            for version in KUBERNETES:
                try:
                    kubernetes_validate.validate(each, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    raise AssertionError(f"{where}, Kubernetes {version}: {error.path}: {error.message}") from None
            counted += 1
    assert all(custom.values()), f"a custom kind was never rendered: {custom}"
    return f"{counted} objects by Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}, {sum(custom.values())} custom ones"


def every_object_has_its_place():
    for file in VALUES_FILES:
        rendered = template(file, release="here")
        assert len(rendered.named()) == len(rendered.objects), f"{file.name}: two objects have one name"
        for each in rendered.objects:
            metadata = each["metadata"]
            assert metadata["namespace"] == "msp", f"{file.name}: {metadata['name']} is in {metadata['namespace']}"
            labels = metadata["labels"]
            assert labels["app.kubernetes.io/instance"] == "here" and labels["app.kubernetes.io/name"] == "license-gateway"
            assert len(metadata["name"]) <= 63, metadata["name"]
    long = template(ci("sandbox"), release="a-release-with-a-name-of-fifty-three-characters-which")
    assert max(len(each["metadata"]["name"]) for each in long.objects) <= 63
    labelled = template(ci("everything"))
    assert all(each["metadata"]["labels"]["example.com/cost-centre"] == "4711" for each in labelled.objects)
    return f"{len(VALUES_FILES)} values files"


def services_lead_to_the_gateway():
    rendered = template(ci("two-gateways"), ci("sandbox"), config={"central": {"cluster": ""}, "credentials": {"client_id": ""}}, secrets={"credentials": {"existingSecret": ""}})
    gateway, sandbox = rendered.deployment(), rendered.one("Deployment", "license-gateway-sandbox")
    targets = {
        "license-gateway": gateway,
        "license-gateway-admin": gateway,
        "license-gateway-headless": gateway,
        "license-gateway-sandbox": sandbox,
    }
    services = {each["metadata"]["name"]: each for each in rendered.all("Service")}
    assert services.keys() == targets.keys()
    for name, deployment in targets.items():
        chosen = selects(services[name]["spec"]["selector"], gateway) + selects(services[name]["spec"]["selector"], sandbox)
        assert chosen == 1 and selects(services[name]["spec"]["selector"], deployment), f"{name} selects {chosen}"
        ports = {port["name"]: port for container in deployment["spec"]["template"]["spec"]["containers"] for port in container["ports"]}
        for port in services[name]["spec"]["ports"]:
            assert port["targetPort"] in ports, f"{name} leads to the port {port['targetPort']}, which no container has"
    grpc = template(ci("sandbox")).one("Service", "license-gateway")["spec"]["ports"]
    assert grpc == [{"name": "grpc", "port": 50051, "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c"}]
    assert services["license-gateway"]["spec"]["ports"][0]["appProtocol"] == "https", "TLS is no cleartext HTTP/2"
    assert services["license-gateway-headless"]["spec"]["clusterIP"] == "None"
    assert services["license-gateway-headless"]["spec"]["ports"][0]["port"] == 50051, "the pods' own port"
    assert not template(ci("one-gateway")).named().get(("Service", "license-gateway-headless")), "it is off by default"
    outside = template(ci("everything"))
    assert outside.one("Service", "licences")["spec"]["type"] == "LoadBalancer"
    assert outside.one("Service", "licences-admin")["spec"]["clusterIP"] == "None", "metrics never leave the cluster"
    assert [port["name"] for port in outside.one("Service", "licences")["spec"]["ports"]] == ["grpc"]
    return "Service, headless, admin and the sandbox's"


def selects(selector, deployment):
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector.items())


def nothing_owns_the_token_secret():
    """Before an upgrade and after it, with one version and with the next: the Secret is in no release."""
    with tempfile.TemporaryDirectory() as folder:
        newer = pathlib.Path(folder) / "license-gateway"
        shutil.copytree(CHART, newer)
        chart = (newer / "Chart.yaml").read_text()
        chart = re.sub(r"^version: .*", "version: 99.0.0", chart, flags=re.M)
        (newer / "Chart.yaml").write_text(re.sub(r"^appVersion: .*", 'appVersion: "99.0.0"', chart, flags=re.M))
        stages = [
            template(ci("two-gateways")),
            template(ci("two-gateways"), chart=newer, image={"tag": "99.0.0"}, config={"central": {"timeout": "40s"}}),
            template(ci("two-gateways")),  # the rollback
        ]
        files = [template(ci("one-gateway")), template(ci("one-gateway"), chart=newer, image={"tag": "99.0.0"}), template(ci("one-gateway"))]
    for rendered in stages:
        name = rendered.settings()["token_store"]["name"]
        assert name == "license-gateway-token"
        for each in rendered.objects:
            assert each["kind"] != "Secret", f"the release would own {each['metadata']['name']}"
            assert not each["metadata"]["name"].startswith(name), f"{each['kind']} {each['metadata']['name']}"
        token_volumes = [volume for volume in rendered.pod()["volumes"] if name in json.dumps(volume)]
        assert not token_volumes, "a mounted token is an old one"
    # What may not change in a Deployment's life, and what must.
    selectors = [rendered.deployment()["spec"]["selector"] for rendered in stages + files]
    assert all(selector == selectors[0] for selector in selectors), "an upgrade would be refused"
    before, after, back = (rendered.deployment()["spec"]["template"] for rendered in stages)
    assert before != after and before == back, "a rollback brings back what was"
    for rendered in files:
        claim = rendered.one("PersistentVolumeClaim")
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert claim["spec"] == files[0].one("PersistentVolumeClaim")["spec"], "a claim cannot be changed"
        assert rendered.deployment()["spec"]["strategy"] == {"type": "Recreate"}
    return "upgrade and rollback of two versions: in no release; the claim stays"


def rights_are_the_smallest():
    rendered = template(ci("two-gateways"))
    role, binding = rendered.one("Role"), rendered.one("RoleBinding")
    names = ["license-gateway-token", "license-gateway-token-usage"]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": names, "verbs": ["get", "update", "watch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]
    account = rendered.one("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "msp"}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert rendered.pod()["serviceAccountName"] == account["metadata"]["name"]
    assert rendered.pod()["automountServiceAccountToken"] is True
    strict = template(ci("two-gateways"), rbac={"mayCreateSecrets": False}).one("Role")
    assert [rule["verbs"] for rule in strict["rules"]] == [["get", "update", "watch"]]
    elsewhere = template(ci("two-gateways"), config={"token_store": {"namespace": "tokens", "name": "central-token"}})
    assert elsewhere.one("Role")["metadata"]["namespace"] == "tokens" == elsewhere.one("RoleBinding")["metadata"]["namespace"]
    assert elsewhere.one("Role")["rules"][0]["resourceNames"] == ["central-token", "central-token-usage"]
    assert elsewhere.one("RoleBinding")["subjects"][0]["namespace"] == "msp"
    for name in ("one-gateway", "redis", "sandbox"):
        other = template(ci(name))
        assert not other.all("Role") and not other.all("RoleBinding"), f"{name} needs no right"
        assert other.pod()["automountServiceAccountToken"] is False
    return "the two names of the token store; no right and no token without it"


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
    return "gRPC on \"\" and on the service; the admin port with TLS"


def drain_and_grace_fit():
    for file in VALUES_FILES:
        rendered = template(file)
        pod, container = rendered.pod(), rendered.container()
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = seconds(rendered.settings()["server"]["drain_timeout"])
        assert pod["terminationGracePeriodSeconds"] >= pause + drain + 5, file.name
    longest = template(ci("one-gateway"), config={"server": {"drain_timeout": "1m 29s 500ms"}}, termination={"gracePeriodSeconds": 100})
    assert longest.pod()["terminationGracePeriodSeconds"] == 100, "5 + 90 + 5"
    assert "lifecycle" not in template(ci("one-gateway"), termination={"preStopSeconds": 0}).container()
    return "sleep, drain and flush are shorter than the grace period"


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
    assert data(theirs)["persistentVolumeClaim"] == {"claimName": "licences-state"} and not theirs.all("PersistentVolumeClaim")
    # A shared store with the trail in files: one gateway, on a claim.
    trail = template(ci("two-gateways"), replicaCount=1, config={"audit": {"path": "/var/lib/license-gateway/audit"}})
    assert "persistentVolumeClaim" in data(trail) and trail.deployment()["spec"]["strategy"]["type"] == "Recreate"
    for rendered in (one, two, trial, theirs):
        mounts = {mount["name"]: mount for mount in rendered.container()["volumeMounts"]}
        assert mounts["data"]["mountPath"] == "/var/lib/license-gateway" and not mounts["data"].get("readOnly")
        assert mounts["config"]["readOnly"] and mounts["secrets"]["readOnly"]
        assert not any("subPath" in mount for mount in mounts.values()), "a subPath never changes, and rotation would end"
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
        (kind, body), = source.items()
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
        sources = next(volume for volume in each.pod()["volumes"] if volume["name"] == "secrets")["projected"]["sources"]
        there = {item["path"] for source in sources for body in source.values() for item in body.get("items", [body])}
        named = {
            value.removeprefix("/run/secrets/license-gateway/")
            for section in each.settings().values() if isinstance(section, dict)
            for key, value in section.items() if key.endswith("_file")
        }
        assert named, file.name
        assert named <= there, f"{file.name}: {named - there} are named and not mounted"
        assert there - named <= {"otlp/ca.crt"}, f"{file.name}: {there - named} are mounted and not named"
    variables = {each["name"]: each for each in rendered.container()["env"]}
    assert variables["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"]["secretKeyRef"] == {"name": "collector", "key": "headers"}
    keys = template(ci("key-set")).settings()["jwt"]
    assert keys == {"issuer": "https://issuer.example.com", "audience": "licences", "algorithms": "ES256", "jwks_file": "/run/secrets/license-gateway/jwt/jwks.json"}
    tokens = template(ci("tokens"))
    assert {"serviceAccountToken": {"path": "jwt/token", "expirationSeconds": 3600}} in next(volume for volume in tokens.pod()["volumes"] if volume["name"] == "secrets")["projected"]["sources"]
    return "every file that a setting names is mounted, and no other"


def numbers_are_whole():
    """Helm's numbers are floats: 1073741824 must not become 1.073741824e+09."""
    rendered = template(ci("redis"))
    settings = rendered.settings()
    assert settings["audit"]["max_file_bytes"] == 1073741824
    assert settings["quota"] == {"per_second": 4, "reserve": 100, "replicas": 3}
    numbers = [value for section in settings.values() if isinstance(section, dict) for value in section.values() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    assert numbers and all(isinstance(number, int) for number in numbers)
    by_flag = template(ci("one-gateway"), more=["--set", "config.audit.max_file_bytes=16777216", "--set", "config.central.max_in_flight=7"])
    assert by_flag.settings()["audit"]["max_file_bytes"] == 16777216 and by_flag.settings()["central"]["max_in_flight"] == 7
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
    annotations = lambda **values: template(ci("one-gateway"), **values).deployment()["spec"]["template"]["metadata"]["annotations"]
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


def network_policy_lets_through_what_is_needed():
    def opened(rendered, direction, name="license-gateway"):
        spec = rendered.one("NetworkPolicy", name)["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        return [(port["port"], rule.get("to", rule.get("from"))) for rule in spec[direction] for port in rule["ports"]]

    dns = [(53, None), (53, None)]
    anywhere = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    one = template(ci("one-gateway"))
    assert opened(one, "ingress") == [("grpc", None), ("admin", None)]
    assert opened(one, "egress") == [*dns, (443, anywhere)]
    assert selects(one.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"], one.deployment())
    assert opened(template(ci("redis")), "egress", "license-gateway") == [*dns, (3128, anywhere), (4317, None), (6380, None)]
    ports = lambda **config: [port for port, _ in opened(template(ci("one-gateway"), config=config), "egress")]
    assert ports(central={"cluster": "", "base_url": "https://central.example.com:8443"}) == [53, 53, 8443]
    assert ports(central={"cluster": "", "base_url": "https://[2001:db8::1]:8443"}) == [53, 53, 8443]
    assert ports(central={"cluster": "", "base_url": "https://[2001:db8::1]"}) == [53, 53, 443]
    assert opened(template(ci("two-gateways")), "egress")[3:] == [(443, anywhere), (6443, anywhere)]
    assert [port for port, _ in opened(template(ci("tokens")), "egress")] == [53, 53, 443, 443, 443, 6443]
    every = template(ci("everything"))
    assert opened(every, "egress", "licences")[2:] == [(443, [{"ipBlock": {"cidr": "192.0.2.0/24"}}]), (1514, None)]
    assert [where for _, where in opened(every, "ingress", "licences")] == [
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "callers"}}}],
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    ]
    trial = template(ci("sandbox"))
    (port, where), = opened(trial, "egress")[2:]
    assert port == 8085 and selects(where[0]["podSelector"]["matchLabels"], trial.one("Deployment", "license-gateway-sandbox"))
    assert opened(trial, "egress", "license-gateway-sandbox") == []
    assert not template(ci("one-gateway"), networkPolicy={"enabled": False}).all("NetworkPolicy")
    return "Central or the proxy, DNS, OTLP, the store; nothing else"


def prometheus_and_grafana_get_the_shipped_files():
    rendered = template(ci("everything"))
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    rule = rendered.one("PrometheusRule")
    assert rule["spec"] == rules, "make chart-files"
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    dashboard = rendered.one("ConfigMap", "licences-dashboard")
    assert json.loads(dashboard["data"]["license-gateway.json"]) == json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    monitor = rendered.one("ServiceMonitor")
    watched = [
        each for each in rendered.all("Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]
    assert [each["metadata"]["name"] for each in watched] == ["licences-admin"], "each gateway is scraped once"
    endpoint, = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in watched[0]["spec"]["ports"]] and endpoint["path"] == "/metrics"
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == ("15s", "5s")
    assert monitor["spec"]["jobLabel"] in watched[0]["metadata"]["labels"]
    for name in ("rules.yaml", "dashboard.json"):
        source = next((ROOT / "deploy").rglob(name))
        assert (CHART / "files" / name).read_bytes() == source.read_bytes(), f"files/{name} is not {source}: make chart-files"
    assert not [each for each in template(ci("one-gateway")).objects if each["kind"] in ("ServiceMonitor", "PrometheusRule")]
    return f"{len(rules['groups'][0]['rules'])} alerts, one dashboard: the files of deploy/"


def routes_have_the_contracts_methods():
    route = template(ci("tokens")).one("GRPCRoute")
    contract = (ROOT / "proto" / "central" / "licensing" / "v1" / "licensing.proto").read_text()
    methods = set(re.findall(r"^\s*rpc (\w+)", contract, re.M)) | {"PreviewUnassignLicenses"}
    rule, = route["spec"]["rules"]
    assert {match["method"]["method"] for match in rule["matches"]} == methods
    assert all(match["method"] == {"type": "Exact", "service": LICENSING, "method": match["method"]["method"]} for match in rule["matches"])
    assert rule["backendRefs"] == [{"name": "license-gateway", "port": 50051}]
    assert route["spec"]["parentRefs"] == [{"name": "internal", "namespace": "gateways", "sectionName": "grpc"}]
    fewer = template(ci("tokens"), grpcRoute={"methods": ["ListServices"]}).one("GRPCRoute")
    assert len(fewer["spec"]["rules"][0]["matches"]) == 1
    return f"{len(methods)} methods"


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
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"} and pod["tolerations"] and pod["affinity"]["podAntiAffinity"]
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
    assert pinned == f"registry.example.com/platform/license-gateway@sha256:{'0123456789abcdef' * 3}0123456789abcdef", "the digest wins"
    trial = template(ci("sandbox"))
    sandbox = trial.one("Deployment", "license-gateway-sandbox")["spec"]["template"]["spec"]["containers"][0]
    assert sandbox["image"] == "license-gateway-sandbox:0.1.0" and sandbox["args"][0] == "sandbox"
    assert trial.container()["image"] == "license-gateway:0.1.0", "the gateway before it is the production one"
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == values["image"]["tag"] == version
    return f"tag, digest; chart, program and default tag are {version}"


def the_sandbox_is_all_that_is_needed():
    rendered = template(ci("sandbox"))
    settings = rendered.settings()
    sandbox = rendered.one("Service", "license-gateway-sandbox")
    assert settings["central"]["base_url"] == f"http://{sandbox['metadata']['name']}:{sandbox['spec']['ports'][0]['port']}"
    assert settings["central"]["allow_plaintext"] is True and settings["server"]["allow_anonymous_callers"] is True
    assert [caller["identity"] for caller in settings["callers"]] == ["anonymous"]
    assert settings["callers"][0]["scopes"] == ["include"]
    own = template(ci("sandbox"), ci("one-gateway"), config={"central": {"cluster": ""}, "credentials": {"client_id": ""}}, secrets={"credentials": {"existingSecret": ""}})
    assert own.settings()["server"]["allow_anonymous_callers"] is False, "who says who may call, says it"
    assert not [each for each in template(ci("one-gateway")).objects if "sandbox" in each["metadata"]["name"]]
    return "one value, and nothing of it without"


def the_release_says_how_to_begin():
    """NOTES: helm prints them on install only, so they are rendered through a copy of the chart."""
    notes = lambda *files, **values: said_on_install(*files, **values)
    trial = notes(ci("sandbox"))
    assert "--include 267958b55d5a463e94a302c20f4a6b68" in trial and "/__sandbox/calls" in trial
    one = notes(ci("one-gateway"))
    assert "--cert-file" in one and "https://localhost:50051" in one and "license-gateway-data" in one
    assert "Secret license-gateway-central, key refresh_token" in one
    two = notes(ci("two-gateways"))
    assert "Secret license-gateway-token, which the gateway makes" in two and "dns:///license-gateway-headless.msp.svc:50051" in two
    assert "NOBODY MAY CALL IT YET" in notes(ci("one-gateway"), config={"callers": []})
    assert "read-only" in notes(ci("everything"))
    assert "tokens can be read on the network" in notes(ci("tokens")) and "can be read" not in one
    assert "NOBODY" not in one + two + trial and "read-only" not in one
    return "in six situations"


def said_on_install(*files, **values):
    with tempfile.TemporaryDirectory() as folder:
        copied = pathlib.Path(folder) / "license-gateway"
        shutil.copytree(CHART, copied)
        notes = (copied / "templates" / "NOTES.txt").read_text()
        (copied / "templates" / "NOTES.txt").unlink()
        (copied / "templates" / "_notes.tpl").write_text('{{- define "notes" -}}' + notes + "{{- end }}")
        (copied / "templates" / "notes.yaml").write_text('apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: {{ include "notes" . | toJson }}\n')
        return template(*files, chart=copied, **values).one("ConfigMap", "notes")["data"]["notes"]


def helm_lints_and_packages():
    for file in VALUES_FILES:
        said = tool("helm", "lint", "--strict", CHART, "--values", file)
        assert "[ERROR]" not in said and "[WARNING]" not in said, said
    with tempfile.TemporaryDirectory() as folder:
        tool("helm", "package", CHART, "--destination", folder)
        package, = pathlib.Path(folder).glob("*.tgz")
        with tarfile.open(package) as tar:
            inside = {pathlib.PurePath(name).relative_to("license-gateway").as_posix() for name in tar.getnames()}
        assert {"values.schema.json", "README.md", "files/rules.yaml", "files/dashboard.json", "templates/NOTES.txt"} <= inside
        assert not [name for name in inside if name.startswith("ci/")], "values of tests are not for users"
        from_package = template(ci("sandbox"), chart=package)
    assert from_package.named() == template(ci("sandbox")).named()
    return f"lint --strict of {len(VALUES_FILES)} values files; the package renders the same"


CHECKS = [(function.__name__.replace("_", " "), function) for function in (
    helm_lints_and_packages,
    every_object_is_valid,
    every_object_has_its_place,
    services_lead_to_the_gateway,
    nothing_owns_the_token_secret,
    rights_are_the_smallest,
    pods_are_restricted,
    probes_ask_what_they_should,
    drain_and_grace_fit,
    volumes_outlive_what_they_must,
    secrets_come_from_existing_ones,
    numbers_are_whole,
    quota_is_shared_among_all,
    changes_roll_pods_and_policy_does_not,
    network_policy_lets_through_what_is_needed,
    prometheus_and_grafana_get_the_shipped_files,
    routes_have_the_contracts_methods,
    budgets_and_autoscaling,
    pods_go_where_they_should,
    images_are_named_exactly,
    the_sandbox_is_all_that_is_needed,
    the_release_says_how_to_begin,
)]
