"""grpc-go: go/main.go, with stubs of protoc-gen-go and protoc-gen-go-grpc, made below target/."""

import functools
import os
import shutil
import subprocess

from grpc_tools import protoc

from line_client import LineClient

PACKAGE = "license-gateway.test/foreign/licensing"
CONTRACT = "central/licensing/v1/licensing.proto"


class GrpcGoClient(LineClient):
    name = "grpc-go"

    @staticmethod
    @functools.cache
    def make(tools):
        folder = tools.target / "foreign-go"
        shutil.copytree(tools.here / "go", folder / "source", dirs_exist_ok=True)
        # Caches of its own: nothing is installed elsewhere, and what was there already does not help.
        environment = os.environ | {
            "GOMODCACHE": str(folder / "modules"),
            "GOCACHE": str(folder / "cache"),
            "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
            "GOTOOLCHAIN": "local",
            "CGO_ENABLED": "0",
        }

        def go(*words):
            command = ["go", *words]
            made = subprocess.run(
                command, cwd=folder / "source", env=environment, capture_output=True, text=True, check=False
            )
            assert made.returncode == 0, f"{command}: {made.stdout}{made.stderr}"

        plugins, stubs = folder / "plugins", folder / "source" / "licensing"
        for path in (plugins, stubs):
            path.mkdir(exist_ok=True)
        go("build", "-o", f"{plugins}/", "tool")
        options = [f"--{kind}_opt={option}" for kind in ("go", "go-grpc") for option in (
            f"M{CONTRACT}={PACKAGE}", f"module={PACKAGE}",
        )]  # fmt: skip
        failed = protoc.main(
            [
                "protoc",
                *(f"-I{path}" for path in tools.include_dirs),
                f"--plugin={plugins}/protoc-gen-go",
                f"--plugin={plugins}/protoc-gen-go-grpc",
                f"--go_out={stubs}",
                f"--go-grpc_out={stubs}",
                *options,
                CONTRACT,
            ]
        )
        assert not failed, "protoc failed"
        go("build", "-o", str(folder / "client"), ".")
        return [folder / "client"], os.environ
