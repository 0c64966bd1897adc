"""The image copies what there is, pinned and without root; the nightly pod's script knows its night."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from manifests import ROOT, pod_templates

DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
SCRIPT = ROOT / "infra" / "docker" / "nightly.sh"
SHELL_SCRIPTS = [*sorted(ROOT.glob("infra/**/*.sh")), ROOT / ".ci" / "run"]


def instructions():
    """(name, rest) of each, continuation lines joined, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    return [tuple(text.split(maxsplit=1)) for text in "\n".join(lines).replace("\\\n", " ").splitlines()]


def stages():
    found, name = {}, None
    for instruction, rest in instructions():
        if instruction == "FROM":
            base, _, name = rest.split()
            found[name] = [("FROM", base)]
        elif name:
            found[name].append((instruction, rest))
    return found


def lineage(name):
    """Instructions of a stage after those of the stages it stands on."""
    own = stages()[name]
    return (lineage(own[0][1]) if own[0][1] in stages() else []) + own


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_both_targets_end_without_root_and_with_the_code(target):
    assert [rest for name, rest in lineage(target) if name == "USER"][-1] == "ray"
    assert any(name == "COPY" and "--from=code" in rest for name, rest in lineage(target))
    assert not any(name == "USER" and rest == "root" for name, rest in lineage(target))


def test_the_user_is_the_one_that_pods_run_as():
    (uid,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE.read_text())
    for template in pod_templates().values():
        assert template["spec"]["securityContext"]["runAsUser"] == int(uid)


def copied():
    for name, rest in instructions():
        if name == "COPY" and "--from=" not in rest:
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            yield from sources


def test_what_is_copied_is_there_and_reaches_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "nothing but what is named"
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert set(copied()) == let_in
    for source in let_in:
        assert (ROOT / source).exists(), source


def test_every_python_package_is_pinned():
    text = "\n".join(rest for name, rest in instructions() if name == "RUN")
    installs = re.findall(r"pip install[^&\n]*", text)
    assert len(installs) == 4
    for install in installs:
        assert "--constraint constraints.txt" in install or '"$version"' in install
    for name in re.findall(r"(?:\^)([a-z-]+)==", text):
        assert re.search(rf"^{name}==", (ROOT / "constraints.txt").read_text(), re.MULTILINE), name
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11-", DOCKERFILE.read_text(), re.MULTILINE)


def test_the_image_holds_what_kuberays_probes_run():
    (packages,) = re.findall(r"apt-get install --yes --no-install-recommends ([^&]*)", DOCKERFILE.read_text())
    assert {"bash", "wget"} <= set(packages.replace("\\", " ").split())


def test_shellcheck_finds_nothing():
    # By its place beside this Python: an environment's programs are on the path only where it was activated.
    program = Path(sysconfig.get_path("scripts")) / "shellcheck"
    subprocess.run([program, *SHELL_SCRIPTS], check=True)


@pytest.fixture
def nightly(tmp_path):
    """What the script would run for a name of its Job."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def run(job_name, *flags):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_API": "http://head:8265", "JOB_NAME": job_name}
        return subprocess.run([SCRIPT, *flags], env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("job_name", "night"),
    [
        ("nightly-29401230", "2025-11-24"),  # due on 2025-11-25 at 12:30 UTC
        ("nightly-29399790", "2025-11-23"),  # a day before
        ("nightly-2026-02-28", "2026-02-28"),
    ],
)
def test_a_night_is_told_by_the_jobs_name(nightly, job_name, night):
    done = nightly(job_name, "--source", "s3://b/{date}/ x")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[words.index("--date") + 1] == night
    assert words[words.index("--id") + 1] == job_name
    assert words[-2:] == ["--source", "s3://b/{date}/ x"]


def test_a_name_without_a_night_is_refused(nightly):
    done = nightly("nightly-again")
    assert done.returncode == 64
    assert "NAME-YYYY-MM-DD" in done.stderr
    assert done.stdout == ""


def test_what_the_script_runs_is_a_command_line_of_the_submitter(nightly, parse_job):
    script, *flags = nightly("nightly-2026-02-28", "--source", "{date}").stdout.splitlines()
    assert script == "jobs/submit.py"
    config = parse_job("submit", flags)
    assert config.command == ("python", "/app/jobs/nightly.py", "--date", "2026-02-28", "--source", "{date}")
    assert config.deadline_s == 14400
