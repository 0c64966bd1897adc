"""Alerts and dashboards can be read, and ask for metrics that somebody exports."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import ray
import yaml
from manifests import ROOT, named, of_kind, pod_templates

from serving.metrics import METRICS

ALERTS = ROOT / "infra" / "prometheus" / "alerts.yaml"
RULE_TESTS = Path(__file__).with_name("alerts_test.yaml")
DASHBOARDS = sorted((ROOT / "infra" / "grafana").glob("*.json"))
OURS = {series for metric in METRICS for series in metric.series}
# Of Ray's own, those we ask for; that Ray's own dashboards ask for them too is checked below.
RAY = {
    "ray_data_output_rows",
    "ray_memory_manager_worker_eviction_total",
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_object_store_memory",
}
# As the reference of kube-state-metrics (2.10 and later) names them.
KUBERNETES = {
    "kube_cronjob_created",
    "kube_cronjob_info",
    "kube_cronjob_status_last_successful_time",
    "kube_job_created",
    "kube_job_failed",
    "kube_job_status_active",
    "kube_job_status_completion_time",
    "kube_job_status_start_time",
    "kube_pod_container_status_restarts_total",
    "kube_pod_status_phase",
}


def groups():
    return yaml.safe_load(ALERTS.read_text())["groups"]


def rules():
    return [rule for group in groups() for rule in group["rules"]]


def dashboard_expressions():
    return {
        f"{path.stem}: {panel['title']} {target['refId']}": target["expr"]
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    }


EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in rules()} | dashboard_expressions()


def selectors(expression):
    """(metric, labels with their wanted values) of all that is asked for."""
    found = []

    def visit(node):
        node = node.vector_selector if isinstance(node, promql_parser.MatrixSelector) else node
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name: matcher.value for matcher in node.matchers.matchers}))
        return True

    # Grafana fills its variables in before it asks.
    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), visit)
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_asked_for_is_exported(name):
    asked = {metric for metric, _ in selectors(EXPRESSIONS[name])}
    assert asked
    assert asked <= OURS | RAY | KUBERNETES


def test_no_metric_is_listed_in_vain():
    asked = {metric for expression in EXPRESSIONS.values() for metric, _ in selectors(expression)}
    assert asked >= RAY | KUBERNETES


def test_rays_metrics_are_those_of_the_installed_ray():
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    exported = set().union(*(re.findall(r"\bray_\w+", path.read_text()) for path in panels.glob("*.py")))
    assert exported >= RAY


def test_a_misspelt_expression_would_be_found():
    with pytest.raises(ValueError, match="parenthesis"):
        selectors("sum by (pod (ray_node_mem_used)")


def test_groups_have_what_prometheus_wants():
    assert set(yaml.safe_load(ALERTS.read_text())) == {"groups"}
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for group in groups():
        assert set(group) == {"name", "rules"}
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "runbook"}
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["runbook"].split()) > 10
        assert re.fullmatch(r"\d+[smhd]", rule["for"])


# alerts_test.yaml: series made up, and which alerts they give.
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not installed")
@pytest.mark.parametrize("command", [["check", "rules", ALERTS], ["test", "rules", RULE_TESTS]], ids=["check", "test"])
def test_promtool_takes_the_alerts(command):
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_jobs_and_namespace_asked_for_are_those_of_the_manifests():
    jobs = {item["metadata"]["name"] for item in of_kind("CronJob")}
    for expression in EXPRESSIONS.values():
        for _, labels in selectors(expression):
            if "cronjob" in labels:
                assert labels["cronjob"] in jobs
            if "job_name" in labels:
                assert any(re.fullmatch(labels["job_name"], f"{job}-29401234") for job in jobs)
            if labels.get("namespace", "$namespace") != "$namespace":
                named("Namespace", labels["namespace"])


def test_an_alert_of_a_late_night_leaves_a_whole_day():
    (late,) = [rule for rule in rules() if rule["alert"] == "RecipeNightlyLate"]
    assert int(late["expr"].split(">")[-1]) > 86400
    assert named("CronJob", "nightly")["spec"]["schedule"].split()[2:] == ["*", "*", "*"], "once a day"


def test_prometheus_scrapes_ports_that_ray_nodes_name():
    monitor = yaml.safe_load((ROOT / "infra" / "prometheus" / "podmonitor.yaml").read_text())
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    scraped = [item["port"] for item in monitor["spec"]["podMetricsEndpoints"]]
    nodes = {name: pod for name, pod in pod_templates().items() if wanted <= pod["metadata"]["labels"].items()}
    assert set(nodes) == {name for name in pod_templates() if name.startswith("Ray") and "submitter" not in name}
    named("Namespace", *monitor["spec"]["namespaceSelector"]["matchNames"])
    for name, pod in nodes.items():
        ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
        assert "metrics" in ports
        assert set(scraped) <= ports or not name.endswith(" head")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_by_variables_that_it_has_and_its_panels_do_not_overlap(path):
    content = json.loads(path.read_text())
    variables = {item["name"] for item in content["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(content["panels"]))) - {"__all"} <= variables
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in content["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_dashboard_is_handed_to_grafana():
    (generator,) = yaml.safe_load((ROOT / "infra" / "grafana" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert sorted(generator["files"]) == [path.name for path in DASHBOARDS]
    assert len({json.loads(path.read_text())["uid"] for path in DASHBOARDS}) == len(DASHBOARDS)
