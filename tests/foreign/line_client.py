"""Clients in a process of their own, asked in lines of JSON: {id, op, …} in, {id, …} out."""

import dataclasses
import hashlib
import itertools
import json
import queue
import shutil
import subprocess
import threading

from answer import Answer, Stream
from python_client import service_config


def made_of(folder, sources, make):
    """Makes a program in a folder, unless it stands there already, made of the same sources."""
    digest = hashlib.sha256()
    for path in sorted(path for source in sources for path in source.rglob("*") if path.is_file()):
        digest.update(f"{path} {path.stat().st_size}\n".encode() + path.read_bytes())
    complete = folder / "complete"
    if not complete.exists() or complete.read_text() != digest.hexdigest():
        complete.unlink(missing_ok=True)
        make()
        complete.write_text(digest.hexdigest())


def run_or_fail(command, folder, environment, needed):
    """Runs a command that makes something; `needed` says what a machine lacks that has no such command."""
    assert shutil.which(command[0]), f"{command[0]} is not installed: {needed}"
    made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"{command}: {made.stdout}{made.stderr}"


class LineClient:
    """What the clients share. A subclass has a `name`, and says what is started."""

    # Whether the program says when it has started, because that takes long: by a line with the id 0.
    says_ready = False

    def __init__(self, address, tools, retries=False, shown=None):
        settings = {
            "address": address,
            "includeDirs": [str(path) for path in tools.include_dirs],
            "retries": service_config(retries) if retries else None,
            "shown": shown and dataclasses.asdict(shown),
        }
        command, environment = self.make(tools)
        self.process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ids = itertools.count(1)
        ready = threading.Event()
        self.waiting = {0: lambda line: ready.set()}
        self.writing = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()
        assert not self.says_ready or ready.wait(60), f"{self.name} did not start (exit code {self.process.poll()})"

    @staticmethod
    def make(tools):
        """Makes the program, where it has to be made; the command and its environment."""
        raise NotImplementedError

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=30) == 0, f"the client {self.name} broke"

    def unassign(self, request, timeout=None):
        return self._ask("unassign", request=request, timeout_ms=timeout and round(timeout * 1000))

    def list_services(self):
        return self._ask("list_services")

    def watch_release(self, request):
        """All messages of the stream."""
        answer = self._ask("watch_release", request=request)
        assert answer.code == "OK", answer
        return answer.response["messages"]

    def call_unknown(self, path):
        return self._ask("call_unknown", path=path)

    def health_check(self, service):
        return self._ask("health_check", request={"service": service})

    def health_list(self):
        return self._ask("health_list")

    def health_watch(self, service):
        ident = next(self.ids)
        stream = Stream(cancel=lambda: self._send({"op": "cancel", "stream": ident}))

        def on_line(line):
            if "ended" in line:
                stream.end(line["ended"])
            else:
                stream.feed(line["status"])

        self.waiting[ident] = on_line
        self._send({"id": ident, "op": "health_watch", "request": {"service": service}})
        return stream

    def _ask(self, op, **arguments):
        ident, replies = next(self.ids), queue.Queue()
        self.waiting[ident] = replies.put
        self._send({"id": ident, "op": op} | arguments)
        try:
            reply = replies.get(timeout=60)
        except queue.Empty:
            raise AssertionError(f"{self.name} gave no answer to {op} (exit code {self.process.poll()})") from None
        del reply["id"]
        return Answer(**reply)

    def _send(self, line):
        with self.writing:
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def _read(self):
        for text in self.process.stdout:
            line = json.loads(text)
            self.waiting[line["id"]](line)
