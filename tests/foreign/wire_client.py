"""HTTP/2 by hand, with no gRPC library: what is measured here was sent by the server.

A gRPC library keeps the deadline on its own side too and makes up a DEADLINE_EXCEEDED when it passes, so a server that
answers late, or never, looks right. This client only writes `grpc-timeout` and waits for whatever comes.
"""

import base64
import socket
import struct
import time
import urllib.parse

import grpc
import h2.config
import h2.connection
import h2.events
from google.protobuf import json_format

from answer import Answer, read_details, read_status_bytes, to_dict
from central.licensing.v1 import licensing_pb2

CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class WireClient:
    name = "wire"

    def __init__(self, address, tools, retries=False):
        del tools
        assert not retries, "nothing here repeats"
        host, port = address.rsplit(":", 1)
        self.authority = address
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        # What the server may send is measured here, not limited.
        self.h2.decoder.max_header_list_size = 1 << 20
        self.h2.initiate_connection()
        self._flush()
        # The connection stands when the server's settings are here: what is measured later is the call alone.
        while not any(isinstance(event, h2.events.RemoteSettingsChanged) for event in self._events()):
            pass

    def close(self):
        self.socket.close()

    def unassign(self, request, timeout=None):
        message = json_format.ParseDict(request, licensing_pb2.UnassignLicensesRequest())
        path = "/central.licensing.v1.LicensingService/UnassignLicenses"
        answer, body = self.call(path, message.SerializeToString(), timeout)
        if answer.code == "OK":
            answer.response = to_dict(licensing_pb2.UnassignLicensesResponse.FromString(body))
        return answer

    def list_services(self):
        answer, body = self.call("/central.licensing.v1.LicensingService/ListServices", b"")
        if answer.code == "OK":
            answer.response = to_dict(licensing_pb2.ListServicesResponse.FromString(body))
        return answer

    def call_unknown(self, path):
        return self.call(path, b"")[0]

    def call(self, path, message, timeout=None):
        """One unary call; the answer and the bytes of its message."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self.authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        if timeout is not None:
            headers.append(("grpc-timeout", f"{round(timeout * 1000)}m"))

        started = time.monotonic()  # never the wall clock: it jumps
        self.h2.send_headers(stream, headers)
        self._send(stream, struct.pack(">BI", 0, len(message)) + message)

        received, data = [], b""
        ended = False
        while not ended:
            for event in self._events():
                if getattr(event, "stream_id", None) != stream:
                    assert not isinstance(event, h2.events.ConnectionTerminated), event
                elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    received.append(dict(event.headers))
                elif isinstance(event, h2.events.DataReceived):
                    data += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamReset):
                    # After a complete answer this only says: send no more of the request.
                    assert received and "grpc-status" in received[-1], f"reset with error code {event.error_code}"
                    ended = True
                elif isinstance(event, h2.events.StreamEnded):
                    ended = True
            self._flush()
        elapsed = time.monotonic() - started

        head, trailers = received[0], received[-1]
        assert head[":status"] == "200", head
        assert head["content-type"].startswith("application/grpc"), head
        answer = Answer(
            # As HTTP/2 counts the size of a header list (RFC 9113, 6.5.2).
            trailer_bytes=sum(len(name) + len(value) + 32 for name, value in trailers.items()),
            code=CODES[int(trailers["grpc-status"])],
            message=urllib.parse.unquote(trailers.get("grpc-message", "")),
            trailers=trailers,
            elapsed=elapsed,
        )
        encoded = trailers.pop("grpc-status-details-bin", None)
        if encoded is not None:
            status = read_status_bytes(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
            assert status.code == int(trailers["grpc-status"]), (status, trailers)
            answer.details = read_details(status)
        return answer, data[5:]

    def _send(self, stream, data):
        """Sends a body as fast as the server's flow control lets it, or until the server has had enough."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                break
            self.h2.send_data(stream, data[:room], end_stream=room >= len(data))
            data = data[room:]
            self._flush()
        assert not data, "this client sends small messages only"

    def _flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def _events(self):
        data = self.socket.recv(65536)
        assert data, "the server closed the connection"
        events = self.h2.receive_data(data)
        self._flush()
        return events
