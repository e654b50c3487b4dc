"""Fails unless sets of protobuf descriptors mean the same.

    same-descriptors.py OURS REFERENCE...

OURS is what the binary was built from and serves by reflection (made by protox in build.rs); the REFERENCEs, taken
together, are what `buf build` makes of the same files. Comments and positions do not count; everything else does,
the order of declarations and the options included.
"""

import difflib
import sys

from google.protobuf import descriptor_pb2, text_format


def files(path):
    """The files of a descriptor set by name, as comparable text."""
    with open(path, "rb") as file:
        parsed = descriptor_pb2.FileDescriptorSet.FromString(file.read())
    texts = {}
    for descriptor in parsed.file:
        descriptor.ClearField("source_code_info")
        texts[descriptor.name] = text_format.MessageToString(descriptor, print_unknown_fields=True)
    return texts


def main(ours_path, *reference_paths):
    ours, reference = files(ours_path), {}
    for path in reference_paths:
        reference |= files(path)

    wrong = 0
    for name in sorted(ours.keys() | reference.keys()):
        if ours.get(name) == reference.get(name):
            print(f"same: {name}")
            continue
        wrong += 1
        print(f"DIFFERENT: {name}")
        sides = [side.get(name, "").splitlines() for side in (ours, reference)]
        print("\n".join(difflib.unified_diff(*sides, "protox", "buf", lineterm="")))
    if wrong or not ours:
        sys.exit(f"{wrong} of {len(ours)} files differ between protox and buf")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
