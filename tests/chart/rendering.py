"""Real helm over the chart: what values make of it, or the words that it refuses them with."""

import pathlib
import re
import subprocess
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "helm" / "license-gateway"
# Beside the interpreter: the checks run in the environment that has helm.
TOOLS = pathlib.Path(sys.executable).parent
HELM = TOOLS / "helm"
VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))


class Refused(Exception):
    """helm made nothing of these values, and said why."""


class Rendered:
    """What helm would send to the cluster."""

    def __init__(self, text):
        self.text = text
        self.objects = [each for each in yaml.safe_load_all(text) if each]

    def all(self, kind):
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind, name=None):
        found = [each for each in self.all(kind) if name is None or each["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}, and one was expected"
        return found[0]

    def named(self):
        return {(each["kind"], each["metadata"]["name"]): each for each in self.objects}

    def deployment(self):
        """The gateway's; the sandbox may have one too."""
        return next(
            each
            for each in self.all("Deployment")
            if each["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway"
        )

    def pod(self):
        return self.deployment()["spec"]["template"]["spec"]

    def container(self):
        return next(each for each in self.pod()["containers"] if each["name"] == "gateway")

    def settings(self):
        """The gateway's configuration file, read as TOML."""
        import tomllib

        name = next(volume["configMap"]["name"] for volume in self.pod()["volumes"] if volume["name"] == "config")
        return tomllib.loads(self.one("ConfigMap", name)["data"]["gateway.toml"])


def template(*files, release="license-gateway", chart=CHART, more=(), **values):
    """Renders the chart; `values` are laid over the files."""
    command = [str(HELM), "template", release, str(chart), "--namespace", "msp"]
    for file in files:
        command += ["--values", str(file)]
    given = None
    if values:
        command += ["--values", "-"]
        given = yaml.safe_dump(values)
    done = subprocess.run([*command, *more], input=given, capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return Rendered(done.stdout)


def ci(name):
    """One of the values files that are shipped with the chart for this."""
    return CHART / "ci" / f"{name}-values.yaml"


def selects(selector, deployment):
    """Whether these labels choose the pods of this Deployment."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector.items())


def refusal(*files, **values):
    """The words with which helm refuses these values, on one line."""
    try:
        template(*files, **values)
    except Refused as refused:
        return re.sub(r"\s+", " ", str(refused))
    raise AssertionError(f"helm takes {[file.name for file in files]} {values}")


def tool(name, *arguments):
    """Runs one of the installed tools; its output, or a failure that shows it."""
    done = subprocess.run([str(TOOLS / name), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{name} {' '.join(map(str, arguments))}: exit code {done.returncode}\n{said}"
    return said
