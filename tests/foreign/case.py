"""What a case is, and who can run it. The cases stand in cases.py, large.py and proxies.py."""

import dataclasses
import re
from collections.abc import Callable

from buf_client import BufClient
from examples import PythonExample, TypeScriptExample
from go_client import GrpcGoClient
from java_client import GrpcJavaClient
from node_client import GrpcJsClient
from python_client import GrpcioClient
from wire_client import WireClient

LIBRARIES = (GrpcioClient, GrpcJsClient, GrpcGoClient, GrpcJavaClient)
EVERYONE = (*LIBRARIES, BufClient, WireClient)
EXAMPLES = (PythonExample, TypeScriptExample)

LICENSING = "central.licensing.v1.LicensingService"
# Customers of the sandbox's seeded account, and a service that they have.
CUSTOMERS = ["267958b55d5a463e94a302c20f4a6b68", "8c1d4e7fa2b349d0b6c5e8f90a1b2c3d"]
SERVICES = ["advanced_ap"]
REQUEST = {"include_customers": {"customer_ids": CUSTOMERS}, "services": SERVICES, "reason": "foreign client"}
UUID_V7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@dataclasses.dataclass(frozen=True)
class Case:
    """A case, the clients it runs with, and what is set differently in the gateway."""

    run: Callable
    clients: tuple
    settings: dict
    retries: bool
    # TLS, and callers who are somebody: `world.credentials`. Without it, plaintext and whoever comes.
    knows_callers: bool

    @property
    def name(self):
        return self.run.__name__


CASES = []


def case(*clients, settings=None, retries=False, knows_callers=False):
    def register(run):
        CASES.append(Case(run, clients, settings or {}, retries, knows_callers))
        return run

    return register
