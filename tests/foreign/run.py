"""Runs the foreign clients against the real binary. `make test-foreign` calls it; what it needs is in the Makefile.

    run.py [--binary PATH] [WORD...]

Runs the cases (cases.py, large.py, proxies.py) whose name or client contains a WORD, all of them without one. Prints a line for each, and
cargo's closing line.
"""

import argparse
import importlib.util
import os
import pathlib
import sys
import tempfile
import time
import traceback
import types

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = ROOT / "target"
STUBS = TARGET / "foreign-stubs"


def main():
    parser = argparse.ArgumentParser(description="Runs the foreign clients against the real binary.")
    parser.add_argument("--binary", type=pathlib.Path, default=TARGET / "debug" / "license-gateway")
    parser.add_argument("words", nargs="*", metavar="WORD", help="run what contains one of these")
    arguments = parser.parse_args()

    import_paths = generate_stubs()
    from case import CASES  # needs the stubs
    from world import Tools

    for module in ("cases", "large", "proxies"):
        importlib.import_module(module)

    tools = Tools(
        here=HERE,
        binary=arguments.binary.resolve(),
        buf=TARGET / "node" / "node_modules" / ".bin" / "buf",
        node_modules=TARGET / "node" / "node_modules",
        target=TARGET,
        include_dirs=import_paths,
    )
    chosen = [
        (case, client)
        for case in CASES
        for client in case.clients
        if not arguments.words or any(word in f"{client.name}::{case.name}" for word in arguments.words)
    ]
    if not chosen:
        sys.exit("no case has that name")

    print(f"running {len(chosen)} tests of foreign clients")
    started, failures = time.monotonic(), []
    for case, client in chosen:
        name = f"{client.name}::{case.name}"
        began = time.monotonic()
        failure = run(case, client, tools)
        took = time.monotonic() - began
        print(f"test {name} ... {'FAILED' if failure else 'ok'} ({took:.2f} s)", flush=True)
        if failure:
            failures.append((name, failure))

    for name, failure in failures:
        print(f"\n---- {name} ----\n{failure}")
    print(
        f"\ntest result: {'FAILED' if failures else 'ok'}. {len(chosen) - len(failures)} passed; {len(failures)} failed;"
        f" 0 ignored; 0 measured; {sum(len(case.clients) for case in CASES) - len(chosen)} filtered out;"
        f" finished in {time.monotonic() - started:.2f}s",
        flush=True,
    )
    # Not sys.exit: a client library's thread that hangs must not keep us.
    os._exit(1 if failures else 0)


def run(case, client_type, tools):
    """One case with one client, on fresh processes; what went wrong, or nothing."""
    from credentials import Credentials
    from world import Gateway, Sandbox

    processes = []
    with tempfile.TemporaryDirectory(prefix="license-gateway-") as folder:
        try:
            sandbox = Sandbox(tools)
            processes.append(sandbox)
            knows = Credentials(pathlib.Path(folder)) if case.knows_callers else None
            gateway = Gateway(tools, sandbox, pathlib.Path(folder), case.settings, knows)
            processes.append(gateway)
            shown = {"shown": knows.nothing()} if knows else {}
            client = client_type(gateway.address, tools, retries=case.retries, **shown)
            world = types.SimpleNamespace(sandbox=sandbox, gateway=gateway, tools=tools, credentials=knows)
            try:
                case.run(world, client)
            finally:
                client.close()
        except Exception:  # whatever it is, it is this case's failure
            said = [f"{process.name}: {line}" for process in processes for line in process.said]
            return "\n".join([traceback.format_exc(), *said])
        finally:
            for process in processes:
                process.stop()
    return None


def generate_stubs():
    """Makes the Python stubs from the contract; returns where .proto files are."""
    from grpc_tools import protoc

    well_known = pathlib.Path(importlib.util.find_spec("grpc_tools").origin).parent / "_proto"
    google_rpc = pathlib.Path(importlib.util.find_spec("google.rpc").submodule_search_locations[0]).parent.parent
    STUBS.mkdir(parents=True, exist_ok=True)
    contract = ROOT / "proto"
    failed = protoc.main(
        [
            "protoc",
            f"-I{contract}",
            f"-I{well_known}",
            f"--python_out={STUBS}",
            f"--grpc_python_out={STUBS}",
            *(str(path.relative_to(contract)) for path in sorted(contract.rglob("*.proto"))),
        ]
    )
    if failed:
        sys.exit("protoc failed")
    sys.path.insert(0, str(STUBS))
    return (contract, ROOT / "third_party", google_rpc, well_known)


if __name__ == "__main__":
    main()
