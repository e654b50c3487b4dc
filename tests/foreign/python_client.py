"""grpcio, as a Python team would use it: generated stubs, grpcio-status, grpcio-health-checking, grpcio-reflection."""

import json
import threading

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from answer import Answer, Stream, read_details, to_dict
from central.licensing.v1 import licensing_pb2, licensing_pb2_grpc

# A caller who repeats whatever fails, as quickly as it can. Only the trailer stops it.
AGGRESSIVE_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.05s",
                "backoffMultiplier": 1.5,
                "retryableStatusCodes": ["UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "UNKNOWN", "ABORTED"],
            },
        }
    ]
}


def channel_credentials(shown):
    """TLS with the certificate, if there is one; the token, if there is one, goes with every call."""
    pem = (text and text.encode() for text in (shown.ca, shown.key, shown.certificate))
    tls = grpc.ssl_channel_credentials(*pem)
    if not shown.token:
        return tls
    return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(shown.token))


def service_config(retries):
    """What a case means by `retries`: the caller above, or a service config of its own."""
    return AGGRESSIVE_RETRIES if retries is True else retries


class GrpcioClient:
    name = "grpcio"

    def __init__(self, address, tools, retries=False, shown=None):
        del tools
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
        if retries:
            options.append(("grpc.service_config", json.dumps(service_config(retries))))
        if shown:
            self.channel = grpc.secure_channel(address, channel_credentials(shown), options)
        else:
            self.channel = grpc.insecure_channel(address, options)
        self.licensing = licensing_pb2_grpc.LicensingServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def close(self):
        self.channel.close()

    def unassign(self, request, timeout=None):
        message = json_format.ParseDict(request, licensing_pb2.UnassignLicensesRequest())
        return answer(self.licensing.UnassignLicenses, message, timeout)

    def preview(self, request):
        message = json_format.ParseDict(request, licensing_pb2.PreviewUnassignLicensesRequest())
        return answer(self.licensing.PreviewUnassignLicenses, message)

    def list_services(self):
        return answer(self.licensing.ListServices, licensing_pb2.ListServicesRequest())

    def watch_release(self, request):
        """All messages of the stream."""
        message = json_format.ParseDict(request, licensing_pb2.WatchReleaseRequest())
        return [to_dict(update) for update in self.licensing.WatchRelease(message, timeout=60)]

    def call_unknown(self, path):
        return answer(self.channel.unary_unary(path), b"")

    def health_check(self, service):
        return answer(self.health.Check, health_pb2.HealthCheckRequest(service=service))

    def health_list(self):
        return answer(self.health.List, health_pb2.HealthListRequest())

    def health_watch(self, service):
        call = self.health.Watch(health_pb2.HealthCheckRequest(service=service))
        stream = Stream(call.cancel)

        def pump():
            try:
                for message in call:
                    stream.feed(to_dict(message)["status"])
                stream.end("OK")
            except grpc.RpcError as error:
                stream.end(error.code().name)

        threading.Thread(target=pump, daemon=True).start()
        return stream

    def reflected_services(self):
        """The names that reflection lists. grpcio speaks v1alpha."""
        return ProtoReflectionDescriptorDatabase(self.channel).get_services()


def answer(method, request, timeout=None):
    """Calls and reads whatever comes back."""
    try:
        response, call = method.with_call(request, timeout=timeout)
    except grpc.RpcError as error:
        # from_call also checks that code and message are the same in the status and in its details.
        status = rpc_status.from_call(error)
        return Answer(
            code=error.code().name,
            message=error.details(),
            details=read_details(status) if status else {},
            trailers=trailers(error),
        )
    return Answer(code="OK", response=to_dict(response), trailers=trailers(call))


def trailers(call):
    return {key: value for key, value in call.trailing_metadata() or () if isinstance(value, str)}
