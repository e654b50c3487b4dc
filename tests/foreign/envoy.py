"""A real Envoy in front of the gateway, set up as a mesh's sidecar is: gRPC over h2c, repeating what seems harmless."""

import collections
import contextlib
import http.client
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from world import START_WITHIN

# What Istio repeats by default, twice.
MESH_RETRIES = {"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2}


class Envoy:
    """One listener that leads to `upstream`. `announces`: it counts its attempts in x-envoy-attempt-count."""

    name = "envoy"

    def __init__(self, folder, upstream, retries, announces=False):
        config, admin = folder / "envoy.json", folder / "envoy.admin"
        config.write_text(json.dumps(configuration(upstream, retries, announces)))
        self.said = collections.deque(maxlen=60)
        self.process = subprocess.Popen(
            [
                pathlib.Path(sys.executable).parent / "envoy",
                *("--config-path", config, "--admin-address-path", admin),
                *("--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()
        try:
            self.admin = self._once(lambda: admin.exists() and admin.read_text())
            self.address = self._once(self._listens)
        except BaseException:
            self.stop()
            raise

    def repeated(self):
        """How many attempts it has added of its own accord."""
        stats = json.loads(self._asked("/stats?format=json&filter=^cluster.gateway.upstream_rq_retry$"))["stats"]
        return sum(stat.get("value", 0) for stat in stats)

    def stop(self):
        self.process.kill()
        self.process.wait()

    def _listens(self):
        """The listener's address, when it is open: with --concurrency 1 it is open when it is listed as live."""
        try:
            if self._asked("/ready").strip() != "LIVE":
                return None
            [listener] = json.loads(self._asked("/listeners?format=json"))["listener_statuses"]
        except (ConnectionError, KeyError, ValueError):
            return None
        socket = listener["local_address"]["socket_address"]
        return f"{socket['address']}:{socket['port_value']}"

    def _asked(self, path):
        connection = http.client.HTTPConnection(self.admin, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def _once(self, value):
        """The value, when there is one."""
        deadline = time.monotonic() + START_WITHIN
        while not (found := value()):
            ended = self.process.poll()
            assert ended is None and time.monotonic() < deadline, f"Envoy is not ready ({ended}): {list(self.said)}"
            time.sleep(0.01)
        return found


@contextlib.contextmanager
def mesh(upstream, retries=None, announces=False):
    """Envoy in front of an address, with a mesh's default policy unless another is given."""
    with tempfile.TemporaryDirectory(prefix="license-gateway-envoy-") as folder:
        envoy = Envoy(pathlib.Path(folder), upstream, retries or MESH_RETRIES, announces)
        try:
            yield envoy
        finally:
            envoy.stop()


def configuration(upstream, retries, announces):
    """Envoy's bootstrap; a free port for whatever listens."""
    host, port = upstream.rsplit(":", 1)
    http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    connections = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "codec_type": "HTTP2",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "gateway",
                    "domains": ["*"],
                    "include_request_attempt_count": announces,
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": "gateway", "timeout": "0s", "retry_policy": retries},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "admin": {"address": socket_address("127.0.0.1", 0)},
        "static_resources": {
            "listeners": [
                {
                    "name": "callers",
                    "address": socket_address("127.0.0.1", 0),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": connections,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "gateway",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
                        }
                        | http2
                    },
                    "load_assignment": {
                        "cluster_name": "gateway",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": socket_address(host, int(port))}}]}
                        ],
                    },
                }
            ],
        },
    }


def socket_address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}
