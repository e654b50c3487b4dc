"""What the chart makes of values as a whole: valid, in its place, and owning what it should and no more."""

import json
import pathlib
import re
import shutil
import tarfile
import tempfile

import yaml

from rendering import CHART, HERE, ROOT, VALUES_FILES, ci, template, tool

KUBERNETES = ["1.33", "1.34", "1.35", "1.36", "1.37"]


def helm_lints_and_packages():
    for file in VALUES_FILES:
        said = tool("helm", "lint", "--strict", CHART, "--values", file)
        assert "[ERROR]" not in said and "[WARNING]" not in said, said
    with tempfile.TemporaryDirectory() as folder:
        tool("helm", "package", CHART, "--destination", folder)
        (package,) = pathlib.Path(folder).glob("*.tgz")
        with tarfile.open(package) as tar:
            inside = {pathlib.PurePath(name).relative_to("license-gateway").as_posix() for name in tar.getnames()}
        assert {
            "values.schema.json",
            "README.md",
            "files/rules.yaml",
            "files/dashboard.json",
            "templates/NOTES.txt",
        } <= inside
        assert not [name for name in inside if name.startswith("ci/")], "values of tests are not for users"
        from_package = template(ci("sandbox"), chart=package)
    assert from_package.named() == template(ci("sandbox")).named()
    return f"lint --strict of {len(VALUES_FILES)} values files; the package renders the same"


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
            assert (
                labels["app.kubernetes.io/instance"] == "here" and labels["app.kubernetes.io/name"] == "license-gateway"
            )
            assert len(metadata["name"]) <= 63, metadata["name"]
    long = template(ci("sandbox"), release="a-release-with-a-name-of-fifty-three-characters-which")
    assert max(len(each["metadata"]["name"]) for each in long.objects) <= 63
    labelled = template(ci("everything"))
    assert all(each["metadata"]["labels"]["example.com/cost-centre"] == "4711" for each in labelled.objects)
    return f"{len(VALUES_FILES)} values files"


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
        files = [
            template(ci("one-gateway")),
            template(ci("one-gateway"), chart=newer, image={"tag": "99.0.0"}),
            template(ci("one-gateway")),
        ]
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
    names = [f"license-gateway-token{end}" for end in ("", "-usage", "-operations")]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": names, "verbs": ["get", "update"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]
    account = rendered.one("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "msp"}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert rendered.pod()["serviceAccountName"] == account["metadata"]["name"]
    assert rendered.pod()["automountServiceAccountToken"] is True
    strict = template(ci("two-gateways"), rbac={"mayCreateSecrets": False}).one("Role")
    assert [rule["verbs"] for rule in strict["rules"]] == [["get", "update"]]
    elsewhere = template(ci("two-gateways"), config={"token_store": {"namespace": "tokens", "name": "central-token"}})
    assert (
        elsewhere.one("Role")["metadata"]["namespace"]
        == "tokens"
        == elsewhere.one("RoleBinding")["metadata"]["namespace"]
    )
    assert elsewhere.one("Role")["rules"][0]["resourceNames"] == [
        "central-token",
        "central-token-usage",
        "central-token-operations",
    ]
    assert elsewhere.one("RoleBinding")["subjects"][0]["namespace"] == "msp"
    for name in ("one-gateway", "redis", "sandbox"):
        other = template(ci(name))
        assert not other.all("Role") and not other.all("RoleBinding"), f"{name} needs no right"
        assert other.pod()["automountServiceAccountToken"] is False
    return "the two names of the token store; no right and no token without it"


def prometheus_and_grafana_get_the_shipped_files():
    rendered = template(ci("everything"))
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    rule = rendered.one("PrometheusRule")
    assert rule["spec"] == rules, "make chart-files"
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    dashboard = rendered.one("ConfigMap", "licences-dashboard")
    assert json.loads(dashboard["data"]["license-gateway.json"]) == json.loads(
        (ROOT / "deploy" / "grafana" / "dashboard.json").read_text()
    )
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    monitor = rendered.one("ServiceMonitor")
    watched = [
        each
        for each in rendered.all("Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]
    assert [each["metadata"]["name"] for each in watched] == ["licences-admin"], "each gateway is scraped once"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in watched[0]["spec"]["ports"]] and endpoint["path"] == "/metrics"
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == ("15s", "5s")
    assert monitor["spec"]["jobLabel"] in watched[0]["metadata"]["labels"]
    for name in ("rules.yaml", "dashboard.json"):
        source = next((ROOT / "deploy").rglob(name))
        assert (
            CHART / "files" / name
        ).read_bytes() == source.read_bytes(), f"files/{name} is not {source}: make chart-files"
    assert not [
        each for each in template(ci("one-gateway")).objects if each["kind"] in ("ServiceMonitor", "PrometheusRule")
    ]
    return f"{len(rules['groups'][0]['rules'])} alerts, one dashboard: the files of deploy/"


def the_sandbox_is_all_that_is_needed():
    rendered = template(ci("sandbox"))
    settings = rendered.settings()
    sandbox = rendered.one("Service", "license-gateway-sandbox")
    assert (
        settings["central"]["base_url"] == f"http://{sandbox['metadata']['name']}:{sandbox['spec']['ports'][0]['port']}"
    )
    assert settings["central"]["allow_plaintext"] is True and settings["server"]["allow_anonymous_callers"] is True
    assert [caller["identity"] for caller in settings["callers"]] == ["anonymous"]
    assert settings["callers"][0]["scopes"] == ["include"]
    own = template(
        ci("sandbox"),
        ci("one-gateway"),
        config={"central": {"cluster": ""}, "credentials": {"client_id": ""}},
        secrets={"credentials": {"existingSecret": ""}},
    )
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
    assert (
        "Secret license-gateway-token, which the gateway makes" in two
        and "dns:///license-gateway-headless.msp.svc:50051" in two
    )
    assert "NOBODY MAY CALL IT YET" in notes(ci("one-gateway"), config={"callers": []})
    assert "read-only" in notes(ci("everything"))
    tokens = notes(ci("tokens"))
    assert "tokens can be read on the network" in tokens and "--token-file" in tokens
    assert "can be read" not in one and "--token-file" not in one
    assert "NOBODY" not in one + two + trial and "read-only" not in one
    return "in six situations"


def said_on_install(*files, **values):
    with tempfile.TemporaryDirectory() as folder:
        copied = pathlib.Path(folder) / "license-gateway"
        shutil.copytree(CHART, copied)
        notes = (copied / "templates" / "NOTES.txt").read_text()
        (copied / "templates" / "NOTES.txt").unlink()
        (copied / "templates" / "_notes.tpl").write_text('{{- define "notes" -}}' + notes + "{{- end }}")
        (copied / "templates" / "notes.yaml").write_text(
            'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: {{ include "notes" . | toJson }}\n'
        )
        return template(*files, chart=copied, **values).one("ConfigMap", "notes")["data"]["notes"]


CHECKS = [
    (function.__name__.replace("_", " "), function)
    for function in (
        helm_lints_and_packages,
        every_object_is_valid,
        every_object_has_its_place,
        nothing_owns_the_token_secret,
        rights_are_the_smallest,
        prometheus_and_grafana_get_the_shipped_files,
        the_sandbox_is_all_that_is_needed,
        the_release_says_how_to_begin,
    )
]
