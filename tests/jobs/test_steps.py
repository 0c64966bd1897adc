"""What a job of several steps shows: a bar each on a terminal, a few lines elsewhere, and nothing of libraries."""

import contextlib
import io
import itertools
import os
import subprocess
import sys

import pytest
from rich.console import Console

from jobs import _steps
from jobs._steps import Steps, said_into


@pytest.fixture
def slow(monkeypatch):
    """A clock that a minute passes on between two looks."""
    ticks = itertools.count(step=60)
    monkeypatch.setattr(_steps.time, "monotonic", lambda: next(ticks))


def walk(*, terminal):
    """What two steps, of which the second has two stretches, show."""
    shown = io.StringIO()
    steps = Steps(Console(file=shown, width=100, force_terminal=terminal, color_system=None), 2)
    with steps.step("load", "load what there is"):
        pass
    with steps.step("read", "read it all") as step:
        with step.show("reading", 1, unit="files") as advance:
            advance(1)
        with step.show("encoding", 1000, unit="facts") as advance:
            for _ in range(1000):
                advance(1)
    assert list(steps.seconds) == ["load", "read"]
    return shown.getvalue()


def test_a_log_has_a_few_lines_of_each_step(slow):
    shown = walk(terminal=False)
    assert "\r" not in shown
    assert shown.count("1/2  load what there is") == shown.count("2/2  read it all") == 1
    lines = shown.splitlines()
    assert [line.split(",")[0].strip() for line in lines if "encoding" in line] == [
        f"encoding: {number} of 1000 facts" for number in (250, 500, 750)
    ]
    assert sum("done in" in line for line in lines) == 2
    assert len(lines) == 7


def test_what_is_quick_says_no_more_than_that_it_is_done():
    assert len(walk(terminal=False).splitlines()) == 4


def test_a_terminal_has_one_bar_a_step():
    shown = walk(terminal=True)
    assert shown.count("1/2  load what there is") == shown.count("2/2  read it all") == 1
    (last,) = [line for line in shown.split("\r")[-1].splitlines() if "1000/1000" in line]
    assert "encoding" in last


def test_a_bar_stays_where_it_was_when_a_step_fails():
    shown = io.StringIO()
    steps = Steps(Console(file=shown, force_terminal=True), 1)
    with pytest.raises(RuntimeError, match="broken"), steps.step("read", "read it all"):
        raise RuntimeError("broken")
    assert steps.seconds == {}


def test_what_is_said_meanwhile_goes_into_the_log_and_comes_back_behind(tmp_path, capfd):
    log = tmp_path / "said.log"
    with contextlib.suppress(RuntimeError), said_into(log) as shown:
        os.write(1, b"from a library in C\n")
        os.write(2, b"a complaint of it\n")
        subprocess.run([sys.executable, "-c", "print('from a process')"], check=True)
        print("for the person", file=shown)
        raise RuntimeError
    os.write(1, b"behind\n")
    os.write(2, b"an error\n")
    assert capfd.readouterr() == ("for the person\nbehind\n", "an error\n")
    said = log.read_text()
    assert [line in said for line in ("from a library in C\n", "a complaint of it\n", "from a process\n")] == [True] * 3
    assert "for the person" not in said
