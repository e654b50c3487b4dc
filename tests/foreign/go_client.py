"""grpc-go: go/main.go, with stubs of protoc-gen-go and protoc-gen-go-grpc, made below target/."""

import functools
import os
import shutil

from grpc_tools import protoc

from line_client import LineClient, made_of, run_or_fail

CONTRACT = "central/licensing/v1/licensing.proto"
PACKAGE = "license-gateway.test/foreign/licensing"


class GrpcGoClient(LineClient):
    name = "grpc-go"

    @staticmethod
    @functools.cache
    def make(tools):
        folder, (contract, *_) = tools.target / "foreign-go", tools.include_dirs
        made_of(folder, (tools.here / "go", contract), lambda: build(tools, folder))
        return [folder / "client"], os.environ


def build(tools, folder):
    source, plugins = folder / "source", folder / "plugins"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(tools.here / "go", source)
    # Caches of its own: nothing is installed elsewhere, and what was there already does not help.
    environment = os.environ | {
        "GOMODCACHE": str(folder / "modules"),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }

    def go_build(*words):
        run_or_fail(["go", "build", *words], source, environment, "Go as tests/foreign/go/go.mod says, or newer")

    go_build("-o", f"{plugins}/", "tool")
    # The contract names no Go package: who makes stubs of it chooses one.
    options = (f"M{CONTRACT}={PACKAGE}", f"module={PACKAGE}")
    stubs = source / "licensing"
    stubs.mkdir()
    failed = protoc.main(
        [
            "protoc",
            *(f"-I{path}" for path in tools.include_dirs),
            *(f"--plugin={plugins}/protoc-gen-{kind}" for kind in ("go", "go-grpc")),
            *(f"--{kind}_out={stubs}" for kind in ("go", "go-grpc")),
            *(f"--{kind}_opt={option}" for kind in ("go", "go-grpc") for option in options),
            CONTRACT,
        ]
    )
    assert not failed, "protoc failed"
    go_build("-o", str(folder / "client"), ".")
