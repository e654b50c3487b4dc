"""What callers prove who they are with: an authority's certificates and an issuer's tokens, made anew for every case.

Certificates are cryptography's, tokens are PyJWT's: nothing of it is the gateway's own code.
"""

import dataclasses
import datetime
import ipaddress
import json
import time

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

ISSUER = "https://issuer.test"
AUDIENCE = "license-gateway.test"
# The certificate's name and the token's subject of those whom the policy knows.
BILLING = "spiffe://msp.test/billing"
WORKER = "system:serviceaccount:offboarding:worker"


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a client shows: whom it trusts, its certificate with the key, its token. The first three are PEM."""

    ca: str
    certificate: str | None = None
    key: str | None = None
    token: str | None = None


class Authority:
    """A certificate authority."""

    def __init__(self, name):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        ends = x509.BasicConstraints(ca=True, path_length=None)
        self.pem = _pem(self._signed(self.name, self.key).add_extension(ends, critical=True), self.key)

    def issue(self, *names):
        """A certificate of these names, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._signed(x509.Name([]), key)
        # Without a subject, the names must be understood.
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return _pem(builder, self.key), _key_pem(key)

    def _signed(self, subject, key):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )


class Issuer:
    """An issuer of tokens with two keys, one of each kind that is believed unless told otherwise."""

    def __init__(self):
        self.keys = {
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
        }

    def key_set(self):
        keys = []
        for algorithm, key in self.keys.items():
            written = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
            keys.append(written | {"kid": algorithm, "alg": algorithm, "use": "sig"})
        return json.dumps({"keys": keys})

    def token(self, algorithm="RS256", key=None, **claims):
        now = int(time.time())
        whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": WORKER, "iat": now, "nbf": now, "exp": now + 600} | claims
        whole = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(whole, key or self.keys[algorithm], algorithm=algorithm, headers={"kid": algorithm})


class Credentials:
    """Files and settings of a gateway that knows its callers, and what good and bad callers show."""

    def __init__(self, folder):
        self.servers, self.callers, self.issuer = Authority("servers"), Authority("callers"), Issuer()
        certificate, key = self.servers.issue(
            x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        )
        files = {
            "server.pem": certificate,
            "server.key": key,
            "callers.pem": self.callers.pem,
            "keys.json": self.issuer.key_set(),
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        everything = """
            rpcs = ["UnassignLicenses", "ListServices"]
            scopes = ["include"]
            services = "*"
            customers = "*"
        """
        self.config = f"""
            [tls]
            certificate_file = {json.dumps(str(folder / "server.pem"))}
            key_file = {json.dumps(str(folder / "server.key"))}
            client_ca_file = {json.dumps(str(folder / "callers.pem"))}

            [jwt]
            issuer = "{ISSUER}"
            audience = "{AUDIENCE}"
            jwks_file = {json.dumps(str(folder / "keys.json"))}

            [[callers]]
            identity = "{BILLING}"
            {everything}

            [[callers]]
            token_subject = "{WORKER}"
            {everything}
        """

    def nothing(self):
        return Shown(ca=self.servers.pem)

    def certificate(self, name=BILLING, authority=None):
        certificate, key = (authority or self.callers).issue(x509.UniformResourceIdentifier(name))
        return Shown(ca=self.servers.pem, certificate=certificate, key=key)

    def token(self, text):
        return Shown(ca=self.servers.pem, token=text)


def _pem(builder, key):
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key):
    no_password = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, no_password).decode()
