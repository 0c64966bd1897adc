"""`jobs/submit.py` against Ray's own job server: exit statuses, output, one run for an id."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "jobs" / "submit.py"
# The agent, which runs what is submitted, has one port on every machine: where another cluster has it, nothing is run.
HEAD = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 1, "include_dashboard": True, "dashboard_agent_listen_port": 0}
print(Cluster(initialize_head=True, head_node_args=head).head_node.webui_url, flush=True)
sys.stdin.read()
"""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def job_server():
    """The URL of one, its cluster in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        yield f"http://{head.stdout.readline().strip()}"
        head.stdin.close()


def submit(job_server, submission_id, program, *flags):
    command = [sys.executable, JOB, "--address", job_server, "--id", submission_id, "--poll-s", "1", *flags]
    done = subprocess.run([*command, "--", sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_the_exit_status_and_the_output_are_the_commands_own_and_an_id_runs_once(job_server, tmp_path):
    runs = tmp_path / "runs"
    program = f"import sys; open({str(runs)!r}, 'a').write('x'); print('it was here'); sys.exit(3)"
    for _ in range(2):
        status, said, complaint = submit(job_server, "once", program)
        assert status == 3, complaint
        assert said.count("it was here\n") == 1
    assert runs.read_text() == "x"
    status, said, complaint = submit(job_server, "good", "print('fine')")
    assert status == 0, complaint
    assert said.endswith("\nfine\n")


def test_a_command_beyond_its_deadline_is_stopped(job_server):
    status, said, complaint = submit(job_server, "late", "import time; time.sleep(300)", "--deadline-s", "3")
    assert status == 1, complaint
    assert "late has run for more than 3 s and is stopped" in said


def test_a_server_that_is_away_says_to_try_again():
    status, _, complaint = submit("http://127.0.0.1:9", "away", "pass", "--patience-s", "2")
    assert status == 75
    assert "http://127.0.0.1:9 has not answered for 2 s" in complaint
