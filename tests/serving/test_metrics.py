"""What goes to Prometheus: the right labels, and that dashboard and alerts name what there is."""

import json
import re
from pathlib import Path

import pytest
import yaml

from serving import metrics
from serving.metrics import METRICS, RayObserver

INFRA = Path(__file__).parents[2] / "infra"
# Of Serve and Prometheus, beside ours.
OTHER_LABELS = {"application", "deployment", "replica", "le"}


class Library:
    """In place of `ray.serve.metrics`: as strict as that, and it keeps what it is given."""

    def __init__(self):
        self.told = []

    def _made(self, method):
        library = self

        class Made:
            def __init__(self, name, description="", tag_keys=None, boundaries=None):
                assert isinstance(tag_keys, tuple)
                assert description
                assert (boundaries is not None) == (method == "observe")
                if boundaries is not None:
                    assert boundaries[0] > 0
                    assert boundaries == sorted(set(boundaries))
                self.name, self.tag_keys = name, tag_keys

            def _tell(self, value, tags):
                assert set(tags) == set(self.tag_keys)
                assert all(isinstance(value, str) for value in tags.values())
                assert method != "inc" or value > 0
                library.told.append((self.name, tags, value))

        setattr(Made, method, Made._tell)
        return Made

    @property
    def Counter(self):
        return self._made("inc")

    @property
    def Histogram(self):
        return self._made("observe")

    @property
    def Gauge(self):
        return self._made("set")


@pytest.fixture
def library():
    return Library()


@pytest.fixture
def observer(library):
    return RayObserver(library)


def test_requests(observer, library):
    observer.request(route="GET /v1/facts", model="m", status=499, seconds=0.5)
    assert library.told == [
        ("recipe_requests_total", {"route": "GET /v1/facts", "model": "m", "status": "499"}, 1),
        ("recipe_request_seconds", {"route": "GET /v1/facts", "model": "m"}, 0.5),
    ]


def test_edits_and_their_distance_to_the_sentinel(observer, library):
    observer.edit(model="m", outcome="applied", margin=2.0)
    observer.edit(model="m", outcome="below_sentinel", margin=-3.0)
    observer.edit(model="m", outcome="off", margin=None)
    assert library.told == [
        ("recipe_edits_total", {"model": "m", "outcome": "applied"}, 1),
        ("recipe_margin", {"model": "m", "outcome": "applied"}, 2.0),
        ("recipe_edits_total", {"model": "m", "outcome": "below_sentinel"}, 1),
        ("recipe_margin", {"model": "m", "outcome": "below_sentinel"}, 3.0),
        ("recipe_edits_total", {"model": "m", "outcome": "off"}, 1),
    ]


def test_generation(observer, library):
    observer.retrieval(model="m", seconds=0.1)
    observer.first_token(model="m", seconds=0.2)
    observer.tokens(model="m", num_prompt=7, num_new=4, seconds=2.0)
    observer.tokens(model="m", num_prompt=7, num_new=0, seconds=2.0)
    observer.batch_size("m", 3)
    assert library.told == [
        ("recipe_retrieval_seconds", {"model": "m"}, 0.1),
        ("recipe_time_to_first_token_seconds", {"model": "m"}, 0.2),
        ("recipe_tokens_total", {"model": "m", "kind": "prompt"}, 7),
        ("recipe_tokens_total", {"model": "m", "kind": "new"}, 4),
        ("recipe_token_seconds", {"model": "m"}, 0.5),
        ("recipe_tokens_total", {"model": "m", "kind": "prompt"}, 7),
        ("recipe_batch_size", {"model": "m"}, 3),
    ]


def test_the_snapshot(observer, library):
    observer.snapshot(model="m", version=3, age_s=60.0, num_facts=7, index_bytes=99)
    assert {name: value for name, _, value in library.told} == {
        "recipe_snapshot_version": 3,
        "recipe_snapshot_age_seconds": 60.0,
        "recipe_facts": 7,
        "recipe_index_bytes": 99,
    }


def test_rays_own_classes_take_them():
    observer = RayObserver()
    observer.request(route="GET /v1/facts", model="m", status=200, seconds=0.5)
    observer.edit(model="m", outcome="applied", margin=2.0)
    observer.snapshot(model="m", version=3, age_s=60.0, num_facts=7, index_bytes=99)


def test_no_label_is_a_namespace_an_id_or_a_text():
    assert {label for metric in METRICS for label in metric.labels} == {"route", "model", "status", "outcome", "kind"}


def test_all_metrics_of_the_module_are_made():
    declared = [value for value in vars(metrics).values() if isinstance(value, metrics.Metric)]
    assert set(METRICS) == set(declared)


def dashboard():
    content = json.loads((INFRA / "grafana" / "recipe-ray.json").read_text())
    return [target["expr"] for panel in content["panels"] for target in panel.get("targets", [])], content


def alerts():
    return [
        rule
        for group in yaml.safe_load((INFRA / "prometheus" / "alerts.yaml").read_text())["groups"]
        if group["name"] == "recipe-ray"  # those of the jobs are looked at in tests/infra
        for rule in group["rules"]
    ]


def series_of(expression):
    return set(re.findall(r"\bray_\w+", expression))


EXPRESSIONS = [*dashboard()[0], *(rule["expr"] for rule in alerts())]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_and_alerts_name_metrics_and_labels_that_there_are(expression):
    known = {series: metric for metric in METRICS for series in metric.series}
    named = series_of(expression)
    assert named
    assert named <= set(known)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        labels |= {label.strip() for label in group.split(",")}
    for series in named:
        assert labels <= set(known[series].labels) | OTHER_LABELS


def test_every_metric_is_on_the_dashboard():
    shown = set().union(*map(series_of, dashboard()[0]))
    assert [metric.name for metric in METRICS if not shown & set(metric.series)] == []


def test_counters_are_shown_as_rates_and_histograms_as_quantiles():
    for expression in EXPRESSIONS:
        for metric in METRICS:
            for series in set(metric.series) & series_of(expression):
                before = expression.split(series)[0]
                assert (metric.kind == "gauge") != before.endswith("rate(")
                assert (metric.kind == "histogram") == ("histogram_quantile" in expression)


def test_panels_are_one_beside_the_other():
    panels = dashboard()[1]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["for"]
    assert rule["annotations"]["summary"].endswith(".")
    assert len(rule["annotations"]["runbook"].split()) > 10
