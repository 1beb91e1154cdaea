#!/usr/bin/env python3
"""Holds what is released against what is there: the Debian package's files, the image's sources, the manual page.

    deploy/package target/debug/mqtt-rest-gateway && target/tools/bin/python deploy/check_packages.py

Neither an image nor a package is built here: that is done by the release workflow, and takes minutes.
"""

import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def debian() -> list[str]:
    """Files of the package that are not there, and a unit that starts another program."""
    metadata = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]
    # The program is built by the release.
    files = [source for source, _, _ in metadata["assets"] if not source.startswith("target/release/")]
    files.append(metadata["changelog"])
    faults = [f"Cargo.toml packs {file}, which is not there" for file in files if not (ROOT / file).is_file()]
    placed = {f"/{place}{pathlib.Path(source).name}" if place.endswith("/") else f"/{place}" for source, place, _ in metadata["assets"]}
    faults += [f"{file} is no file of the package" for file in metadata["conf-files"] if file not in placed]
    unit = (ROOT / metadata["maintainer-scripts"] / "mqtt-rest-gateway.service").read_text()
    program = re.search(r"^ExecStart=(\S+)", unit, re.M).group(1)
    config = re.search(r"^Environment=GATEWAY_CONFIG=(\S+)", unit, re.M).group(1)
    if config not in placed or program not in ["mqtt-rest-gateway", "/usr/bin/mqtt-rest-gateway"]:
        faults.append(f"the unit wants {program} and {config}, the package has {sorted(placed)}")
    return faults


def image() -> list[str]:
    """What the Dockerfile copies must be enough to compile: every member of the workspace, every file in the code."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    copies = [line.split()[1:] for line in dockerfile.splitlines() if line.startswith("COPY ") and "--from" not in line]
    ignored = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    with tempfile.TemporaryDirectory() as name:
        there = pathlib.Path(name)
        for *sources, place in copies:
            for source in sources:
                if any(source == path or source.startswith(f"{path}/") for path in ignored):
                    return [f"{source} is copied by the Dockerfile, and left out by .dockerignore"]
                target = there / place / source if place == "./" else there / place
                target.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, target)
                else:
                    shutil.copy(ROOT / source, target)
        command = ["cargo", "metadata", "--format-version=1", "--no-deps"]
        done = subprocess.run(command, cwd=there, capture_output=True, text=True)
        faults = [] if done.returncode == 0 else [f"the image's sources are no workspace: {done.stderr}"]
        for file in there.glob("src/**/*.rs"):
            for included in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', file.read_text()):
                if not (file.parent / included).exists():
                    faults.append(f"{file.relative_to(there)} includes {included}, which the Dockerfile does not copy")
        if not (there / "build.rs").exists():
            faults.append("the Dockerfile copies no build.rs")
    return faults


def manual() -> list[str]:
    """What groff finds wrong with the page."""
    page = ROOT / "target/package/mqtt-rest-gateway.8"
    # Plain text, without overstriking.
    command = ["groff", "-man", "-Tutf8", "-ww", "-rLL=110n", "-P-cbou", page]
    done = subprocess.run(command, capture_output=True, text=True)
    missing = [word for word in ["EXIT STATUS", "completions", "GATEWAY_CONFIG"] if word not in done.stdout]
    return done.stderr.splitlines() + [f"the manual page has no {word}" for word in missing]


def completions() -> list[str]:
    script = ROOT / "target/package/mqtt-rest-gateway.bash"
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    return done.stderr.splitlines()


def main() -> None:
    faults = debian() + image() + manual() + completions()
    assert not faults, "\n".join(faults)
    print("the packages have what they name")


if __name__ == "__main__":
    main()
