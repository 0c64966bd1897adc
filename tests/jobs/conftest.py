"""Jobs in this process, for what is not about a process of its own."""

import importlib
import sys

import pytest

from jobs._cli import run


@pytest.fixture
def on_session_cluster(ray_cluster, monkeypatch, capfd):
    """Runs jobs/NAME.py with flags on the session's cluster; gives its exit status, output and complaints."""

    def start(name, args_type, *flags):
        job = importlib.import_module(f"jobs.{name}")
        monkeypatch.setattr(job, "connect", lambda **_: None)
        monkeypatch.setattr(job.ray, "shutdown", lambda: None)
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *map(str, flags)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(job.main, args_type)
        said = capfd.readouterr()
        return ended.value.code, said.out, said.err

    return start
