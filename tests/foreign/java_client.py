"""grpc-java: java/src/main/java/Client.java, with stubs that Maven makes below target/."""

import functools
import os
import shutil

from line_client import LineClient, made_of, run_or_fail


class GrpcJavaClient(LineClient):
    name = "grpc-java"
    says_ready = True

    @staticmethod
    @functools.cache
    def make(tools):
        folder, (contract, *_) = tools.target / "foreign-java", tools.include_dirs
        made_of(folder, (tools.here / "java", contract), lambda: build(tools, folder, contract))
        made = folder / "source" / "target"
        # A test needs neither an optimising compiler nor a parallel collector.
        options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]
        return ["java", *options, "-cp", f"{made / 'classes'}:{made / 'lib'}/*", "Client"], os.environ


def build(tools, folder, contract):
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(tools.here / "java", source)
    command = [
        "mvn",
        "--batch-mode",
        "--quiet",
        # Of its own: nothing is installed elsewhere, and what was there already does not help.
        f"-Dmaven.repo.local={folder / 'repository'}",
        f"-Dcontract={contract}",
        "compile",
    ]
    run_or_fail(command, source, os.environ, "a JDK, 17 or newer, and Maven (Debian: default-jdk-headless, maven)")
