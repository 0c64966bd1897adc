"""Manifests say what Kubernetes takes, and agree with the code, the presets and each other. No cluster is asked."""

import shlex
import shutil

import kubernetes_validate
import pytest
import yaml
from manifests import (
    FILES,
    KUBERAY,
    KUSTOMIZATIONS,
    ROOT,
    cluster_specs,
    kustomized,
    labels_of_pods,
    named,
    objects,
    of_kind,
    pod_templates,
    selected,
)
from ray.serve.schema import ServeDeploySchema

from serving.settings import AppArgs

KUBERNETES = "1.34"
RAY = "ray.io/v1"
# KubeRay's schemas are in no package of the indexes this project installs from. These lists of the fields that its
# reference documents (release 1.5) are no schema: they find a misspelt field, not a wrong value.
FIELDS = {
    "RayService": {"serveConfigV2", "rayClusterConfig", "upgradeStrategy", "excludeHeadPodFromServeSvc"},
    "RayJob": {
        "entrypoint",
        "activeDeadlineSeconds",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "submitterConfig",
        "submitterPodTemplate",
        "rayClusterSpec",
    },
}
CLUSTER_FIELDS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
AUTOSCALER_FIELDS = {"idleTimeoutSeconds", "upscalingMode", "resources", "securityContext"}
HEAD_FIELDS = {"rayStartParams", "template"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def valid(item):
    kubernetes_validate.validate(item, KUBERNETES, strict=True)


def as_pod(template):
    """A pod of the template: its schema refuses what no pod may have."""
    spec = {"restartPolicy": "Always", **template["spec"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}, "spec": spec}


def test_every_core_object_is_one_by_kubernetes_schema():
    core = [item for item in objects() if item["apiVersion"] != RAY]
    assert {item["kind"] for item in core} == {
        "ConfigMap",
        "CronJob",
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ServiceAccount",
    }
    for item in core:
        valid(item)


@pytest.mark.parametrize("name", pod_templates())
def test_every_pod_template_is_one_by_kubernetes_schema(name):
    valid(as_pod(pod_templates()[name]))


def test_a_misspelt_field_of_a_pod_would_be_found():
    pod = as_pod(pod_templates()["RayService/recipe head"])
    spec = {**pod["spec"], "nodeSelektor": pod["spec"]["nodeSelector"]}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelektor"):
        valid({**pod, "spec": spec})


def test_kuberays_objects_have_only_fields_that_its_reference_names():
    for item in objects():
        if item["apiVersion"] == RAY and item["kind"] in FIELDS:
            assert set(item["spec"]) <= FIELDS[item["kind"]]
    for spec in cluster_specs().values():
        assert set(spec) <= CLUSTER_FIELDS
        assert set(spec.get("autoscalerOptions", {})) <= AUTOSCALER_FIELDS
        assert set(spec["headGroupSpec"]) == HEAD_FIELDS
        for group in spec["workerGroupSpecs"]:
            assert set(group) == GROUP_FIELDS
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_clusters_run_the_pinned_ray_with_a_token_and_an_idle_head():
    (pinned,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    for spec in cluster_specs().values():
        assert spec["rayVersion"] == pinned.removeprefix("ray==")
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


# What is served


def test_the_service_serves_what_the_preset_says():
    preset = (ROOT / "serving" / "presets" / "kubernetes.yaml").read_text()
    assert yaml.safe_load(named("RayService", "recipe")["spec"]["serveConfigV2"]) == yaml.safe_load(preset)


def test_the_example_overlay_serves_with_known_keys_only():
    patch = yaml.safe_load((KUBERAY / "overlays" / "example" / "serve" / "serve.yaml").read_text())
    config = yaml.safe_load(patch["spec"]["serveConfigV2"])
    # Serve drops keys that it does not know without a word, so what it kept is compared with what is written.
    kept = ServeDeploySchema.model_validate(config).model_dump(mode="json", exclude_unset=True)
    assert keys(config) == keys(kept)
    (application,) = config["applications"]
    AppArgs(**application["args"])


def keys(value, path=""):
    if isinstance(value, dict):
        return {f"{path}{key}" for key in value}.union(*(keys(item, f"{path}{key}.") for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(keys(item, f"{path}{index}.") for index, item in enumerate(value)))
    return set()


def test_nodes_have_room_for_all_engines_that_serve_may_start():
    service = named("RayService", "recipe")
    (model,) = AppArgs(**yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]).models
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    gpus, cpus = (float(container["resources"]["requests"][name]) for name in ("nvidia.com/gpu", "cpu"))
    a_node = min(gpus // model.gpus, cpus // model.cpus)
    assert group["minReplicas"] * a_node >= model.num_engines
    assert group["maxReplicas"] * a_node >= model.engine_limit
    assert cpus > model.cpus + model.retriever_cpus, "an ingress that retrieves fits beside an engine"


# What is run


def command_of(name):
    return shlex.split(named("RayJob", name)["spec"]["entrypoint"])


@pytest.mark.parametrize("name", ["train", "ingest"])
def test_an_entrypoint_is_a_command_line_that_its_job_takes(name, parse_job):
    python, script, *flags = command_of(name)
    assert (python, script) == ("python", f"/app/jobs/{name}.py")
    parsed = parse_job(name, flags)
    if name == "train":
        parsed.config()
        (group,) = named("RayJob", "train")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert group["replicas"] == parsed.num_workers


@pytest.mark.parametrize("name", ["train", "ingest"])
def test_so_is_that_of_the_example_overlay(name, parse_job):
    patch = yaml.safe_load((KUBERAY / "overlays" / "example" / name / f"{name}.yaml").read_text())
    python, script, *flags = shlex.split(patch["spec"]["entrypoint"])
    assert (python, script) == ("python", f"/app/jobs/{name}.py")
    parse_job(name, flags)


def test_no_entrypoint_counts_on_a_shell():
    for job in of_kind("RayJob"):
        assert not set(job["spec"]["entrypoint"]) & set("$`\"';|&<>*")


def test_a_flag_that_the_job_does_not_know_would_be_found(parse_job):
    with pytest.raises(SystemExit):
        parse_job("ingest", [*command_of("ingest")[2:], "--sauce", "x"])


def nightly_container():
    (container,) = named("CronJob", "nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return container


def test_the_nightly_pods_flags_are_those_of_the_nightly_job(parse_job):
    flags = nightly_container()["args"]
    assert "{date}" in parse_job("nightly", ["--date", "2026-11-24", *flags]).source
    (patch,) = yaml.safe_load_all((KUBERAY / "overlays" / "example" / "nightly.yaml").read_text())
    (container,) = patch["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    parse_job("nightly", ["--date", "2026-11-24", *container["args"]])


def test_the_nightly_job_stops_itself_before_kubernetes_does_and_fails_on_all_but_a_lost_cluster():
    from jobs.submit import TRY_AGAIN

    spec = named("CronJob", "nightly")["spec"]
    job = spec["jobTemplate"]["spec"]
    env = {item["name"]: item.get("value") for item in nightly_container()["env"]}
    assert spec["concurrencyPolicy"] == "Forbid"
    assert int(env["DEADLINE_S"]) < job["activeDeadlineSeconds"]
    ignore, fail = job["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore"
    assert (fail["action"], fail["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert fail["onExitCodes"]["values"] == [0, TRY_AGAIN]
    assert fail["onExitCodes"]["containerName"] == nightly_container()["name"]


def test_the_nightly_pod_asks_services_that_there_are():
    env = {item["name"]: item for item in nightly_container()["env"]}
    cluster = env["RAY_API"]["value"].removeprefix("http://").removesuffix("-head-svc:8265")
    named("RayCluster", cluster)
    token = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert token["name"] == cluster, "KubeRay names the Secret after the cluster"
    server = nightly_container()["args"][nightly_container()["args"].index("--servers") + 1]
    named("RayService", server.removeprefix("http://").removesuffix("-serve-svc:8000"))


# Who may do what


@pytest.mark.parametrize("name", pod_templates())
def test_pods_are_as_restricted_as_can_be(name):
    spec = pod_templates()[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] or (
            "submitter" in spec["serviceAccountName"]
        )
    # Only the autoscaler, which runs in a head, asks the Kubernetes API.
    kind_name, _, part = name.partition(" ")
    scaled = cluster_specs().get(kind_name, {}).get("enableInTreeAutoscaling", False)
    assert spec["automountServiceAccountToken"] == (scaled and part == "head")


def test_every_role_has_its_account_and_secrets_come_by_reference():
    accounts = {item["metadata"]["name"] for item in of_kind("ServiceAccount")}
    for name, template in pod_templates().items():
        spec = template["spec"]
        component = template["metadata"]["labels"]["app.kubernetes.io/component"]
        assert spec["serviceAccountName"] == component
        assert component in accounts
        for container in spec["containers"]:
            for item in container.get("env", []):
                if any(word in item["name"] for word in ("TOKEN", "KEY", "SECRET")):
                    assert "secretKeyRef" in item["valueFrom"], name
            for source in container.get("envFrom", []):
                named("ConfigMap", source["configMapRef"]["name"])
    assert of_kind("Secret") == []


def test_every_policy_and_budget_is_about_pods_that_there_are():
    for item in [*of_kind("NetworkPolicy"), *of_kind("PodDisruptionBudget")]:
        selector = item["spec"]["podSelector" if item["kind"] == "NetworkPolicy" else "selector"]
        assert selected(selector), item["metadata"]["name"]
    for budget in of_kind("PodDisruptionBudget"):
        # Pods without a Deployment or the like: no share, and no number of those that may be away.
        assert isinstance(budget["spec"]["minAvailable"], int)
        assert "maxUnavailable" not in budget["spec"]


def reachable(port):
    """(from, to) of pods, by their components, that may talk on a port over a policy that names ports."""
    pairs = set()
    labels = labels_of_pods()
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            if not any(item["port"] == port for item in rule.get("ports", [])):
                continue
            for source in rule["from"]:
                senders = (
                    {labels[name]["app.kubernetes.io/component"] for name in selected(source["podSelector"])}
                    if "podSelector" in source and "namespaceSelector" not in source
                    else {
                        "; ".join(f"{key}={value}" for key, value in source["namespaceSelector"]["matchLabels"].items())
                    }
                )
                for receiver in selected(policy["spec"]["podSelector"]):
                    component = labels[receiver]["app.kubernetes.io/component"]
                    part = labels[receiver].get("ray.io/node-type")
                    pairs |= {(sender, f"{component} {part}") for sender in senders}
    return pairs


OPERATOR = "kubernetes.io/metadata.name=kuberay-operator"


def test_who_reaches_which_port():
    nothing = named("NetworkPolicy", "default-deny")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert reachable(6379) == reachable(10001) == set(), "among a cluster's own nodes only"
    assert reachable(8265) == {
        (sender, f"{component} head")
        for sender in (OPERATOR, "submitter")
        for component in ("server", "trainer", "ingester")
    }
    assert {sender for sender, receiver in reachable(8000) if receiver == "server worker"} == {
        "recipe-ray/client=true",
        "ingester",
        OPERATOR,
    }
    assert {sender for sender, _ in reachable(8080)} == {"kubernetes.io/metadata.name=monitoring"}


def test_ingress_rules_for_a_port_have_their_egress_rule_within_the_namespace():
    for port, sender, receiver in ((8265, "submitter", "head"), (8000, "ingester", "server")):
        allowed = [
            policy
            for policy in of_kind("NetworkPolicy")
            for rule in policy["spec"].get("egress", [])
            if any(item["port"] == port for item in rule.get("ports", []))
            and policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == sender
            and receiver in str(rule["to"])
        ]
        assert allowed, f"{sender} may not send to {receiver}:{port}"


# Kustomizations


def test_every_file_is_in_a_kustomization():
    for path in FILES:
        kustomization = yaml.safe_load((path.parent / "kustomization.yaml").read_text())
        assert path.name in kustomization["resources"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which puts overlays together, is not installed")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: str(path.relative_to(KUBERAY)))
def test_kustomizations_give_objects_of_one_namespace(folder):
    built = kustomized(folder)
    assert built
    for item in built:
        if item["kind"] != "Namespace":
            assert item["metadata"]["namespace"] == "recipe"
        if item["apiVersion"] != RAY:
            valid(item)
    if "example" in folder.parts:
        text = yaml.safe_dump(built)
        assert "my-bucket" not in text
        assert "111122223333" not in text
        assert "image: recipe-ray" not in text
