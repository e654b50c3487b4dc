"""Looks into the images that scripts/image has built, and runs them. `make test-image` calls it, as root.

    unshare --net python3 check.py

Runs in a network of its own, so that containers can have the ports they really have and DNS can be played at its own
port. The containers run under runc as a cluster would run them: numeric user, read-only root, no capabilities, no new
privileges. Needs nothing but Python, buildah and runc.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "target" / "image"
BUILDAH = ["buildah", "--root", str(WORK / "storage"), "--runroot", str(WORK / "run"), "--storage-driver", "vfs"]
USER = 65532
CUSTOMER = "267958b55d5a463e94a302c20f4a6b68"  # of the sandbox's account
WITHIN = 30  # seconds, for whatever a process has to do

# Names that only DNS, or only /etc/hosts, knows.
BY_DNS, BY_HOSTS = "central.test", "gateway-by-hosts"


def main():
    loopback_up()
    version = output("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1")
    version = json.loads(version)["packages"][0]["version"]
    with Image("license-gateway", version) as production, Image("license-gateway-sandbox", version) as sandbox:
        for check in (holds_only_what_it_should, says_what_it_is, tells_nothing_of_its_build, carries_its_crates):
            for image in (production, sandbox):
                check(image)
                print(f"test {image.name}::{check.__name__} ... ok", flush=True)
        for check in (production_has_no_sandbox, demo_runs, gateway_works_and_ends, trusts_whom_the_bundle_names):
            check(production, sandbox)
            print(f"test {check.__name__} ... ok", flush=True)


# ---- looking ----


def holds_only_what_it_should(image):
    # The whole list: no shell, no package manager, no library, nothing that nobody put there.
    expected = {
        "etc": (0o755, 0),
        "etc/ssl": (0o755, 0),
        "etc/ssl/certs": (0o755, 0),
        "etc/ssl/certs/ca-certificates.crt": (0o644, 0),
        image.program: (0o755, 0),
        "var": (0o755, 0),
        "var/lib": (0o755, 0),
        "var/lib/license-gateway": (0o755, USER),
    }
    if image.name == "license-gateway-sandbox":
        expected["tmp"] = (0o1777, 0)
    found = {}
    for path in image.root.rglob("*"):
        status = path.lstat()
        assert status.st_uid == status.st_gid, path
        found[str(path.relative_to(image.root))] = (status.st_mode & 0o7777, status.st_uid)
    assert found == expected, found
    assert (image.root / "etc/ssl/certs/ca-certificates.crt").read_text().count("BEGIN CERTIFICATE") > 50
    binary = image.binary()
    assert b"/lib64/ld-linux" not in binary and b"/lib/ld-linux" not in binary, "not static"


def says_what_it_is(image):
    config = image.config
    assert config["User"] == f"{USER}:{USER}", config
    assert config["Entrypoint"] == [f"/{image.program}"] and config["Cmd"] == ["serve"], config
    assert config["Healthcheck"]["Test"] == ["CMD", f"/{image.program}", "health"], config
    assert {"50051/tcp", "9464/tcp"} <= set(config["ExposedPorts"]), config
    assert not config["Volumes"], "a volume that nobody chose loses the token in silence"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == image.name and labels["description"], labels
    assert labels["version"] == image.version, labels
    assert re.fullmatch("[0-9a-f]{40}|unknown", labels["revision"]), labels
    assert not [name for name in config["Env"] if not name.startswith("PATH=")], config["Env"]


def tells_nothing_of_its_build(image):
    binary = image.binary()
    home = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    # However this machine's registries are called.
    registries = pathlib.Path(home, "registry", "src")
    for where in (
        *(registry.name for registry in (registries.iterdir() if registries.is_dir() else ())),
        str(ROOT),
        home,
        "/usr/local/cargo",
        "/src/src/",
        "/target/",
        "registry/src",
    ):
        at = binary.find(where.encode())
        # `/target/` may stand in the middle of a longer path that was remapped.
        assert at < 0, f"{where} stands in the binary: {binary[max(at - 40, 0) : at + 80]!r}"
    assert b"PRIVATE KEY-----\n" not in binary.replace(b"BEGIN ", b""), "a private key"


def carries_its_crates(image):
    crates = auditable(image.binary())
    names = {crate["name"] for crate in crates}
    assert {"license-gateway", "tonic", "rustls", "reqwest", "redis", "kube-client"} <= names, names
    # What is said is locked, and nothing is missing. (It says more than is linked: features that are off count as on.)
    listed = {(crate["name"], crate["version"]) for crate in crates}
    locked = set(re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"', (ROOT / "Cargo.lock").read_text()))
    assert listed <= locked, listed - locked
    options = ["--edges", "normal", "--prefix", "none", "--format", "{p}", "--package", image.program]
    tree = output("cargo", "tree", "--locked", *options)
    linked = set(re.findall(r"^(\S+) v(\S+)", tree, re.M))
    assert linked <= listed, linked - listed
    [root] = [crate for crate in crates if crate.get("root")]
    assert (root["name"], root["version"]) == (image.program, image.version), root


def production_has_no_sandbox(production, sandbox):
    for command in ("sandbox", "demo"):
        with Container(production, [command]) as container:
            code = container.ended()
        assert code == 64, f"{command}: {code}"
        assert any("unrecognized subcommand" in line for line in container.said), container.said
    check = ROOT / "scripts/check-production"
    output(check, production.root / production.program)
    assert subprocess.run([check, sandbox.root / sandbox.program], capture_output=True).returncode == 1  # the control


# ---- running ----


def demo_runs(production, sandbox):
    with Container(sandbox, ["demo", "--once"], tmpfs=["/tmp"]) as container:
        assert container.ended() == 0, container.said
    assert any("outcome           applied" in line for line in container.said), container.said


def gateway_works_and_ends(production, sandbox):
    with (
        tempfile.TemporaryDirectory(prefix="license-gateway-image-") as folder,
        dns() as questions,
        Container(sandbox, ["sandbox", "--listen", "0.0.0.0:8085"]) as central,
    ):
        central.first_line()
        credentials = json.loads(get("http://127.0.0.1:8085/__sandbox/credentials"))
        secrets, state = pathlib.Path(folder, "secrets"), pathlib.Path(folder, "state")
        secrets.mkdir()
        state.mkdir()
        os.chown(state, USER, USER)
        for name in ("client_secret", "refresh_token"):
            (secrets / name).write_text(credentials[name])
            (secrets / name).chmod(0o400)
            os.chown(secrets / name, USER, USER)
        (secrets / "gateway.toml").write_text(f"""
            [central]
            base_url = "http://{BY_DNS}:8085"
            allow_plaintext = true

            [credentials]
            client_id = "{credentials["client_id"]}"
            client_secret_file = "/run/secrets/client_secret"
            refresh_token_file = "/run/secrets/refresh_token"

            [[callers]]
            identity = "anonymous"
            rpcs = ["UnassignLicenses", "ListServices"]
            scopes = ["include"]
            services = "*"
            customers = "*"
            """.replace("\n            ", "\n"))
        gateway = Container(
            production,
            None,  # as the image says: serve
            environment={
                "LICENSE_GATEWAY_CONFIG": "/run/secrets/gateway.toml",
                "LICENSE_GATEWAY__SERVER__LISTEN": "127.0.0.1:50051",
            },
            mounts={"/run/secrets": (secrets, "ro"), "/var/lib/license-gateway": (state, "rw")},
        )
        with gateway:
            assert gateway.first_line()["listen"] == "127.0.0.1:50051", gateway.said
            # The image's own health check, and one over a name in /etc/hosts.
            health = production.config["Healthcheck"]["Test"][1:]
            assert gateway.runs(*health) == (0, "SERVING"), gateway.said
            assert gateway.runs(*health, "--address", f"http://{BY_HOSTS}:50051") == (0, "SERVING")

            code, said = gateway.runs(
                "/license-gateway", "unassign", "--include", CUSTOMER, "--service", "advanced_ap", "--json"
            )
            assert code == 0, (said, gateway.said)
            assert json.loads(said)["outcome"] == "applied", said
            assert CUSTOMER in get("http://127.0.0.1:8085/__sandbox/calls?operation=unassign")
            assert BY_DNS in questions, "nobody asked DNS for Central"

            # What it keeps is where the image's working directory says, and nothing else could be written.
            token = state / "state" / "token.json"
            assert token.stat().st_uid == USER and token.stat().st_mode & 0o777 == 0o600, oct(token.stat().st_mode)
            assert list((state / "state" / "audit").glob("audit-*.jsonl")), list(state.rglob("*"))
            assert b"license_gateway" in get("http://127.0.0.1:9464/metrics").encode()

            gateway.signal("TERM")
            assert gateway.ended() == 0, gateway.said
            assert gateway.runs(*health)[0] != 0  # the control: who is gone is not healthy


def trusts_whom_the_bundle_names(production, sandbox):
    with tempfile.TemporaryDirectory(prefix="license-gateway-image-") as folder:
        secrets = pathlib.Path(folder)
        authority(secrets, BY_HOSTS)
        for name in ("client_secret", "refresh_token"):
            (secrets / name).write_text("unused-here")
        for path in (secrets, *secrets.iterdir()):
            os.chown(path, USER, USER)
        environment = {
            "CENTRAL__BASE_URL": "https://central.invalid",
            "CREDENTIALS__CLIENT_ID": "unused-here",
            "CREDENTIALS__CLIENT_SECRET_FILE": "/run/secrets/client_secret",
            "CREDENTIALS__REFRESH_TOKEN_FILE": "/run/secrets/refresh_token",
            "TLS__CERTIFICATE_FILE": "/run/secrets/server.pem",
            "TLS__KEY_FILE": "/run/secrets/server.key",
        }
        environment = {f"LICENSE_GATEWAY__{key}": value for key, value in environment.items()}
        health = production.config["Healthcheck"]["Test"][1:]
        for trusted in (True, False):
            state = pathlib.Path(folder, f"state-{trusted}")
            state.mkdir()
            os.chown(state, USER, USER)
            mounts = {"/run/secrets": (secrets, "ro"), "/var/lib/license-gateway": (state, "rw")}
            if trusted:
                mounts["/etc/ssl/certs/ca-certificates.crt"] = (secrets / "authority.pem", "ro")
            with Container(production, None, environment=environment, mounts=mounts) as gateway:
                gateway.first_line()
                code, said = gateway.runs(*health, "--address", f"https://{BY_HOSTS}:50051")
            assert (code, said == "SERVING") == ((0, True) if trusted else (1, False)), (trusted, code, said)


# ---- what that needs ----


def authority(folder, name):
    """An authority of our own, authority.pem, and a server's certificate and key: server.pem, server.key."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    here = {"cwd": folder}
    output(
        "openssl",
        "req",
        "-x509",
        *new_key,
        "-keyout",
        "authority.key",
        "-out",
        "authority.pem",
        "-days",
        "2",
        "-subj",
        "/CN=authority",
        **here,
    )
    output("openssl", "req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={name}", **here)
    (folder / "extensions").write_text(f"subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\n")
    signed_by = ["-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial"]
    output(
        "openssl",
        "x509",
        "-req",
        "-in",
        "server.csr",
        *signed_by,
        "-out",
        "server.pem",
        "-days",
        "2",
        "-extfile",
        "extensions",
        **here,
    )


class Image:
    """An image of our storage, unpacked."""

    def __init__(self, name, version):
        self.name, self.version = name, version
        self.program = "license-gateway-demo" if name == "license-gateway-sandbox" else name
        self.config = json.loads(output(*BUILDAH, "inspect", "--type", "image", f"localhost/{name}:{version}"))[
            "Docker"
        ]["config"]

    def __enter__(self):
        self.container = output(*BUILDAH, "from", "--pull-never", f"localhost/{self.name}:{self.version}").strip()
        self.root = pathlib.Path(output(*BUILDAH, "mount", self.container).strip())
        return self

    def __exit__(self, *raised):
        output(*BUILDAH, "rm", self.container)

    def binary(self):
        return (self.root / self.program).read_bytes()


class Container:
    """A container of an image under runc."""

    numbers = iter(range(1, 1000))

    def __init__(self, image, command, environment=None, mounts=None, tmpfs=()):
        self.name = f"license-gateway-{os.getpid()}-{next(self.numbers)}"
        self.said = []
        config = image.config
        self.bundle = tempfile.TemporaryDirectory(prefix="license-gateway-bundle-")
        output("runc", "spec", cwd=self.bundle.name)
        path = pathlib.Path(self.bundle.name, "config.json")
        spec = json.loads(path.read_text())
        hosts = pathlib.Path(self.bundle.name, "hosts")
        hosts.write_text(f"127.0.0.1 localhost {BY_HOSTS}\n")
        resolv = pathlib.Path(self.bundle.name, "resolv.conf")
        resolv.write_text("nameserver 127.0.0.1\n")
        mounts = {"/etc/hosts": (hosts, "ro"), "/etc/resolv.conf": (resolv, "ro"), **(mounts or {})}
        uid, gid = map(int, config["User"].split(":"))
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            "args": config["Entrypoint"] + (config["Cmd"] if command is None else command),
            "env": config["Env"] + [f"{key}={value}" for key, value in (environment or {}).items()],
            "cwd": config["WorkingDir"],
            "noNewPrivileges": True,
            "capabilities": {},
        }
        spec["root"] = {"path": str(image.root), "readonly": True}
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] not in ("cgroup", "sysfs", "mqueue")]
        spec["mounts"] += [
            {"type": "bind", "source": str(source), "destination": destination, "options": ["bind", mode]}
            for destination, (source, mode) in mounts.items()
        ]
        spec["mounts"] += [
            {"type": "tmpfs", "source": "tmpfs", "destination": where, "options": ["mode=1777"]} for where in tmpfs
        ]
        # The network is ours, which is cut off from everything already.
        spec["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
        spec["linux"].pop("resources", None)
        path.write_text(json.dumps(spec))

    def __enter__(self):
        self.process = subprocess.Popen(
            ["runc", "run", "--bundle", self.bundle.name, self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.first = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return self

    def __exit__(self, *raised):
        if raised[0]:
            print("\n".join(f"{self.name}: {line}" for line in self.said), file=sys.stderr)
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True)
        self.process.wait(timeout=WITHIN)
        self.bundle.cleanup()

    def first_line(self):
        """What it says first: where it listens. That is readiness, nobody sleeps."""
        assert self.first.wait(WITHIN), f"{self.name} says nothing"
        assert self.said, f"{self.name} ended and said nothing"
        return json.loads(self.said[0])

    def runs(self, *command):
        """A command inside of the container: exit code and output."""
        ended = subprocess.run(["runc", "exec", self.name, *command], capture_output=True, text=True, timeout=WITHIN)
        return ended.returncode, (ended.stdout or ended.stderr).strip()

    def signal(self, name):
        output("runc", "kill", self.name, name)

    def ended(self):
        """The exit code of the process that has ended by itself."""
        code = self.process.wait(timeout=WITHIN)
        self.reader.join(WITHIN)
        return code

    def _read(self):
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            self.first.set()
        self.first.set()


@contextlib.contextmanager
def dns():
    """Answers at 127.0.0.1:53 for one name; gives the names that were asked for."""
    asked = []
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))

    def serve():
        while (packet := server.recvfrom(512))[0]:  # an empty one ends it
            answer_one(*packet)

    def answer_one(question, client):
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode())
            at += 1 + question[at]
        name, (kind,) = ".".join(labels), struct.unpack("!H", question[at + 1 : at + 3])
        asked.append(name)
        known = name == BY_DNS
        answer = known and kind == 1  # A
        head = question[:2] + struct.pack("!HHHHH", 0x8580 | (0 if known else 3), 1, int(answer), 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes([127, 0, 0, 1]) if answer else b""
        server.sendto(head + question[12 : at + 5] + record, client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        server.sendto(b"", server.getsockname())
        thread.join()
        server.close()


def auditable(binary):
    """The list of crates in the ELF section .dep-v0."""
    assert binary[:6] == b"\x7fELF\x02\x01", "64 bits, little-endian"
    table, size, count, names = struct.unpack_from("<Q10xHHH", binary, 0x28)

    def section(index):
        return struct.unpack_from("<II8x8xQQ", binary, table + index * size)

    names_at = section(names)[2]
    for index in range(count):
        name, _, at, length = section(index)
        if binary[names_at + name : names_at + name + 8] == b".dep-v0\0":
            return json.loads(zlib.decompress(binary[at : at + length]))["packages"]
    raise AssertionError("the binary carries no list of its crates")


def loopback_up():
    """Our network has nothing but a loopback, and that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        interfaces = [name for _, name in socket.if_nameindex()]
        assert interfaces == ["lo"], f"run this by unshare --net: it would use {interfaces}"
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, up and running


def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
        return response.read().decode()


def output(*command, cwd=ROOT):
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
    return ended.stdout


if __name__ == "__main__":
    main()
