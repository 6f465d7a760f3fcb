"""Holds the chart to Helm's lint, to the schemas of Kubernetes, and to deploy/kubernetes.yaml."""

import copy
import pathlib
import re
import sys

import kubernetes_validate
import yaml
from helm_python import chart as helm

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERSIONS = ["1.27", "1.30", "1.32", "1.37"]
# The chart's own labels, and a Job's name that counts revisions.
OWN_LABELS = ["instance", "version", "managed-by"]


def rendered(chart: pathlib.Path, values: dict | None = None, name: str = "event-persister") -> dict:
    with helm.Chart.load(chart) as loaded:
        files = loaded.render(values=values, name=name, namespace="events", revision=3)
    manifests = [text for file, text in files.items() if file.endswith(".yaml")]
    documents = [document for text in manifests for document in yaml.safe_load_all(text) if document]
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents), "two of one kind"
    return by_kind


def plain(value: object) -> object:
    """What kubernetes.yaml would say: without what a chart adds, or what the cluster would fill in."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: plain(item) for key, item in value.items()}
    for label in OWN_LABELS:
        kept.pop(f"app.kubernetes.io/{label}", None)
    kept.pop("helm.sh/chart", None)
    if kept.get("scheme") == "HTTP":
        del kept["scheme"]
    if kept.get("imagePullPolicy") == "IfNotPresent":
        del kept["imagePullPolicy"]
    return kept


def validate(documents: dict) -> None:
    # Those of operators have schemas of their own.
    known = [document for kind, document in documents.items() if kind not in ("ScaledObject", "ServiceMonitor")]
    assert len(known) >= 3, documents.keys()
    for version in VERSIONS:
        for document in known:
            kubernetes_validate.validate(document, version, strict=True)


def main(chart: pathlib.Path) -> None:
    report = helm.lint(chart, strict=True)
    worst = [message for message in report["messages"] if message["severity"] > 1]
    assert not worst and not report["errors"] and report["total_charts_linted"] == 1, report

    by_hand = {
        document["kind"]: document
        for document in yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    }
    # The chart makes no Secret: values are kept in the release, where more can read them.
    del by_hand["Secret"]
    default = rendered(chart)
    validate(default)
    same = copy.deepcopy(default)
    assert same["Job"]["metadata"]["name"] == "event-persister-migrate-3"
    same["Job"]["metadata"]["name"] = "event-persister-migrate"
    assert same.keys() == by_hand.keys(), (same.keys(), by_hand.keys())
    for kind, document in by_hand.items():
        assert plain(same[kind]) == document, f"{kind}:\n{yaml.dump(plain(same[kind]))}\nnot\n{yaml.dump(document)}"

    # Two releases in one namespace do not meet.
    selector = default["Deployment"]["spec"]["selector"]["matchLabels"]
    assert selector["app.kubernetes.io/instance"] == "event-persister"
    labels = default["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, chosen in [
        ("Deployment", selector),
        ("Service", default["Service"]["spec"]["selector"]),
        ("PodDisruptionBudget", default["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
    ]:
        assert chosen.items() <= labels.items(), kind
        assert not chosen.items() <= default["Job"]["spec"]["template"]["metadata"]["labels"].items(), kind

    # Everything on. KEDA counts the replicas, so the Deployment must not.
    full = rendered(
        chart,
        {
            "keda": {"enabled": True},
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "env": [{"name": "EVENT_PERSISTER_TRIM_RETENTION", "value": "30d"}],
            "envFrom": [{"configMapRef": {"name": "settings"}}],
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"a": "b"},
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
            "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
            "probes": {"scheme": "HTTPS"},
        },
        name="other",
    )
    validate(full)
    assert "replicas" not in full["Deployment"]["spec"]
    scaled = full["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == full["Deployment"]["metadata"]["name"] == "other"
    trigger = scaled["triggers"][0]["metadata"]
    assert (trigger["stream"], trigger["consumerGroup"]) == ("events", "event-persister"), trigger
    assert all(isinstance(value, str) for value in trigger.values()), "KEDA takes texts alone"
    monitor = full["ServiceMonitor"]["spec"]
    service = full["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    container = full["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"][-1]["value"] == "30d" and container["envFrom"] and container["volumeMounts"]
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"

    # As the head of values.yaml says for a Prefect server.
    head = re.findall(r"^#   (\w+: .*?)(?:  .*)?$", (chart / "values.yaml").read_text(), re.MULTILINE)
    prefect = yaml.safe_load("\n".join(head))
    assert prefect.keys() == {"migrate", "trimStream", "envFrom", "secret"}, prefect
    beside = rendered(chart, prefect)
    validate(beside)
    assert "Job" not in beside
    container = beside["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"configMapRef": {"name": "prefect-server"}}]
    names = [variable["name"] for variable in container["env"]]
    assert names == [
        "EVENT_PERSISTER_HTTP_AUTH_STRING",
        "EVENT_PERSISTER_HTTP_LISTEN",
        "EVENT_PERSISTER_LOG_FORMAT",
    ], names
    print(f"{len(by_hand)} documents are those of kubernetes.yaml, by the schemas of {', '.join(VERSIONS)}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
