"""The examples of clients/, run as the programs that they are: what they print and how they exit.

They are made as docs/clients.md says, in a copy below target/, with the packages that the other clients use.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CLIENTS = ROOT / "target" / "foreign-clients"
RUN_WITHIN = 60  # seconds


class Example:
    """Knows nothing of the gateway but its address."""

    def __init__(self, address, tools, retries=False):
        del retries
        self.address, self.command = address, self.make(tools)

    def close(self):
        pass

    def run(self, service, *customers):
        """The exit code, and what stands on each line."""
        ended = subprocess.run(
            [*self.command, self.address, service, *customers],
            capture_output=True,
            text=True,
            timeout=RUN_WITHIN,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # where run.py has put the stubs
        )
        assert ended.stderr == "", ended.stderr
        return ended.returncode, ended.stdout.splitlines()


class PythonExample(Example):
    name = "clients/python"

    @staticmethod
    def make(tools):
        del tools
        return sys.executable, ROOT / "clients" / "python" / "unassign.py"


class TypeScriptExample(Example):
    name = "clients/typescript"

    @staticmethod
    @functools.cache
    def make(tools):
        shutil.rmtree(CLIENTS, ignore_errors=True)
        shutil.copytree(ROOT / "clients", CLIENTS)
        folder = CLIENTS / "typescript"
        (folder / "node_modules").symlink_to(tools.node_modules)
        programs = tools.node_modules / ".bin"
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        contract, _, google_rpc, _ = tools.include_dirs
        messages = [f"--path={google_rpc}/google/rpc/{name}.proto" for name in ("status", "error_details")]
        for command in (
            [tools.buf, "generate", contract],
            [tools.buf, "generate", google_rpc, *messages],
            [programs / "tsc"],
        ):
            made = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert made.returncode == 0, f"{command}: {made.stdout}{made.stderr}"
        return "node", folder / "out" / "unassign.js"
