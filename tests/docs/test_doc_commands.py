"""What README and docs tell people to type is there: files, make targets, subcommands, flags and their values."""

import sys

import pytest
from doc_commands import Command, commands, complaint, documents
from run_commands import Folder, Outcome, link_project, report, run_all

PAGE = """\
# A page

Call `python jobs/ingest.py --again` and `make check`, not `python something` or `--only-a-flag`.

```
python jobs/keys.py list --keys keys.json      # a comment
python jobs/ingest.py --source facts.jsonl \\
    --table TABLE --editor EDITOR
what this prints, not a command
```

<!-- needs: aws -->
<!-- needs: gpu "--device cuda": no GPU is at hand -->

```
python jobs/train.py --device cuda --output s3://bucket/editor
PYTHONPATH=. python jobs/train.py
```

<!-- needs: gpu "--device cuda": no GPU is at hand -->
```
python jobs/train.py --device cuda
python jobs/train.py
python jobs/serve.py … --port 8000
```

```python
python = 3
```
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in documents()])
def test_every_command_names_what_there_is(path):
    found = [(command.place, command.text, complaint(command)) for command in commands(path)]
    assert [each for each in found if each[2] is not None] == []


def whole(text):
    return Command(file="page.md", line=1, block=1, text=text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("python jobs/capacity.py --fakts 3", "jobs/capacity.py knows no --fakts"),
        ("python jobs/capacities.py", "jobs/capacities.py does not exist"),
        ("python -m recipe_ray.datasets.splitting --data x", "recipe_ray/datasets/splitting.py does not exist"),
        ("make quick", "make has no target 'quick'"),
        ("ray job submit --working-dir . -- python jobs/keys.py list --table x", "jobs/keys.py list knows no --table"),
        ("python jobs/keys.py lists --keys FILE", "lists"),
        ("python jobs/capacity.py --facts many", "many"),
        ("python jobs/keys.py list", "--keys"),
        ("python jobs/capacity.py --delta 2", "delta is 2; give a share"),
        ("python -m recipe_ray.datasets.split --data counterfact:a.json", "--output"),
    ],
    ids=str,
)
def test_what_is_not_there_is_found(text, said):
    assert (found := complaint(whole(text))) is not None
    assert said in found


def test_commands_that_are_right_pass():
    assert complaint(whole("python jobs/keys.py rotate ID --keys keys.json --keep-hours 2")) is None
    assert complaint(whole("HF_HUB_OFFLINE=1 python jobs/capacity.py --facts 5 --json")) is None
    assert complaint(whole("curl localhost:8000/healthz")) is None
    part = Command(file="page.md", line=1, block=None, text="python jobs/keys.py list")
    assert complaint(part) is None  # in a sentence a command need not be whole


def test_commands_are_found_with_the_reasons_not_to_run_them(page):
    found = [(command.line, command.block is not None, command.text, command.not_run) for command in commands(page)]
    gpu = "gpu: no GPU is at hand"
    assert found == [
        (3, False, "python jobs/ingest.py --again", None),
        (3, False, "make check", None),
        (6, True, "python jobs/keys.py list --keys keys.json", None),
        (7, True, "python jobs/ingest.py --source facts.jsonl --table TABLE --editor EDITOR", None),
        (16, True, "python jobs/train.py --device cuda --output s3://bucket/editor", "aws: needs an AWS account"),
        (17, True, "PYTHONPATH=. python jobs/train.py", "aws: needs an AWS account"),
        (22, True, "python jobs/train.py --device cuda", gpu),
        (23, True, "python jobs/train.py", None),
        (24, True, "python jobs/serve.py … --port 8000", "is not whole: …"),
    ]


def test_placeholders_are_filled_and_nothing_else(page):
    ingest = next(command for command in commands(page) if "TABLE" in command.text)
    assert ingest.filled == "python jobs/ingest.py --source facts.jsonl --table table --editor editor"
    assert (
        whole("NEWER=1 python jobs/x.py --ID-of ID MY_TABLE").filled == "NEWER=1 python jobs/x.py --ID-of fr MY_TABLE"
    )


def test_an_unknown_reason_is_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("<!-- needs: luck -->\n```\nmake test\n```\n")
    with pytest.raises(ValueError, match=r"page.md:1: .* is not understood; give one of aws"):
        commands(path)


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path, timeout_s=20)
    yield folder
    folder.close()


def test_a_command_runs_or_tells_why_not(folder):
    ok = folder.run(whole("echo first; echo last line; echo"))
    assert (ok.status, ok.said) == ("ok", "last line")
    failed = folder.run(whole("echo why >&2; exit 3"))
    assert (failed.status, failed.said) == ("failed", "exit status 3: why")
    folder._timeout_s = 0.3
    assert folder.run(whole("sleep 60")).said.startswith("not done in 0.3 s")
    aside = Command(file="page.md", line=1, block=1, text="exit 1", not_run="gpu: none")
    assert folder.run(aside) == Outcome(command=aside, status="not run", said="gpu: none")


def test_a_server_answers_until_its_block_ends(tmp_path):
    (tmp_path / "fixture" / "jobs").mkdir(parents=True)
    server = "import time, pathlib\nprint('serving http://x', flush=True)\npathlib.Path('up').touch()\ntime.sleep(60)\n"
    (tmp_path / "fixture" / "jobs" / "serve.py").write_text(server)
    block = [whole(f"{sys.executable} jobs/serve.py"), whole("sleep 0.5; ls up"), whole("false")]
    outcomes = list(run_all(block, tmp_path / "fixture", timeout_s=20))
    assert [each.status for each in outcomes] == ["ok", "ok", "failed"]
    assert not (tmp_path / "fixture" / "up").exists()  # each block has a copy
    page = report(outcomes)
    assert "2 ok, 1 failed, 0 not run" in page
    assert "| page.md:1 | `false` | failed |" in page


def test_the_project_is_reachable_from_a_scratch_folder(folder):
    link_project(folder.path)
    assert folder.run(whole("ls jobs/train.py serving/config.yaml .venv/bin")).status == "ok"
