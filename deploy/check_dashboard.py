#!/usr/bin/env python3
"""Holds the dashboard against Grafana's own types, and its panels against each other. Grafana does not run here; whether
the queries find their series is asked of a real Prometheus, by the tests of the gateway.

    target/tools/bin/python deploy/check_dashboard.py
"""

import enum
import itertools
import json
import pathlib
import re
import sys
import types
import typing

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

FILE = pathlib.Path(__file__).resolve().parent / "grafana/dashboard.json"
# Grafana writes and reads them, and its types do not have them.
UNTYPED = {"templating.list.definition", "annotations.list.titleFormat", "annotations.list.step"}
# What Grafana fills in by itself.
BUILT_IN = {"__rate_interval"}


def unknown(written, read, place: str = "") -> list[str]:
    """Keys that Grafana's types do not know, and would drop."""
    if isinstance(written, list):
        return [fault for pair in zip(written, read, strict=True) for fault in unknown(*pair, place)]
    if not isinstance(written, dict):
        return []
    faults = []
    for key, value in written.items():
        name = f"{place}.{key}".removeprefix(".")
        if key in read:
            faults += unknown(value, read[key], name)
        elif name not in UNTYPED:
            faults.append(f"{name} is no key of Grafana's")
    return faults


def is_a(value, hint) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (typing.Any, object) or isinstance(hint, (str, typing.TypeVar)):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(is_a(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(is_a(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(is_a(item, arguments[1]) for item in value.values())
    if origin is typing.Literal:
        return value in arguments
    if isinstance(hint, enum.EnumMeta):
        return value in [member.value for member in hint]
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint if origin is None else origin)


def mistyped(value, place: str = "") -> list[str]:
    """Values that are of another type than Grafana's, or no word of it."""
    if isinstance(value, list):
        return [fault for item in value for fault in mistyped(item, place)]
    if isinstance(value, dict):
        return [fault for key, item in value.items() for fault in mistyped(item, f"{place}.{key}")]
    if not type(value).__module__.startswith("grafana_foundation_sdk.models"):
        return []
    faults = []
    for key, hint in typing.get_type_hints(type(value)).items():
        item, name = getattr(value, key, None), f"{place}.{key}".removeprefix(".")
        if item is not None and not is_a(item, hint):
            faults.append(f"{name} cannot be {item!r}")
        faults += mistyped(item, name)
    return faults


def disorder(dashboard: dict) -> list[str]:
    """What no type says: panels that lie upon each other, and names that lead nowhere."""
    faults = []
    panels = dashboard["panels"]
    numbers = [panel["id"] for panel in panels]
    if len(set(numbers)) != len(numbers):
        faults.append("two panels have one id")
    for panel in panels:
        targets = [target["refId"] for target in panel.get("targets", [])]
        if len(set(targets)) != len(targets) or bool(targets) == (panel["type"] == "row"):
            faults.append(f"{panel['title']}: queries {targets}")
        if panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24:
            faults.append(f"{panel['title']} ends beyond the right edge")
    for one, other in itertools.combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        if not beside and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            faults.append(f"{one['title']} lies upon {other['title']}")
    named = {variable["name"] for variable in dashboard["templating"]["list"]} | BUILT_IN
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__all"}
    faults += [f"${name} is no variable" for name in sorted(used - named)]
    return faults


def main() -> None:
    written = json.loads(FILE.read_text())
    plugins.register_default_plugins()
    dashboard = Dashboard.from_json(written)
    read = json.loads(JSONEncoder().encode(dashboard))
    faults = unknown(written, read) + mistyped(dashboard) + disorder(written)
    if faults:
        sys.exit("dashboard: " + "\n".join(faults))
    print(f"the dashboard's {len(written['panels'])} panels are as Grafana's types have them")


if __name__ == "__main__":
    main()
