"""`buf curl`: connect-go's gRPC client, which knows the contract from the server's reflection alone."""

import base64
import json
import re
import subprocess
import threading

from google.protobuf import json_format
from google.rpc import status_pb2

from answer import Answer, Stream, read_details, to_dict
from central.licensing.v1 import licensing_pb2
from grpc_health.v1 import health_pb2

# What -v writes to stderr of the headers and trailers that came back. Stream 1 is the reflection that finds the method.
ANSWERED = re.compile(r"buf: < \(#2\) (?P<name>[^:]+): ?(?P<value>.*)")


class BufClient:
    name = "buf-curl"

    def __init__(self, address, tools, retries=False):
        assert not retries, "buf curl does not repeat"
        self.base = f"http://{address}"
        self.buf = str(tools.buf)

    def close(self):
        pass

    def unassign(self, request, timeout=None):
        assert timeout is None, "buf curl has no deadline that it tells the server"
        method = "central.licensing.v1.LicensingService/UnassignLicenses"
        return self._call(method, request, licensing_pb2.UnassignLicensesResponse)

    def list_services(self):
        method = "central.licensing.v1.LicensingService/ListServices"
        return self._call(method, {}, licensing_pb2.ListServicesResponse)

    def watch_release(self, request):
        """All messages of the stream."""
        method = "central.licensing.v1.LicensingService/WatchRelease"
        done = self._run(self._command(method, "-d", json.dumps(request)))
        assert done.returncode == 0, done.stderr
        text, messages = done.stdout.strip(), []
        while text:
            message, end = json.JSONDecoder().raw_decode(text)
            messages.append(to_dict(json_format.ParseDict(message, licensing_pb2.WatchReleaseResponse())))
            text = text[end:].lstrip()
        return messages

    def health_check(self, service):
        return self._call("grpc.health.v1.Health/Check", {"service": service}, health_pb2.HealthCheckResponse)

    def health_list(self):
        return self._call("grpc.health.v1.Health/List", {}, health_pb2.HealthListResponse)

    def health_watch(self, service):
        process = subprocess.Popen(
            self._command("grpc.health.v1.Health/Watch", "-d", json.dumps({"service": service})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stream = Stream(process.terminate)

        def pump():
            text = ""
            for line in process.stdout:
                text += line
                try:
                    message = json.loads(text)
                except json.JSONDecodeError:
                    continue  # half a message
                text = ""
                stream.feed(message.get("status", "UNKNOWN"))
            process.wait()
            stream.end(json.loads(process.stderr.read() or '{"code": "ok"}')["code"].upper())

        threading.Thread(target=pump, daemon=True).start()
        return stream

    def reflected_services(self, version):
        """The names that reflection lists, by one version of its protocol: grpc-v1 or grpc-v1alpha."""
        return self._reflected("--list-services", version)

    def reflected_methods(self, version):
        return self._reflected("--list-methods", version)

    def _reflected(self, what, version):
        done = self._run(self._command("", what, "--reflect-protocol", version))
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def _call(self, method, request, response_type):
        done = self._run(self._command(method, "-v", "-d", "@-"), json.dumps(request))
        trailers, rest = {}, []
        for line in done.stderr.splitlines():
            if not line.startswith("buf: "):
                rest.append(line)  # the error, as JSON
            elif found := ANSWERED.match(line):
                trailers[found["name"].lower()] = found["value"]
        if done.returncode == 0:
            response = json_format.Parse(done.stdout, response_type())
            return Answer(code="OK", response=to_dict(response), trailers=trailers)

        assert done.returncode >= 8, done.stderr  # below 8: buf itself did not get along
        error = json.loads("\n".join(rest))
        status = status_pb2.Status()
        for detail in error.get("details", []):
            value = detail["value"]
            status.details.add(
                type_url=f"type.googleapis.com/{detail['type']}",
                value=base64.b64decode(value + "=" * (-len(value) % 4)),
            )
        return Answer(
            code=error["code"].upper(), message=error.get("message", ""), details=read_details(status), trailers=trailers
        )

    def _command(self, method, *options):
        return [self.buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *options, f"{self.base}/{method}"]

    @staticmethod
    def _run(command, stdin=""):
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
