"""A real Prometheus that scrapes one gateway every second, and its HTTP API."""

import http.client
import json
import pathlib
import re
import subprocess
import threading
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
RULES = HERE.parent.parent / "deploy" / "prometheus" / "rules.yaml"

START_WITHIN = 30  # seconds; a busy machine


class Prometheus:
    """`prometheus` on a free port. It says in its log which one: that, and the first scrape, is readiness."""

    def __init__(self, folder, admin):
        config = folder / "prometheus.yml"
        config.write_text(
            f"""
            global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
            rule_files: [{json.dumps(str(RULES))}]
            scrape_configs:
              - job_name: license-gateway
                static_configs: [{{ targets: [{json.dumps(admin)}] }}]
            """
        )
        self.log = []
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address, listening = None, threading.Event()

        def read():
            for line in self.process.stderr:
                self.log.append(line.rstrip())
                found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:[1-9][0-9]*)', line)
                if found:
                    self.address = found[1]
                    listening.set()
            listening.set()  # it is gone

        threading.Thread(target=read, daemon=True).start()
        listening.wait(START_WITHIN)
        if self.address is None:
            self.stop()
            raise AssertionError("Prometheus did not say where it listens:\n" + "\n".join(self.log))
        self.wait_for("Prometheus is ready", lambda: fetch(self.address, "/-/ready")[0] == 200)

    def get(self, path, **parameters):
        """What the API answers; an error of the query is an error here."""
        status, text = fetch(self.address, f"/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}")
        answer = json.loads(text)
        assert status == 200 and answer["status"] == "success", f"{path} {parameters}: {text}"
        assert not answer.get("warnings"), f"{path} {parameters}: {answer['warnings']}"
        return answer["data"]

    def instant(self, query):
        return self.get("query", query=query)["result"]

    def over_time(self, query, start, end, step):
        return self.get("query_range", query=query, start=start, end=end, step=step)["result"]

    def rules(self):
        (group,) = self.get("rules")["groups"]
        return group["rules"]

    def wait_for(self, what, is_it, within=30):
        """Looks until it is so."""
        deadline = time.monotonic() + within
        while not is_it():
            assert time.monotonic() < deadline, f"not within {within} s: {what}"
            time.sleep(0.1)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def fetch(address, path):
    """Straight there, whatever proxy the environment names."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text
