"""Processes that are ended with the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from serving.engines.guard import Guard

STARTS_AND_IS_KILLED = """
import os, signal, subprocess, sys
from serving.engines.guard import Guard
child = subprocess.Popen(["sleep", "600"])
guard = Guard([child.pid])
print(child.pid, flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def ends(pid, within_s):
    """Whether a process that is no child of ours ends; one that nobody waited for yet counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_they_end_when_it_is_killed():
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_IS_KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(process.stdout.readline())
    try:
        assert not ends(pid, 1)
        process.communicate("x")
        assert process.returncode == -signal.SIGKILL
        assert ends(pid, 10)
    finally:
        process.kill()
        if not ends(pid, 0.1):
            os.kill(pid, signal.SIGKILL)


def test_they_live_on_behind_a_closed_guard():
    with subprocess.Popen(["sleep", "600"]) as child:
        Guard([child.pid, 2**22 - 1]).close()
        try:
            time.sleep(0.5)
            assert child.poll() is None
        finally:
            child.kill()
