"""The commands that README and docs tell people to type, and whether what they name is there.

A fenced block holds commands where its lines begin with a program (`PROGRAMS`). A comment before it says why its
commands cannot be run:

    <!-- needs: gpu: no GPU is at hand -->          all of them
    <!-- needs: long "--preset llama" -->           those that hold the text

One of `KINDS`, a text in quotes if not all are meant, a reason of one's own if the kind does not say enough. Several
comments may follow each other.
"""

import argparse
import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import jobs._cli
from recipe_ray.errors import RecipeError

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "docs" / "docs-check.md"

KINDS = {
    "aws": "needs an AWS account",
    "kubernetes": "needs a Kubernetes cluster",
    "gpu": "needs a GPU",
    "docker": "needs a container engine",
    "hub": "needs a model hub",
    "long": "takes long",
    "server": "needs a running cluster or server",
    "package": "needs a package that the project does not install",
    "data": "needs data that the project does not ship",
}
_SHELL = "cd chmod cp curl export git mkdir rm source"
_TOOLS = "aws docker helm kind kubectl make pip podman promtool python python3.11 ray serve shellcheck"
PROGRAMS = frozenset(f"{_SHELL} {_TOOLS}".split())
ELLIPSIS = "…"
_SHELL_FENCES = ("", "bash", "sh", "console")
OPTIONAL = frozenset({"lm_eval", "vllm", "playwright"})
"""Modules that no development environment needs: flags of programs that import them are checked where they are."""
_PLACEHOLDERS = {
    "EDITOR": "editor",
    "NEW": "editor2",
    "TABLE2": "table2",
    "TABLE": "table",
    "COMMAND": "list",
    "ID": "fr",
    "VERSION": "1",
    "BEFORE": "1",
    "AFTER": "2",
    "DAYS": "30",
    "N": "1",
    "LLM": "testbed",
    "RUNS": "runs",
    "RUN": "run",
    "FOLDER": "folder",
    "FILE": "data.json",
    "URL": "http://127.0.0.1:8000",
}
_NEEDS = re.compile(r'<!-- needs: (?P<kind>\w+)(?: "(?P<text>[^"]+)")?(?:: (?P<reason>.+?))? -->')
_OPERATORS = (">", ">>", "<", "|", "||", "&&", "&")  # what follows is the shell's, or another command's
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
_INLINE = re.compile(
    r"`((?:python3? )?(?:jobs|benchmarks|tests|infra)/\w[\w/]*\.py(?: [^`]*)?|python3? -m [^`]+|make [\w-]+)`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command as it is written.

    Attributes:
        file: below the root.
        line: where it begins.
        block: the line where its fence opens; None where it stands in a sentence or a table.
        text: continued lines joined, comment left out.
        not_run: why it cannot be run.
    """

    file: str
    line: int
    block: int | None
    text: str
    not_run: str | None = None

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.file}:{self.line}"

    @property
    def is_whole(self) -> bool:
        """Whether it can be typed as it is: in a block, nothing left out."""
        return self.block is not None and ELLIPSIS not in self.text

    @property
    def filled(self) -> str:
        """With names of a scratch folder in place of the placeholders."""
        names = "|".join(_PLACEHOLDERS)
        return re.sub(rf"(?<![\w-])({names})(?![\w-])", lambda found: _PLACEHOLDERS[found[1]], self.text)

    @property
    def words(self) -> list[str]:
        """As a shell divides it, without assignments before the program."""
        words = shlex.split(self.filled)
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        ends = [place for place, word in enumerate(words) if word in _OPERATORS]
        return words[: ends[0]] if ends else words


def documents() -> list[Path]:
    """README and docs, but for the result of running them."""
    return [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path != RESULT)]


def commands(path: Path) -> list[Command]:
    """All commands of a document, in their order.

    Raises:
        ValueError: a comment names no known kind, with file and line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    found: list[Command] = []
    needs: list[re.Match[str]] = []
    opened: int | None = None
    is_shell = False
    number = 0
    while number < len(lines):
        line, begun = lines[number], number + 1
        number += 1
        if line.lstrip().startswith("```"):
            is_shell = line.strip().removeprefix("```") in _SHELL_FENCES
            opened, needs = (begun, needs) if opened is None else (None, [])
        elif opened is not None:
            while line.endswith("\\") and number < len(lines):
                line = f"{line[:-1].rstrip()} {lines[number].strip()}"
                number += 1
            text = _without_comment(line)
            if is_shell and _first_program(text) in PROGRAMS:
                reason = next((_reason(each) for each in needs if (each["text"] or "") in text), None)
                if reason is None and ELLIPSIS in text:
                    reason = "is not whole: …"
                found.append(Command(file=name, line=begun, block=opened, text=text, not_run=reason))
        elif "<!-- needs:" in line:
            match = _NEEDS.fullmatch(line.strip())
            if match is None or match["kind"] not in KINDS:
                raise ValueError(f"{name}:{begun}: {line.strip()} is not understood; give one of {', '.join(KINDS)}")
            needs.append(match)
        else:
            needs = needs if not line.strip() else []
            found += [
                Command(file=name, line=begun, block=None, text=match[1].replace("\\|", "|"))
                for match in _INLINE.finditer(line)
            ]
    return found


def complaint(command: Command) -> str | None:
    """What is wrong with a command of the project's own: a file, a module, a make target or a flag that is not there.

    Of a command that is whole its values are parsed too, by the program's own parser; nothing of it is run.
    """
    for start in _programs(command.words):
        if start[0] == "make":
            unknown = [name for name in start[1:] if name not in make_targets()]
            if unknown:
                return f"make has no target {unknown[0]!r}"
            continue
        program, args = start[0], start[1:]
        if not (ROOT / program).is_file():
            return f"{program} does not exist"
        if program.startswith("tests/"):  # started by pytest, whose flags are its own
            continue
        subcommand = args[0] if args and not args[0].startswith("-") else None
        try:
            flags = known_flags(program, subcommand)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            continue
        if isinstance(flags, str):
            return flags
        for word in args:
            flag = word.partition("=")[0]
            if re.fullmatch(r"--[a-z][\w-]*", flag) and flag not in flags:
                return f"{program} {subcommand or ''}".strip() + f" knows no {flag}"
        if command.is_whole and (said := _parse(program, args)) is not None:
            return f"{program}: {said}"
    return None


@functools.cache
def make_targets() -> frozenset[str]:
    """Of the Makefile."""
    return frozenset(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@functools.cache
def known_flags(program: str, subcommand: str | None) -> frozenset[str] | str:
    """The flags that a program's help lists, or what it says instead."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        mock.patch.dict("os.environ", COLUMNS="500"),
    ):
        status = _run_as_main(program, [subcommand, "--help"] if subcommand else ["--help"])
    if status not in (0, None):
        return f"{program} {subcommand or ''}: {said.getvalue().strip()[-300:]}"
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w-]*", said.getvalue()))


class _Parsed(BaseException):
    """The command line was understood."""


def _parse(program: str, args: list[str]) -> str | None:
    """Let a program parse its command line, and stop it there."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser) -> None:
        parse_args(parser)
        raise _Parsed

    def run(main: object, args_type: type) -> None:
        jobs._cli._parse(args_type, "")
        raise _Parsed

    said = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(said),
            mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
            mock.patch.object(jobs._cli, "run", run),
        ):
            status = _run_as_main(program, args)
    except _Parsed:
        return None
    except RecipeError as error:
        return str(error)
    return None if status == 0 else said.getvalue().strip()[-300:]  # 0 is --help


def _run_as_main(program: str, args: list[str]) -> int | str | None:
    with mock.patch.object(sys, "argv", [program, *args]):
        try:
            runpy.run_path(str(ROOT / program), run_name="__main__")
        except SystemExit as exit_:
            return exit_.code
    raise AssertionError(f"{program} has no command line: --help did not end it")


def _programs(words: list[str]) -> Iterator[list[str]]:
    """Each start of a program of the project in a command: `make …`, or a script below the root and its arguments."""
    if words[:1] == ["make"]:
        yield ["make", *(word for word in words[1:] if "=" not in word and not word.startswith("-"))]
        return
    for place, word in enumerate(words):
        if word.endswith(".py") and "/" in word and (place == 0 or Path(words[place - 1]).name.startswith("python")):
            yield words[place:]
            return
        if word == "-m" and place and Path(words[place - 1]).name.startswith("python"):
            module = words[place + 1]
            if module.partition(".")[0] in ("recipe_ray", "jobs", "serving"):
                yield [f"{module.replace('.', '/')}.py", *words[place + 2 :]]
            return


def _reason(match: re.Match[str]) -> str:
    return f"{match['kind']}: {match['reason'] or KINDS[match['kind']]}"


def _first_program(text: str) -> str:
    words = text.split()
    while words and _ASSIGNMENT.fullmatch(words[0].rstrip(";")):
        words = words[1:]
    return words[0].rpartition("/")[2] if words else ""


def _without_comment(line: str) -> str:
    quoted = None
    for place, letter in enumerate(line):
        if quoted:
            quoted = None if letter == quoted else quoted
        elif letter in "'\"":
            quoted = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].strip()
    return line.strip()
