"""What a client saw: one shape for every client, so that a case is written once."""

import dataclasses
import queue

from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from central.licensing.v1 import licensing_pb2

# Every detail that the contract names. A detail of another type is a failure: callers could not read it.
DETAILS = {
    f"type.googleapis.com/{message.DESCRIPTOR.full_name}": message
    for message in (
        error_details_pb2.BadRequest,
        error_details_pb2.ErrorInfo,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RequestInfo,
        error_details_pb2.RetryInfo,
        licensing_pb2.PartialOutcome,
    )
}


@dataclasses.dataclass
class Answer:
    """The end of a unary call."""

    code: str
    message: str = ""
    response: dict = dataclasses.field(default_factory=dict)
    # By the full name of the message, such as google.rpc.ErrorInfo. Durations are seconds.
    details: dict = dataclasses.field(default_factory=dict)
    trailers: dict = dataclasses.field(default_factory=dict)
    # Seconds from the first byte of the request to the last of the answer, where the client measures that.
    elapsed: float | None = None
    # How large the trailers are, where the client measures that.
    trailer_bytes: int | None = None

    def detail(self, name):
        """A google.rpc detail by its short name."""
        assert f"google.rpc.{name}" in self.details, f"no {name} in {self}"
        return self.details[f"google.rpc.{name}"]

    @property
    def reason(self):
        return self.detail("ErrorInfo")["reason"]

    @property
    def metadata(self):
        return self.detail("ErrorInfo")["metadata"]

    @property
    def pushback(self):
        """The trailer that stops gRPC libraries from repeating, in milliseconds."""
        assert "grpc-retry-pushback-ms" in self.trailers, f"no grpc-retry-pushback-ms in {self}"
        return int(self.trailers["grpc-retry-pushback-ms"])


def to_dict(message):
    """A message as the contract spells it, unset fields included."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def read_details(status):
    """The details of a google.rpc.Status."""
    found = {}
    for packed in status.details:
        assert packed.type_url in DETAILS, f"a detail that the contract does not name: {packed.type_url}"
        message = DETAILS[packed.type_url].FromString(packed.value)
        name = message.DESCRIPTOR.full_name
        assert name not in found, f"{name} stands twice"
        found[name] = to_dict(message)
        if name == "google.rpc.RetryInfo":
            found[name]["retry_delay"] = message.retry_delay.ToMilliseconds() / 1000
    return found


def read_status_bytes(data):
    """The google.rpc.Status of a grpc-status-details-bin trailer."""
    return status_pb2.Status.FromString(data)


class Stream:
    """The messages of a server stream as they come. `feed` and `end` are called from the client's own thread."""

    def __init__(self, cancel):
        self._events = queue.Queue()
        self.cancel = cancel

    def feed(self, message):
        self._events.put(("message", message))

    def end(self, code):
        self._events.put(("end", code))

    def next(self, within=5):
        """The next message."""
        kind, value = self._next(within)
        assert kind == "message", f"the stream ended with {value}"
        return value

    def ended(self, within=5):
        """The code that the stream ends with."""
        kind, value = self._next(within)
        assert kind == "end", f"another message: {value}"
        return value

    def stays_open(self, for_seconds):
        """Whether nothing happens for a while: the one wait here that is not for something."""
        try:
            event = self._events.get(timeout=for_seconds)
        except queue.Empty:
            return
        raise AssertionError(f"the stream did not stay open and silent: {event}")

    def _next(self, within):
        try:
            return self._events.get(timeout=within)
        except queue.Empty:
            raise AssertionError(f"nothing came within {within} s") from None
