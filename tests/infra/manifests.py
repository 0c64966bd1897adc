"""What lies in infra/kuberay, as values: every object of every file, and the pods that they ask for."""

import subprocess
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
KUSTOMIZATIONS = sorted(path.parent for path in KUBERAY.rglob("kustomization.yaml"))
# Files that hold whole objects; those of an overlay are patches.
FILES = [
    path
    for path in sorted(KUBERAY.rglob("*.yaml"))
    if path.name != "kustomization.yaml" and "overlays" not in path.parts
]


@cache
def objects():
    return [document for path in FILES for document in yaml.safe_load_all(path.read_text())]


def of_kind(kind):
    return [item for item in objects() if item["kind"] == kind]


def named(kind, name):
    (found,) = [item for item in of_kind(kind) if item["metadata"]["name"] == name]
    return found


def cluster_specs():
    """Of everything that brings a Ray cluster, by a name for people."""
    where = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["spec"][where[item["kind"]]]
        if item["kind"] in where
        else item["spec"]
        for item in objects()
        if item["apiVersion"] == "ray.io/v1"
    }


def pod_templates():
    """Every pod template there is, by a name for people."""
    found = {}
    for name, spec in cluster_specs().items():
        found[f"{name} head"] = spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            found[f"{name} {group['groupName']}"] = group["template"]
    for job in of_kind("RayJob"):
        found[f"RayJob/{job['metadata']['name']} submitter"] = job["spec"]["submitterPodTemplate"]
    for job in of_kind("CronJob"):
        found[f"CronJob/{job['metadata']['name']}"] = job["spec"]["jobTemplate"]["spec"]["template"]
    return found


def labels_of_pods():
    """Labels of every pod, KubeRay's own included."""
    found = {}
    for name, template in pod_templates().items():
        labels = dict(template["metadata"]["labels"])
        if name.startswith("Ray") and not name.endswith("submitter"):
            labels["ray.io/node-type"] = "head" if name.endswith(" head") else "worker"
        found[name] = labels
    return found


def selected(selector):
    wanted = selector.get("matchLabels", {})
    return {name for name, labels in labels_of_pods().items() if wanted.items() <= labels.items()}


def kustomized(folder):
    """The objects that `kubectl apply -k` would send."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))
