"""What a user of any job sees: one line for a fault of theirs, a traceback for ours."""

import sys
from dataclasses import dataclass

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from jobs._cli import run
from recipe_ray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """What is to be done.

    Attributes:
        fault: what goes wrong.
        num_workers: how many.
    """

    fault: str = ""
    num_workers: int = 1


class ServerArgs(BaseModel):
    port: int = Field(default=8000, ge=1, le=65535)
    device: str = "cpu"

    @model_validator(mode="after")
    def _agree(self):
        if self.device == "cuda":
            raise ConfigError("device is cuda, but gpus is 0; give device cpu")
        return self


def main(args: Args) -> None:
    """Do it."""
    if args.fault == "user":
        raise ConfigError("num_workers is 3,\n   but num_cpus is 2; give fewer")
    if args.fault == "bug":
        raise KeyError("a mistake of ours")
    if args.fault == "bug of data":
        ServerArgs(port=0)
    if args.fault == "ctrl-c":
        raise KeyboardInterrupt
    print("done", args.num_workers)


def serve(args: ServerArgs) -> None:
    """Serve."""
    print("serving", args.port)


@pytest.fixture
def job(monkeypatch, capsys):
    """Runs a job with flags; gives exit status, standard output and standard error."""

    def start(*flags, of=main, args_type=Args):
        monkeypatch.setattr(sys, "argv", ["job.py", *flags])
        with pytest.raises(SystemExit) as caught:
            run(of, args_type)
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return start


def test_a_job_without_fault_ends_with_0_and_says_nothing_on_standard_error(job):
    assert job("--num-workers", "2") == (0, "done 2\n", "")
    assert job("--port", "80", of=serve, args_type=ServerArgs) == (0, "serving 80\n", "")


def test_a_fault_of_the_user_is_one_line_and_status_1(job):
    assert job("--fault", "user") == (1, "", "error: num_workers is 3, but num_cpus is 2; give fewer\n")
    contradiction = job("--device", "cuda", of=serve, args_type=ServerArgs)
    assert contradiction == (1, "", "error: device is cuda, but gpus is 0; give device cpu\n")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--num-wrokers", "2"), "--num-wrokers"),
        (("--num-workers", "two"), "two"),
        (("--num-workers",), "num-workers"),
        (("stray",), "stray"),
    ],
    ids=["unknown", "no number", "no value", "stray"],
)
@pytest.mark.parametrize("output", ["plain", "utf-8", "terminal"])
def test_a_wrong_command_line_is_one_line_that_names_it_and_status_64(job, monkeypatch, flags, named, output):
    # tyro draws its box by what standard output is: in ASCII, in Unicode, or in Unicode and colours.
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", output != "plain")
    monkeypatch.setattr("tyro._fmtlib._FORCE_ANSI", output == "terminal")
    status, output, complaint = job(*flags)
    (line,) = complaint.splitlines()
    assert (status, output) == (64, "")
    assert line.startswith("error: ")
    assert line.endswith("; --help lists the flags")
    assert named in line
    assert not set("╭│╰─╮╯\x1b") & set(line)
    assert "---" not in line
    assert "helptext" not in line
    assert line.lower().count("unrecognized options") <= 1


@pytest.mark.parametrize("port", ["0", "http"])
def test_a_wrong_value_of_a_model_is_one_line_that_names_it_and_status_64(job, port):
    status, output, complaint = job("--port", port, of=serve, args_type=ServerArgs)
    (line,) = complaint.splitlines()
    assert (status, output) == (64, "")
    assert "port" in line


def test_help_is_no_fault_and_shows_what_each_flag_is(job):
    status, output, complaint = job("--help")
    assert (status, complaint) == (0, "")
    assert "Do it." in output
    assert "--num-workers" in output
    assert "how many" in output


@pytest.mark.parametrize(("fault", "kind"), [("bug", KeyError), ("bug of data", ValidationError)])
def test_a_mistake_of_ours_is_no_exit_but_an_exception(monkeypatch, fault, kind):
    monkeypatch.setattr(sys, "argv", ["job.py", "--fault", fault])
    with pytest.raises(kind):
        run(main, Args)


def test_an_interrupted_job_says_so_in_one_line_and_status_130(job):
    assert job("--fault", "ctrl-c") == (130, "", "error: interrupted\n")
