"""Takes licences away through license-gateway: the call, its deadline, its failure, and what to do then.

    python unassign.py ADDRESS SERVICE CUSTOMER_ID...

Exits with 0: applied; 2: not applied, nothing was changed; 3: unknown or partial, look before anything is repeated.
What it needs and how to make the stubs is in docs/clients.md.
"""

import pathlib
import sys
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from central.licensing.v1 import licensing_pb2, licensing_pb2_grpc

DEADLINE = 60  # seconds for all of it, waits and repeats included
SERVICE_CONFIG = pathlib.Path(__file__).parent.parent / "service-config.json"


def main(address, service, customer_ids):
    request = licensing_pb2.UnassignLicensesRequest(
        include_customers=licensing_pb2.CustomerList(customer_ids=customer_ids),
        services=[service],
        reason="TICKET-42",
        # Every repeat of this request has it, whoever repeats: it acts once. Keep it where a restart of yours finds it.
        request_id=str(uuid.uuid4()),
    )
    deadline = time.monotonic() + DEADLINE
    # TLS: grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), …).
    with grpc.insecure_channel(address, [("grpc.service_config", SERVICE_CONFIG.read_text())]) as channel:
        licensing = licensing_pb2_grpc.LicensingServiceStub(channel)
        while True:
            try:
                answer = licensing.UnassignLicenses(request, timeout=deadline - time.monotonic())
                print("applied", answer.operation_id)
                return 0
            except grpc.RpcError as error:
                failure = Failure(error)
            print(failure.code, failure.reason, failure.outcome, failure.operation_id)

            # A wait is named only where waiting helps. Who waits past the deadline learns nothing more.
            wait = failure.wait
            # What the gateway did not answer is asked again: by the id it gives the first answer.
            if (failure.code, failure.reason) == ("UNAVAILABLE", "-") and time.monotonic() + 1 < deadline:
                time.sleep(1)
                continue
            if failure.outcome == "not_applied" and wait is not None and time.monotonic() + wait < deadline:
                print(f"again in {wait:.1f} s")
                time.sleep(wait)
                continue
            return conclude(failure)


def conclude(failure):
    """Says what is to be done by a person or by the program above this one."""
    if failure.outcome == "not_applied":
        print("nothing was changed")
        return 2
    if failure.partial is not None:
        print("applied:", *failure.partial.applied_customer_ids)
        print("may be repeated:", *failure.partial.not_applied_customer_ids)
        print("look first:", *failure.partial.unknown_customer_ids)
    else:
        print("look at the customers' licences before repeating")
    return 3


class Failure:
    """What the details of a failed call say."""

    def __init__(self, error):
        self.code = error.code().name
        # Without our details something between here and the gateway answered, and nobody knows what was done.
        self.reason, self.outcome, self.operation_id = "-", "unknown", "-"
        self.wait = self.partial = None

        info, retry, partial = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            licensing_pb2.PartialOutcome(),
        )
        status = rpc_status.from_call(error)
        for detail in status.details if status else []:
            if detail.Unpack(info) and info.domain == "license-gateway":
                self.reason = info.reason
                self.outcome = info.metadata["outcome"]
                self.operation_id = info.metadata["operation_id"]
            elif detail.Unpack(retry):
                self.wait = retry.retry_delay.ToMilliseconds() / 1000
            elif detail.Unpack(partial):
                self.partial = partial


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
