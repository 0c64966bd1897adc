"""The two commands of bucket.py, as an operator meets them."""

import json
import sys

import pytest

from jobs import bucket
from jobs._cli import run
from recipe_ray.store.bucket.setup import Change, SetupReport


@pytest.fixture
def job(monkeypatch, capsys):
    """Runs a command; gives exit status, standard output and standard error."""

    def start(*flags):
        monkeypatch.setattr(sys, "argv", ["bucket.py", *flags])
        with pytest.raises(SystemExit) as exit_:
            run(bucket.main, bucket.command_type())
        said = capsys.readouterr()
        return exit_.value.code, said.out, said.err

    return start


def test_a_policy_is_json_and_nothing_else(job):
    status, out, _ = job("policy", "--role", "server", "--bucket", "lab", "--no-online-writes", "--facts", "team/facts")
    assert status == 0
    document = json.loads(out)
    assert "s3:PutObject" not in out
    assert "arn:aws:s3:::lab/team/facts/*" in document["Statement"][0]["Resource"]


def test_a_wrong_command_line_is_one_line(job):
    assert job("policy", "--role", "boss", "--bucket", "lab")[0] == 64
    assert job("setup")[0] == 64
    status, _, err = job("policy", "--role", "server", "--bucket", "Lab")
    assert (status, err.count("\n")) == (1, 1) or status == 64
    assert "bucket is 'Lab'" in err


def test_a_report_says_what_was_changed_and_what_to_look_at():
    change = Change(setting="versioning", now="on")
    report = {"bucket": "lab", "changes": (change,), "attention": ("look",), "dry_run": False}
    assert bucket.describe(SetupReport(**report)) == "versioning: changed: on\nattention: look\ns3://lab: done"
    dry = bucket.describe(SetupReport(**report | {"dry_run": True}))
    assert dry == "versioning: would be changed: on\nattention: look\ns3://lab: nothing was changed"
    assert "nothing to change" in bucket.describe(SetupReport(**report | {"changes": ()}))
