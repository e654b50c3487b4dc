"""How the chart's objects lead to the gateway, and where they let it go."""

import re

from rendering import ROOT, ci, selects, template

LICENSING = "central.licensing.v1.LicensingService"


def services_lead_to_the_gateway():
    rendered = template(
        ci("two-gateways"),
        ci("sandbox"),
        config={"central": {"cluster": ""}, "credentials": {"client_id": ""}},
        secrets={"credentials": {"existingSecret": ""}},
    )
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
        chosen = selects(services[name]["spec"]["selector"], gateway) + selects(
            services[name]["spec"]["selector"], sandbox
        )
        assert chosen == 1 and selects(services[name]["spec"]["selector"], deployment), f"{name} selects {chosen}"
        ports = {
            port["name"]: port
            for container in deployment["spec"]["template"]["spec"]["containers"]
            for port in container["ports"]
        }
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
    assert opened(template(ci("redis")), "egress", "license-gateway") == [
        *dns,
        (3128, anywhere),
        (4317, None),
        (6380, None),
    ]
    ports = lambda **config: [port for port, _ in opened(template(ci("one-gateway"), config=config), "egress")]
    assert ports(central={"cluster": "", "base_url": "https://central.example.com:8443"}) == [53, 53, 8443]
    assert ports(central={"cluster": "", "base_url": "https://[2001:db8::1]:8443"}) == [53, 53, 8443]
    assert ports(central={"cluster": "", "base_url": "https://[2001:db8::1]"}) == [53, 53, 443]
    assert opened(template(ci("two-gateways")), "egress")[3:] == [(443, anywhere), (6443, anywhere)]
    assert [port for port, _ in opened(template(ci("tokens")), "egress")] == [53, 53, 443, 443, 443, 6443]
    every = template(ci("everything"))
    assert opened(every, "egress", "licences")[2:] == [(443, [{"ipBlock": {"cidr": "192.0.2.0/24"}}]), (1514, None)]
    (_, callers), (_, watchers) = opened(every, "ingress", "licences")
    assert callers[:-1] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "callers"}}}]
    test = every.one("Pod")["metadata"]["labels"]
    assert callers[-1]["podSelector"]["matchLabels"].items() <= test.items(), "helm test comes through"
    assert watchers == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    trial = template(ci("sandbox"))
    ((port, where),) = opened(trial, "egress")[2:]
    assert port == 8085 and selects(
        where[0]["podSelector"]["matchLabels"], trial.one("Deployment", "license-gateway-sandbox")
    )
    assert opened(trial, "egress", "license-gateway-sandbox") == []
    assert not template(ci("one-gateway"), networkPolicy={"enabled": False}).all("NetworkPolicy")
    return "Central or the proxy, DNS, OTLP, the store; nothing else"


def routes_have_the_contracts_methods():
    route = template(ci("tokens")).one("GRPCRoute")
    contract = (ROOT / "proto" / "central" / "licensing" / "v1" / "licensing.proto").read_text()
    methods = set(re.findall(r"^\s*rpc (\w+)", contract, re.M)) | {"PreviewUnassignLicenses"}
    (rule,) = route["spec"]["rules"]
    assert {match["method"]["method"] for match in rule["matches"]} == methods
    assert all(
        match["method"] == {"type": "Exact", "service": LICENSING, "method": match["method"]["method"]}
        for match in rule["matches"]
    )
    assert rule["backendRefs"] == [{"name": "license-gateway", "port": 50051}]
    assert route["spec"]["parentRefs"] == [{"name": "internal", "namespace": "gateways", "sectionName": "grpc"}]
    fewer = template(ci("tokens"), grpcRoute={"methods": ["ListServices"]}).one("GRPCRoute")
    assert len(fewer["spec"]["rules"][0]["matches"]) == 1
    return f"{len(methods)} methods"


CHECKS = [
    (function.__name__.replace("_", " "), function)
    for function in (
        services_lead_to_the_gateway,
        network_policy_lets_through_what_is_needed,
        routes_have_the_contracts_methods,
    )
]
