"""A scheduler sees the command's own exit status, and one run however often it asks for it."""

import time
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from recipe_ray.distributed.submission import SubmitConfig, run_to_end
from recipe_ray.errors import ConfigError, ServiceError

CONFIG = SubmitConfig(address="http://head:8265", id="nightly-1", command=("python", "a job.py"), patience_s=60)


class Cluster:
    """In place of Ray's job server; each look at it is the next of `moments`: a status, an error, or `forgets`."""

    def __init__(self, *moments, exit_code=None, known=False):
        self.moments, self.exit_code, self.known = list(moments), exit_code, known
        self.submitted, self.stopped, self.clock = [], [], 0.0

    def list_jobs(self):
        if not self.known:
            return []
        moment = self.moments.pop(0)
        if isinstance(moment, Exception):
            raise moment
        if moment == "forgets":
            return []
        status = JobStatus(moment)
        seconds = self.clock
        return [
            SimpleNamespace(submission_id="another", status=JobStatus.FAILED),
            SimpleNamespace(
                submission_id=CONFIG.id,
                status=status,
                driver_exit_code=self.exit_code if status.is_terminal() else None,
                start_time=int((time.time() - seconds) * 1000),
            ),
        ]

    def submit_job(self, *, entrypoint, submission_id):
        self.known = True
        self.submitted.append((entrypoint, submission_id))

    def get_job_logs(self, job_id):
        return "".join(f"line {number}\n" for number in range(int(self.clock) // 5 + 1))

    def stop_job(self, job_id):
        self.stopped.append(job_id)
        return True

    def sleep(self, seconds):
        self.clock += seconds


def run(cluster, config=CONFIG):
    shown = []
    status = run_to_end(config, lambda: cluster, show=shown.append, now=lambda: cluster.clock, sleep=cluster.sleep)
    return status, "".join(shown)


def test_it_is_submitted_once_and_its_output_shown_once():
    cluster = Cluster("PENDING", "RUNNING", "SUCCEEDED", exit_code=0)
    assert run(cluster) == (0, "line 0\nline 1\nline 2\n")
    assert cluster.submitted == [("python 'a job.py'", "nightly-1")]


def test_one_that_is_under_way_is_waited_for():
    cluster = Cluster("RUNNING", "SUCCEEDED", exit_code=0, known=True)
    assert run(cluster)[0] == 0
    assert cluster.submitted == []


@pytest.mark.parametrize(
    ("end", "exit_code", "status"), [("FAILED", 3, 3), ("FAILED", None, 1), ("STOPPED", 0, 1), ("STOPPED", None, 1)]
)
def test_no_end_but_a_success_counts_as_one(end, exit_code, status):
    assert run(Cluster("RUNNING", end, exit_code=exit_code))[0] == status


@pytest.mark.parametrize("error", [ConnectionError("refused"), RuntimeError("status code 500")], ids=["away", "500"])
def test_a_server_that_is_away_for_a_while_is_waited_for(error):
    cluster = Cluster("RUNNING", *[error] * 11, "SUCCEEDED", exit_code=0)
    assert run(cluster)[0] == 0
    assert len(cluster.submitted) == 1


def test_one_that_stays_away_is_a_fault_that_names_it():
    with pytest.raises(ServiceError, match=r"http://head:8265 has not answered for 60 s \(refused\)"):
        run(Cluster("RUNNING", *[ConnectionError("refused")] * 20))


def test_a_run_that_went_with_its_cluster_is_told_apart_from_one_that_failed():
    with pytest.raises(ServiceError, match="does not know nightly-1 any more"):
        run(Cluster("RUNNING", "forgets"))


def test_a_run_beyond_its_deadline_is_stopped_once():
    cluster = Cluster(*["RUNNING"] * 6, "STOPPED")
    config = SubmitConfig(address=CONFIG.address, id=CONFIG.id, command=CONFIG.command, deadline_s=12)
    status, shown = run(cluster, config)
    assert (status, cluster.stopped) == (1, ["nightly-1"])
    assert "more than 12 s" in shown


def test_a_command_is_wanted_and_seconds_above_zero():
    with pytest.raises(ConfigError, match="no command"):
        SubmitConfig(address="a", id="b", command=())
    with pytest.raises(ConfigError, match="deadline_s is 0"):
        SubmitConfig(address="a", id="b", command=("x",), deadline_s=0)
