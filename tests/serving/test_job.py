"""jobs/serve.py as a user runs it. That it serves, and ends well once it is told to stop: the fixture `server_url`."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

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
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert how_to_stop() == "Ctrl-C stops it"
    finally:
        signal.signal(signal.SIGINT, before)
