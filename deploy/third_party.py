#!/usr/bin/env python3
"""Prints the licences of all that is linked into the program, for the packages."""

import json
import pathlib
import subprocess
import sys

TARGET = "x86_64-unknown-linux-gnu"
NAMES = ("licen", "copying", "copyright", "notice", "unlicense")


def linked(metadata: dict) -> set[str]:
    """The ids of the packages that the program needs when it runs, ours left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    waiting, seen = [metadata["resolve"]["root"]], set()
    while waiting:
        package = waiting.pop()
        if package not in seen:
            seen.add(package)
            needed = nodes[package]["deps"]
            waiting += [
                dep["pkg"] for dep in needed if any(kind["kind"] is None for kind in dep["dep_kinds"])
            ]
    return seen - set(metadata["workspace_members"])


def main() -> None:
    command = ["cargo", "metadata", "--locked", "--format-version=1", "--features=archive"]
    command.append(f"--filter-platform={TARGET}")
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    ids = linked(metadata)
    texts: dict[str, tuple[str, list[str]]] = {}
    lines = []
    for package in sorted(metadata["packages"], key=lambda package: (package["name"], package["version"])):
        if package["id"] not in ids:
            continue
        name = f"{package['name']} {package['version']}"
        lines.append(f"  {name}: {package['license'] or package['license_file']}")
        folder = pathlib.Path(package["manifest_path"]).parent
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name.lower().startswith(NAMES):
                text = file.read_text("utf-8", "replace").replace("\r\n", "\n").strip()
                # Many differ in nothing but where their lines end.
                texts.setdefault(" ".join(text.split()), (text, []))[1].append(name)
    if len(lines) < 50 or len(texts) < 20:
        sys.exit(f"only {len(lines)} crates and {len(texts)} licences were found")
    print("event-persister contains these crates:\n")
    print("\n".join(lines))
    print("\nand SQLite, which is in the public domain, and zstd (BSD-3-Clause). Their licences:")
    for text, names in texts.values():
        print(f"\n{'=' * 100}\n{', '.join(names)}\n\n{text}")


if __name__ == "__main__":
    main()
