"""The chart, by real helm, the schemas of Kubernetes and the real binary. `make test-chart` calls it.

    check.py [--binary PATH] [--without-pods] [WORD...]

Runs the checks whose name contains a WORD, all of them without one, and prints what was checked. The pods need root, for a
network namespace and mounts of their own; --without-pods leaves them out, and the closing table says so.
"""

import argparse
import itertools
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

import network
import objects
import operations
import refusals
import values
import workload
from rendering import HERE, ROOT


def main():
    parser = argparse.ArgumentParser(description="The chart, by real helm, schemas and the real binary.")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "debug" / "license-gateway")
    parser.add_argument("--without-pods", action="store_true", help="do not run what is rendered")
    parser.add_argument("words", nargs="*", metavar="WORD", help="run what contains one of these")
    arguments = parser.parse_args()

    def wanted(name):
        return not arguments.words or any(word in name for word in arguments.words)

    began, table = time.monotonic(), []
    for name, check in itertools.chain(
        *(room.CHECKS for room in (values, refusals, objects, workload, network, operations))
    ):
        if wanted(name):
            table.append(run(name, check))
    for name, check in values.CHECKS_OF_THE_BINARY:
        if wanted(name):
            table.append(run(name, lambda check=check: check(arguments.binary)))
    if arguments.without_pods:
        table.append(("the pods", "NOT CHECKED", 0, "--without-pods: nothing that is rendered was run"))
    else:
        table += stories(arguments.binary, arguments.words)
    if not table:
        sys.exit("no check has that name")

    print(f"\n{'chart':<50} {'':<12} seconds  what")
    for name, result, took, told in table:
        print(f"{name:<50} {result:<12} {took:7.1f}  {told.splitlines()[0] if told else ''}")
    failed = [name for name, result, _, _ in table if result == "FAILED"]
    print(
        f"\nchart: {'FAILED' if failed else 'ok'}, {len(table)} checks, {len(failed)} failed, in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    sys.exit(1 if failed else 0)


def run(name, check):
    began = time.monotonic()
    try:
        result, told = "ok", check()
    except Exception:  # whatever it is, it is this check's failure
        result, told = "FAILED", "see above"
        print(f"---- {name} ----\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    print(f"check {name} ... {result}", flush=True)
    return name, result, time.monotonic() - began, told


def stories(binary, words):
    """What stories.py tells, in namespaces of its own."""
    for program in ("unshare", "setpriv", "chroot", "mount", "openssl", "redis-server"):
        if not shutil.which(program):
            return [("the pods", "FAILED", 0, f"{program} is missing: the pods cannot be run")]
    command = ["unshare", "--net", "--mount", sys.executable, str(HERE / "stories.py"), "--binary", str(binary), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    table = []
    for line in done.stdout.splitlines():
        name, tab, rest = line.partition("\t")
        if not tab:
            print(line, file=sys.stderr)
            continue
        took, _, told = rest.partition("\t")
        result = "FAILED" if told.startswith("FAILED") else "ok"
        print(f"check {name} ... {result}", flush=True)
        table.append((name, result, float(took), "see above" if result == "FAILED" else told))
    if done.returncode != 0 and not any(result == "FAILED" for _, result, _, _ in table):
        table.append(("the pods", "FAILED", 0, f"exit code {done.returncode}: root is needed, or --without-pods"))
    return table


if __name__ == "__main__":
    main()
