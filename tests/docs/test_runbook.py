"""Whoever an alert wakes finds its section."""

import re

import yaml
from doc_commands import ROOT


def test_every_alert_has_its_section_and_every_section_an_alert():
    rules = yaml.safe_load((ROOT / "infra" / "prometheus" / "alerts.yaml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    _, _, section = (ROOT / "docs" / "runbook.md").read_text().partition("\n## Alerts\n")
    assert section
    told = re.findall(r"^### (.+)$", section.partition("\n## ")[0], flags=re.MULTILINE)
    assert sorted(told) == sorted(alerts)
