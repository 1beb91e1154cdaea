#!/usr/bin/env python3
"""Writes the licences of everything that is linked into the program, with their texts.

    deploy/licenses.py > THIRD-PARTY.txt

What is linked is what cargo resolves for the machines that are released. The texts are those that the crates bring;
each stands once, with all that have it. A crate without one gets the text of its licence and its authors' names.
An expression that cannot be satisfied by the licences of deny.toml is cargo-deny's to find.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGETS = [f"{machine}-unknown-linux-{c}" for machine in ["x86_64", "aarch64"] for c in ["gnu", "musl"]]
NAMES = re.compile(r"^(licen[cs]e|copying|notice|unlicense|copyright)", re.IGNORECASE)
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def linked() -> list[dict]:
    """The packages that are linked on any target: without what only tests and build scripts need."""
    found = {}
    for target in TARGETS:
        command = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={target}"]
        metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
        packages = {package["id"]: package for package in metadata["packages"]}
        nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
        waiting = [id for id, package in packages.items() if package["name"] == "mqtt-rest-gateway"]
        seen = set()
        while waiting:
            id = waiting.pop()
            if id not in seen:
                seen.add(id)
                linked = (d for d in nodes[id]["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"]))
                waiting += [dependency["pkg"] for dependency in linked]
        found.update({id: packages[id] for id in seen if packages[id]["source"]})
    return sorted(found.values(), key=lambda package: (package["name"], package["version"]))


def texts(package: dict) -> list[str]:
    folder = pathlib.Path(package["manifest_path"]).parent
    files = sorted(file for file in folder.iterdir() if file.is_file() and NAMES.match(file.name))
    return [file.read_text(errors="replace").strip() for file in files]


def main() -> None:
    packages = linked()
    by_text = collections.defaultdict(list)
    bare = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        own = texts(package)
        for text in own:
            by_text[text].append(name)
        if not own:
            bare.append((name, package))
    apache = next(text for text in by_text if text.startswith("Apache License") and "APPENDIX" in text)
    for name, package in bare:
        license = package["license"] or ""
        if "MIT" in license:
            authors = ", ".join(package["authors"]) or f"the authors of {package['name']}"
            by_text[f"MIT License\n\nCopyright (c) {authors}\n\n{MIT}".strip()].append(name)
        elif license == "Apache-2.0":
            by_text[apache].append(name)
        else:
            sys.exit(f"{name} ({license}) brings no text of its licence, and none is known here")
    print("mqtt-rest-gateway links the following works of others.\n")
    for package in packages:
        where = package["repository"] or package["homepage"] or ""
        print(f"{package['name']} {package['version']}: {package['license']}  {where}".rstrip())
    for text, names in sorted(by_text.items(), key=lambda entry: entry[1]):
        print(f"\n{'-' * 80}\n{', '.join(sorted(set(names)))}\n\n{text}")


if __name__ == "__main__":
    main()
