"""What pods need around them, made anew for each story: certificates, secrets that somebody made, a Redis."""

import subprocess
import threading

from pod import HERE


def make_certificates(folder):
    """An authority, the server's certificate and two callers', made anew each time."""
    folder.mkdir()

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    openssl(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-days",
        "2",
        "-subj",
        "/CN=an authority",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign",
    )
    names = {
        "server": "DNS:license-gateway.msp.svc,DNS:localhost",
        "offboarding": "URI:spiffe://msp.example.com/offboarding",
        "dashboard": "URI:spiffe://msp.example.com/dashboard",
    }
    for name, alternative in names.items():
        usage = "serverAuth" if name == "server" else "clientAuth"
        extensions = ("-addext", f"subjectAltName={alternative}", "-addext", f"extendedKeyUsage={usage}")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", *extensions)
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-copy_extensions",
            "copyall",
            "-out",
            f"{name}.crt",
        )
    return {file.name: file.read_text() for file in folder.glob("*.*") if file.suffix in (".crt", ".key")}


# Any 32 bytes are a public key of this kind.
KEY_SET = '{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "plausible", "x": "%s"}]}' % ("A" * 43)


def plausible_secrets(rendered, certificates):
    """Everything that the pod mounts and nobody rendered."""
    made = {}
    for volume in rendered.pod()["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            ((kind, body),) = source.items()
            for item in body.get("items", []):
                path = item["path"]
                if path.endswith(".crt"):
                    text = certificates["server.crt" if "tls" in path or "client" in path else "ca.crt"]
                elif path.endswith(".key"):
                    text = certificates["server.key"]
                else:
                    text = KEY_SET if path.endswith("jwks.json") else "plausible"
                made.setdefault(body["name"], {})[item["key"]] = text
    for each in rendered.container()["env"]:
        reference = each.get("valueFrom", {}).get("secretKeyRef")
        if reference:
            made.setdefault(reference["name"], {})[reference["key"]] = "api-key=plausible"
    return made


class Redis:
    """A real redis-server, as the token store wants it."""

    def __init__(self, folder, password):
        data = folder / "redis"
        data.mkdir()
        (data / "redis.conf").write_text(
            f"bind {HERE}\nport 6379\ndir {data}\nappendonly yes\nappendfsync always\n"
            f'maxmemory-policy noeviction\nrequirepass "{password}"\n'
        )
        self.process = subprocess.Popen(
            ["redis-server", str(data / "redis.conf")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def __enter__(self):
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return self
        raise AssertionError("redis-server ended")

    def __exit__(self, kind, error, trace):
        self.process.kill()
        self.process.wait()
