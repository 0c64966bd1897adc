"""jobs/serve.py as a user runs it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from jobs.serve import how_to_stop

JOB = Path(__file__).parents[2] / "jobs" / "serve.py"


def command(*flags):
    return [sys.executable, str(JOB), *map(str, flags)]


def test_a_port_in_use_is_one_line_before_anything_is_started():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            command("--editor", "e", "--table", "t", "--port", port), capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: port {port} on 127.0.0.1 is in use")


def test_what_ignores_ctrl_c_as_a_script_has_it_says_what_stops_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what stands before `&`
    try:
        assert how_to_stop() == f"`kill {os.getpid()}` stops it"
    finally:
        signal.signal(signal.SIGINT, before)
    assert how_to_stop() == "Ctrl-C stops it"


@pytest.mark.ray
def test_it_serves_until_it_is_told_to_stop(ray_cluster, editor_dir, table_uri):
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        command("--editor", editor_dir, "--table", table_uri, "--port", port, "--cpus", 0.5),
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("serving "))
        assert f"http://127.0.0.1:{port}/v1 " in line
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").json()["status"] == "ok"
        process.terminate()  # handled as Ctrl-C is
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0
        assert "stopped" in rest
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")
