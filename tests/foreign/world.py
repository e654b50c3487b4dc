"""The processes under test: the sandbox that plays Central, and the gateway in front of it."""

import collections
import dataclasses
import http.client
import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time
import urllib.parse

START_WITHIN = 20  # seconds; a debug binary on a busy machine


@dataclasses.dataclass(frozen=True)
class Tools:
    """Where things are."""

    here: pathlib.Path
    binary: pathlib.Path
    buf: pathlib.Path
    node_modules: pathlib.Path
    # Where clients are made that have to be made.
    target: pathlib.Path
    # For clients that read .proto files: the contract, what it imports, and the google.rpc messages.
    include_dirs: tuple


class Process:
    """A command of the binary. Its first line on stdout says where it listens: that is readiness, nobody sleeps."""

    def __init__(self, command, environment=None):
        words = (pathlib.Path(command[0]).name, command[1])
        self.name = " ".join(word for word in words if not word.startswith("-"))
        self.said = collections.deque(maxlen=60)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        first = queue.Queue()

        def read(pipe, on_line):
            for line in pipe:
                self.said.append(line.rstrip())
                on_line(line)
            on_line("")  # the process is gone

        for pipe, on_line in ((self.process.stdout, first.put), (self.process.stderr, lambda line: None)):
            threading.Thread(target=read, args=(pipe, on_line), daemon=True).start()
        try:
            line = first.get(timeout=START_WITHIN)
            self.first_line = json.loads(line)
        except (queue.Empty, json.JSONDecodeError):
            self.stop()
            raise AssertionError(f"{self.name} did not say where it listens:\n" + "\n".join(self.said)) from None

    def terminate(self):
        """SIGTERM, as an orchestrator would send it."""
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, within):
        try:
            return self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs {within} s after SIGTERM") from None

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Sandbox(Process):
    """The program `central-sandbox`, and its control surface below /__sandbox/."""

    def __init__(self, tools):
        super().__init__([str(tools.binary.with_name("central-sandbox")), "--listen", "127.0.0.1:0"], clean_environment())
        self.base_url = self.first_line["base_url"].rstrip("/")
        self.address = urllib.parse.urlsplit(self.base_url).netloc

    def credentials(self):
        return self._control("GET", "credentials")

    def becomes(self, **settings):
        """Changes what Central is like, for every call from now on."""
        self._control("PATCH", "settings", settings)

    def unassignments(self):
        """The bodies of the DELETEs that Central has seen, carried out or not."""
        return [call["body"] for call in self._control("GET", "calls?operation=unassign")]

    def has_seen_an_unassignment(self, within=20):
        """Waits until the first DELETE has come."""
        deadline = time.monotonic() + within
        while not self.unassignments():
            assert time.monotonic() < deadline, f"Central saw no DELETE within {within} s"
            time.sleep(0.01)

    # What Central does to every DELETE from now on. Faults are a script: each call takes the first meant for it.

    def answers(self, status, times=None, customer=None, **answer):
        """Central answers this and does nothing; only so many times, only to DELETEs that name this customer."""
        self._fault({"times": times, "customer": customer, "reply": {"answer": {"status": status} | answer}})

    def takes(self, seconds):
        """Central does it, but takes its time."""
        self._fault({"before": {"delay_ms": round(seconds * 1000)}})

    def holds(self, gate, customer=None):
        """Central waits at the gate, then does it."""
        self._fault({"before": {"gate": gate}, "customer": customer})

    def releases(self, gate):
        """Opens the gate for the calls that wait there."""
        released = self._control("POST", f"gates/{gate}/release")["released"]
        assert released == 1, f"{released} calls waited at the gate"

    def loses_connection(self):
        """Central does it and resets the connection instead of answering."""
        self.does_it_and_replies("reset")

    def does_it_and_replies(self, reply, times=None, **fault):
        """Central does it, and what its caller gets to see is this."""
        self._fault({"reply": reply, "applied": True, "times": times} | fault)

    def _fault(self, fault):
        self._control("POST", "faults", {"operation": "unassign", "times": None} | fault)

    def _control(self, method, path, body=None):
        # http.client goes straight there, whatever proxy the environment names.
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request(
            method,
            f"/__sandbox/{path}",
            body=None if body is None else json.dumps(body),
            headers={} if body is None else {"content-type": "application/json"},
        )
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert response.status // 100 == 2, f"{method} /__sandbox/{path} {body}: {response.status} {text}"
        return json.loads(text) if text else None


ANONYMOUS = """
            [[callers]]
            identity = "anonymous"
            rpcs = ["UnassignLicenses", "PreviewUnassignLicenses", "ListServices", "WatchRelease", "ListCustomers"]
            scopes = ["include", "exclude", "all"]
            services = "*"
            customers = "*"
"""


class Gateway(Process):
    """`license-gateway serve`, on a free port, with a token store of its own."""

    def __init__(self, tools, sandbox, folder, settings, knows=None):
        """`knows`: the Credentials of its callers; without them they are anonymous."""
        credentials = sandbox.credentials()
        (folder / "client_secret").write_text(credentials["client_secret"])
        (folder / "refresh_token").write_text(credentials["refresh_token"])
        for file in ("client_secret", "refresh_token"):
            (folder / file).chmod(0o600)
        config = folder / "config.toml"
        config.write_text(
            f"""
            [server]
            listen = "127.0.0.1:0"

            [admin]
            listen = "127.0.0.1:0"

            [central]
            base_url = {json.dumps(sandbox.base_url)}
            allow_plaintext = true
            timeout = "30s"

            [credentials]
            client_id = {json.dumps(credentials["client_id"])}
            client_secret_file = {json.dumps(str(folder / "client_secret"))}
            refresh_token_file = {json.dumps(str(folder / "refresh_token"))}

            [token_store]
            path = {json.dumps(str(folder / "state"))}

            [audit]
            path = {json.dumps(str(folder / "audit"))}

            [log]
            format = "json"
            """
            + (knows.config if knows else ANONYMOUS)
        )
        # What a case sets goes the other way, through the environment.
        environment = clean_environment()
        for key, value in settings.items():
            environment["LICENSE_GATEWAY__" + key.replace(".", "__").upper()] = value
        self.start = ([str(tools.binary), "serve", "--config", str(config)], environment)
        super().__init__(*self.start)
        self.address = self.first_line["listen"]

    def crashes_and_starts_again(self):
        """kill -9, then the same files and settings on another port."""
        self.stop()
        super().__init__(*self.start)
        self.address = self.first_line["listen"]


def clean_environment():
    """Ours, without anything that would configure the gateway or its telemetry."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("LICENSE_GATEWAY", "OTEL_"))
    }
