"""Pods as the chart renders them, on this machine and without a cluster: what a kubelet and a container runtime do with
a pod's specification is done here by hand, and the real binary runs in it.

The image is a directory with the binary, its libraries and what a runtime adds, read-only; volumes are mounted where the
pod says, with the owner and the modes that a kubelet gives; the process has the pod's arguments, variables, user and
groups, and nothing else. Names of Services lead to this machine, in a network namespace of its own, so that the chart's
fixed ports are free. Needs root.
"""

import errno
import fcntl
import http.client
import json
import os
import pathlib
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
import urllib.parse

import grpc

from rendering import ROOT

sys.path.insert(0, str(ROOT / "tests" / "foreign"))
from world import START_WITHIN, Process, Sandbox  # noqa: E402

HERE = "127.0.0.1"


def own_namespace():
    """Whether this process may do what it does, and if so its loopback is brought up."""
    problem = None
    if os.geteuid() != 0:
        problem = "not root"
    elif [name for _, name in socket.if_nameindex()] != ["lo"]:
        problem = "not in a network namespace of its own"
    if problem:
        sys.exit(f"the pods cannot be run: {problem}; `make test-chart` runs this as root with unshare --net --mount")
    with socket.socket() as any_socket:
        up = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS


class Node:
    """Where pods run: what is in the cluster besides, and the folders of the volumes."""

    def __init__(self, folder, binary, rendered, secrets=None):
        self.folder, self.binary, self.rendered = folder, binary, rendered
        # Secrets and ConfigMaps that nobody rendered: name → key → text.
        self.others = secrets or {}
        self.pods = []
        folder.chmod(0o755)

    def files_of(self, kind, name):
        for each in self.rendered.all(kind):
            if each["metadata"]["name"] == name:
                return each.get("stringData") or each.get("data")
        return self.others.get(name)

    def names(self):
        """What DNS would know."""
        for each in self.rendered.all("Service"):
            name, namespace = each["metadata"]["name"], each["metadata"]["namespace"]
            yield from (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local")

    def deployment(self, name, **more):
        """A pod of this Deployment."""
        return self.pod(self.rendered.one("Deployment", name)["spec"]["template"]["spec"], name, **more)

    def pod(self, spec, name, **more):
        return Pod(self, spec, name, **more)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for pod in reversed(self.pods):
            pod.remove()
        if kind is not None:
            for pod in self.pods:
                for line in pod.said():
                    print(f"{pod.name}: {line}", file=sys.stderr)


class Pod:
    """One container of a pod, its file system and its volumes."""

    def __init__(self, node, spec, name, data=None):
        self.node, self.spec, self.name = node, spec, name
        self.container = spec["containers"][0]
        # Each image has its program.
        trial = "license-gateway-sandbox" in self.container["image"]
        self.binary = node.binary.with_name("license-gateway-demo") if trial else node.binary
        security = spec["securityContext"]
        self.uid, self.gid = security["runAsUser"], security.get("runAsGroup", 0)
        self.fs_group = security.get("fsGroup", self.gid)
        self.home = node.folder / f"{name}-{len(node.pods)}"
        # A claim outlives the pod: whoever has one hands it from pod to pod.
        self.data = data or self.home / "data"
        self.root = self.home / "root"
        self.process, self.past, self.mounts = None, [], []
        # Before the first mount, so that whatever fails is cleared away.
        node.pods.append(self)
        self._image()
        self._volumes()

    # ---- what the runtime and the kubelet do ----

    def _image(self):
        self.root.mkdir(parents=True)
        shutil.copy(self.binary, self.root / self.binary.name)
        linked = subprocess.run(["ldd", self.binary], capture_output=True, text=True).stdout
        for word in linked.split():
            if word.startswith("/") and pathlib.Path(word).exists():
                self._put(word, pathlib.Path(word).read_bytes(), 0o755)
        authorities = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
        if authorities.exists():
            self._put(str(authorities), authorities.read_bytes(), 0o644)
        names = " ".join(["localhost", *self.node.names()])
        self._put("/etc/hosts", f"{HERE} {names}\n".encode(), 0o644)
        self._put("/etc/resolv.conf", b"", 0o644)
        for name in ("proc", "dev"):
            (self.root / name).mkdir()
        for mount in self.container.get("volumeMounts", []):
            self._at(mount["mountPath"]).mkdir(parents=True)

    def _put(self, path, content, mode):
        at = self._at(path)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content)
        at.chmod(mode)

    def _at(self, path):
        return self.root / path.lstrip("/")

    def _volumes(self):
        self._mount("--bind", self.root, self.root)
        self._mount("-t", "proc", "proc", self.root / "proc")
        for device in ("null", "urandom"):
            (self.root / "dev" / device).touch()
            self._mount("--bind", f"/dev/{device}", self.root / "dev" / device)
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for mount in self.container.get("volumeMounts", []):
            source = self._volume(volumes[mount["name"]])
            self._mount("--bind", source, self._at(mount["mountPath"]))
            if mount.get("readOnly"):
                self._mount("-o", "remount,bind,ro", self._at(mount["mountPath"]), new=False)
        if self.container["securityContext"]["readOnlyRootFilesystem"]:
            self._mount("-o", "remount,bind,ro", self.root, new=False)

    def _mount(self, *arguments, new=True):
        subprocess.run(["mount", *map(str, arguments)], check=True)
        if new:
            self.mounts.append(arguments[-1])

    def _volume(self, volume):
        folder = self.home / "volumes" / volume["name"]
        if "emptyDir" in volume or "persistentVolumeClaim" in volume:
            folder = self.data
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, 0, self.fs_group)
            folder.chmod(0o2770)
        else:
            folder.mkdir(parents=True)
            folder.chmod(0o755)
            self._write(folder, *self._content(volume))
        return folder

    def _content(self, volume):
        """Paths and texts, and their mode."""
        if "configMap" in volume:
            return self.node.files_of("ConfigMap", volume["configMap"]["name"]), 0o644
        if "secret" in volume:
            source = volume["secret"]
            return self._items({"secret": {"name": source["secretName"], "items": source["items"]}}), source.get(
                "defaultMode", 0o644
            )
        files = {}
        for source in volume["projected"]["sources"]:
            files |= self._items(source)
        return files, volume["projected"]["defaultMode"]

    def _items(self, source):
        ((kind, body),) = source.items()
        if kind == "serviceAccountToken":
            return {body["path"]: "a token"}
        there = self.node.files_of({"secret": "Secret", "configMap": "ConfigMap"}[kind], body["name"])
        if there is None or any(item["key"] not in there for item in body["items"]):
            # As a kubelet: the pod would wait for ever.
            assert body.get("optional"), f"{kind} {body['name']} lacks one of {[item['key'] for item in body['items']]}"
            there = there or {}
        return {item["path"]: there[item["key"]] for item in body["items"] if item["key"] in there}

    def _write(self, folder, files, mode):
        """As a kubelet does: a folder of its own for each state, and one link that is turned from one to the next."""
        state = folder / f"..{time.time_ns()}"
        for path, text in files.items():
            at = state / path
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(text)
            os.chown(at, 0, self.fs_group)
            at.chmod(mode)
            top = folder / pathlib.PurePath(path).parts[0]
            if not top.is_symlink():
                top.symlink_to(pathlib.Path("..data") / top.name)
        link = folder / "..data_new"
        link.symlink_to(state.name)
        link.rename(folder / "..data")

    def update_config(self, rendered):
        """The ConfigMap changes, and the kubelet brings the news."""
        volume = next(volume for volume in self.spec["volumes"] if volume["name"] == "config")
        self.node.rendered = rendered
        self._write(self.home / "volumes" / "config", *self._content(volume))

    # ---- the container ----

    def environment(self):
        values = {"HOSTNAME": self.name}
        for each in self.container.get("env", []):
            if "value" in each:
                value = each["value"]
                for name, known in values.items():
                    value = value.replace(f"$({name})", known)
            elif "fieldRef" in each["valueFrom"]:
                value = f"the-{each['valueFrom']['fieldRef']['fieldPath']}"
            else:
                reference = each["valueFrom"]["secretKeyRef"]
                value = self.node.files_of("Secret", reference["name"])[reference["key"]]
            values[each["name"]] = value
        return values

    def command(self, *arguments):
        return [
            *(shutil.which("setpriv"), "--no-new-privs"),
            *(shutil.which("chroot"), f"--userspec={self.uid}:{self.gid}", f"--groups={self.fs_group}"),
            *(str(self.root), f"/{self.binary.name}", *arguments),
        ]

    def start(self):
        """The container with its own arguments; back when it has said where it listens."""
        self.process = Process(self.command(*self.container["args"]), self.environment())
        return self

    def exec(self, *arguments, given=None):
        """A command in the container, as `kubectl exec` runs it."""
        return subprocess.run(
            self.command(*arguments), env=self.environment(), input=given, capture_output=True, text=True, timeout=60
        )

    def said(self):
        return [*self.past, *(self.process.said if self.process else [])]

    def wait_for(self, what, condition, within=START_WITHIN):
        deadline = time.monotonic() + within
        while True:
            answer = condition()
            if answer:
                return answer
            assert self.process is None or self.process.process.poll() is None, f"{self.name} ended: {self.said()}"
            assert time.monotonic() < deadline, f"{self.name}: not within {within} s: {what}"
            time.sleep(0.05)

    def probe(self, name):
        """One of the container's probes, asked as the kubelet asks: whether it succeeds."""
        probe = self.container[name]
        if "grpc" in probe:
            from grpc_health.v1 import health_pb2, health_pb2_grpc

            with grpc.insecure_channel(f"{HERE}:{probe['grpc']['port']}") as channel:
                try:
                    request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
                    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=probe["timeoutSeconds"])
                except grpc.RpcError:
                    return False
                return answer.status == health_pb2.HealthCheckResponse.SERVING
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        try:
            connection = http.client.HTTPConnection(HERE, ports[probe["httpGet"]["port"]], timeout=3)
            connection.request("GET", probe["httpGet"]["path"])
            return 200 <= connection.getresponse().status < 400
        except OSError as error:
            assert error.errno in (errno.ECONNREFUSED, None), error
            return False

    def becomes_ready(self, within=START_WITHIN):
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            self.wait_for(f"its {name} succeeds", lambda name=name: self.probe(name), within)

    def is_confined(self):
        """The process has no root, no capability and no way to write but into its volumes."""
        status = pathlib.Path(f"/proc/{self.process.process.pid}/status").read_text()
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert facts["Uid"].split() == [str(self.uid)] * 4, facts["Uid"]
        assert facts["Groups"].split() == [str(self.fs_group)], facts["Groups"]
        assert int(facts["CapEff"], 16) == 0 and facts["NoNewPrivs"].strip() == "1"
        for mount, writable in (
            ("/", False),
            ("/etc/license-gateway", False),
            ("/run/secrets/license-gateway", False),
            ("/var/lib/license-gateway", True),
        ):
            at = self._at(mount) / "tried"
            tried = subprocess.run(
                [
                    "setpriv",
                    f"--reuid={self.uid}",
                    f"--regid={self.gid}",
                    f"--groups={self.fs_group}",
                    "touch",
                    str(at),
                ],
                capture_output=True,
                text=True,
            )
            assert (tried.returncode == 0) == writable, f"{mount}: {tried.stderr}"
            if writable:
                at.unlink()
            else:
                assert "Read-only file system" in tried.stderr, tried.stderr
        mode = (self._at("/run/secrets/license-gateway/credentials") / "client_secret").stat().st_mode
        assert stat.S_IMODE(mode) == 0o440, oct(mode)

    def terminate(self):
        """What happens when the pod is deleted: the pause, SIGTERM, and the end within the grace period."""
        grace = self.spec["terminationGracePeriodSeconds"]
        # The pause is the kubelet's; what remains is the process's.
        grace -= self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        began = time.monotonic()
        self.process.terminate()
        code = self.process.exit_code(within=grace)
        assert code == 0, f"{self.name} ended with {code}:\n" + "\n".join(self.said())
        return time.monotonic() - began

    def kill(self):
        """The container is gone; the volumes are not."""
        self.process.stop()
        self.past, self.process = self.said(), None

    def remove(self):
        if self.process:
            self.kill()
        for mount in reversed(self.mounts):
            subprocess.run(["umount", "--lazy", str(mount)], check=True)
        self.mounts = []


class Central(Sandbox):
    """The sandbox's control surface, of a sandbox that runs as a pod."""

    def __init__(self, address):
        self.address = address

    def another_refresh_token(self):
        """One that nobody has presented yet, as a person downloads it."""
        known = self.credentials()
        grant = {
            "grant_type": "refresh_token",
            **{key: known[key] for key in ("client_id", "client_secret", "refresh_token")},
        }
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request("POST", "/oauth2/token?" + urllib.parse.urlencode(grant))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer["refresh_token"]

    def token_exchanges(self):
        """How many exchanges of a refresh token Central has answered with a new pair."""
        return sum(call["status"] == 200 for call in self._control("GET", "calls?operation=token"))

    def forget_calls(self):
        self._control("DELETE", "calls")
