"""Command lines as the jobs themselves read them."""

import runpy
import sys

import pytest
from manifests import ROOT


@pytest.fixture
def parse_job(monkeypatch):
    """What jobs/NAME.py makes of flags; SystemExit where it refuses them. Nothing is run."""

    def parse(name, flags):
        parsed = []

        def take(main, args_type):
            parsed.append(cli._parse(args_type, ""))

        from jobs import _cli as cli

        monkeypatch.setattr(cli, "run", take)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
        (args,) = parsed
        return args

    return parse
