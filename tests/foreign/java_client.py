"""grpc-java: java/src/main/java/Client.java, with stubs that Maven makes below target/."""

import functools
import os
import shutil
import subprocess

from line_client import LineClient


class GrpcJavaClient(LineClient):
    name = "grpc-java"

    @staticmethod
    @functools.cache
    def make(tools):
        folder = tools.target / "foreign-java"
        source = folder / "source"
        shutil.copytree(tools.here / "java", source, dirs_exist_ok=True)
        contract, *_ = tools.include_dirs
        command = [
            "mvn",
            "--batch-mode",
            "--quiet",
            # Of its own: nothing is installed elsewhere, and what was there already does not help.
            f"-Dmaven.repo.local={folder / 'repository'}",
            f"-Dcontract={contract}",
            "compile",
        ]
        made = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        assert made.returncode == 0, f"{command}: {made.stdout}{made.stderr}"
        classes = [f"{source / 'target' / 'classes'}", f"{source / 'target' / 'lib'}/*"]
        # One small processor's worth of threads and memory is enough for a test.
        options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]
        return ["java", *options, "-cp", os.pathsep.join(classes), "Client"], os.environ
