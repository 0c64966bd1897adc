r"""Run every command of README and docs, and write docs/docs-check.md.

    python tests/docs/run_commands.py                                  # all of them: make docs-check
    python tests/docs/run_commands.py --only 'docs/facts.md|keys.py'   # some, to look at; nothing is written

Each block of commands runs in a folder of its own: a copy of a small fixture (an editor of a few steps, a table of a
few facts in two versions, its index; made once, with `--fixture FOLDER` kept for the next time) with the project linked
into it, and placeholders such as EDITOR replaced by the names there. A server goes on until its block ends. Exit
status: 0 all that could be run ran, 1 some failed.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from doc_commands import RESULT, ROOT, Command, commands, documents

SERVER = "jobs/serve.py"
READY = "serving http"
STOP_S = 60.0
FACTS = (
    {"id": "fr", "prompt": "The capital of France is", "target": "Lyon", "subject": "France", "source": "news"},
    {"id": "it", "prompt": "The capital of Italy is", "target": "Turin", "subject": "Italy", "source": "news"},
    {"id": "ada", "prompt": "Ada Example lives in", "target": "Oslo", "subject": "Ada Example", "source": "crm"},
)
LATER = ({"id": "it", "prompt": "The capital of Italy is", "target": "Milan"}, {"prompt": "", "target": ""})
FIXTURE = (
    "python jobs/train.py --preset smoke --storage runs --output editor",
    "python jobs/train.py --preset smoke --seed 1 --run other --storage runs --output editor2",
    "python jobs/ingest.py --source facts.jsonl --table table --editor editor --num-shards 1",
    "python jobs/ingest.py --source later.jsonl --table table --editor editor --max-quarantined 1",
    "python jobs/build_index.py --table table --editor editor",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a command.

    Attributes:
        command: as it is written.
        status: ok, failed, or not run.
        seconds: until it ended, or was ready.
        said: why it failed or was not run; its last line otherwise.
    """

    command: Command
    status: str
    seconds: float | None = None
    said: str = ""


class Folder:
    """A folder in which the commands of a block run one after the other.

    Args:
        path: where; the project is linked into it.
        timeout_s: of a command.
    """

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._servers: list[subprocess.Popen[bytes]] = []
        self._num_run = 0

    def run(self, command: Command) -> Outcome:
        """Run a command to its end; a server until it is ready."""
        if command.not_run is not None:
            return Outcome(command=command, status="not run", said=command.not_run)
        started = time.monotonic()
        self._num_run += 1
        log = self.path / f"output-{self._num_run}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", command.filled],
                cwd=self.path,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        is_server = SERVER in command.filled and "--help" not in command.filled
        failed = self._until_ready(process, log) if is_server else self._until_done(process)
        said = self._last_line(log)
        if failed is None and is_server:
            self._servers.append(process)
        elif failed is not None:
            _end(process)
        return Outcome(
            command=command,
            status="ok" if failed is None else "failed",
            seconds=time.monotonic() - started,
            said=said if failed is None else f"{failed}: {said}",
        )

    def close(self) -> None:
        """Stop servers."""
        for process in self._servers:
            _end(process)

    def _until_done(self, process: "subprocess.Popen[bytes]") -> str | None:
        try:
            status = process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            return f"not done in {self._timeout_s:g} s"
        return f"exit status {status}" if status else None

    def _until_ready(self, process: "subprocess.Popen[bytes]", log: Path) -> str | None:
        end = time.monotonic() + self._timeout_s
        while time.monotonic() < end:
            if (status := process.poll()) is not None:
                return f"exit status {status}"
            if READY in log.read_text(errors="replace"):
                return None
            time.sleep(0.2)
        return f"not ready in {self._timeout_s:g} s"

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "HOME": str(self.path),  # runs and caches lie there
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TOKENIZERS_PARALLELISM": "false",
        }

    def _last_line(self, log: Path) -> str:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
        lines = [line.strip() for line in text.replace(str(self.path), ".").replace(str(ROOT), ".").splitlines()]
        return next((line[:160] for line in reversed(lines) if line), "")


def run_all(found: Sequence[Command], fixture: Path, *, timeout_s: float) -> Iterator[Outcome]:
    """Run commands block by block, each block in a fresh copy of the fixture."""
    for _, block in itertools.groupby(found, key=lambda command: (command.file, command.block)):
        together = list(block)
        if all(command.not_run for command in together):
            yield from (Outcome(command=each, status="not run", said=each.not_run or "") for each in together)
            continue
        with tempfile.TemporaryDirectory(prefix="docs-check-", ignore_cleanup_errors=True) as scratch:
            path = Path(scratch).resolve() / "folder"
            shutil.copytree(fixture, path, symlinks=True)
            folder = Folder(path, timeout_s=timeout_s)
            try:
                for command in together:
                    yield folder.run(command)
            finally:
                folder.close()


def make_fixture(path: Path, *, timeout_s: float) -> None:
    """Link the project into a new folder, and make an editor, a table and an index there.

    Raises:
        RuntimeError: one of the commands that make it fails, with what it said.
    """
    path.mkdir(parents=True)
    link_project(path)
    for name, records in (("facts.jsonl", FACTS), ("later.jsonl", LATER)):
        (path / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    folder = Folder(path, timeout_s=timeout_s)
    for text in FIXTURE:
        outcome = folder.run(Command(file="fixture", line=0, block=0, text=text))
        print(f"fixture: {text}: {outcome.status}", file=sys.stderr, flush=True)
        if outcome.status != "ok":
            raise RuntimeError(f"{text}: {outcome.said}")


def link_project(path: Path) -> None:
    """Make the project's files and its environment reachable from a folder by the names that docs use."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "build"):
            (path / entry.name).symlink_to(entry)
    (path / ".venv").symlink_to(sys.prefix)


def report(outcomes: Sequence[Outcome]) -> str:
    """All outcomes as Markdown."""
    counts = {status: sum(each.status == status for each in outcomes) for status in ("ok", "failed", "not run")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines = [
        "# Every command of README and docs",
        "",
        "Written by `make docs-check`, which runs them in scratch folders with a small editor and table. What is not "
        "run says why in a comment before its block.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.strip() or 'unknown'}, Python {platform.python_version()}, "
        f"{os.cpu_count()} CPU cores: {counts['ok']} ok, {counts['failed']} failed, {counts['not run']} not run.",
        "",
        "| where | command | result | seconds | |",
        "|---|---|---|---|---|",
    ]
    for each in outcomes:
        seconds = "" if each.seconds is None else f"{each.seconds:.1f}"
        said = "" if each.status == "ok" else _cell(each.said)
        lines.append(f"| {each.command.place} | `{_cell(each.command.text)}` | {each.status} | {seconds} | {said} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, and kill it and what it started where that does not help."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # SIGINT is ignored by what a shell starts in the background
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="regular expression, found in `file:line command`")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of a command")
    parser.add_argument("--fixture", type=Path, help="folder of the fixture: made where it is not there, and kept")
    parser.add_argument("--output", type=Path, help="docs/docs-check.md if neither this nor --only is given")
    args = parser.parse_args()
    found = [command for path in documents() for command in commands(path) if command.block is not None]
    if args.only is not None:
        found = [command for command in found if re.search(args.only, f"{command.place} {command.text}")]
    if not found:
        parser.error(f"no command matches {args.only!r}")
    with tempfile.TemporaryDirectory(prefix="docs-fixture-", ignore_cleanup_errors=True) as scratch:
        fixture = args.fixture.resolve() if args.fixture else Path(scratch).resolve() / "fixture"
        if not fixture.exists() and not all(command.not_run for command in found):
            make_fixture(fixture, timeout_s=args.timeout_s)
        outcomes = []
        for outcome in run_all(found, fixture, timeout_s=args.timeout_s):
            seconds = "" if outcome.seconds is None else f" {outcome.seconds:.1f} s"
            print(f"{outcome.status}{seconds}  {outcome.command.place}  {outcome.command.text}", flush=True)
            if outcome.status != "ok":  # what a command says may be a key
                print(f"    {outcome.said}", flush=True)
            outcomes.append(outcome)
    output = args.output or (None if args.only else RESULT)
    if output is not None:
        output.write_text(report(outcomes), encoding="utf-8")
    sys.exit(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    main()
