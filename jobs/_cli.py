"""What every job's command line shares: flags by tyro, and faults of users in one line."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from recipe_ray.errors import RecipeError

Args = TypeVar("Args")

WRONG_COMMAND_LINE = 64  # EX_USAGE of sysexits.h; 2 is what an ingest says of quarantined rows


def run(main: Callable[[Args], None], args_type: type[Args]) -> NoReturn:
    """Parse the command line into `args_type`, call `main`, and exit.

    Exit status: 0 done, 1 a fault of user, data or surroundings (one line on standard error), 64 a wrong command line
    (likewise), 130 interrupted. Any other exception is our own mistake and keeps its traceback.
    """
    try:
        main(_parse(args_type, main.__doc__ or ""))
    except RecipeError as error:
        _fail(str(error), status=1)
    except KeyboardInterrupt:
        _fail("interrupted", status=130)
    sys.exit(0)


def _parse(args_type: type[Args], description: str) -> Args:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(args_type, description=description)
    except SystemExit as exit_:
        if exit_.code not in (0, None):
            _fail(f"{_one_line(complaint.getvalue())}; --help lists the flags", status=WRONG_COMMAND_LINE)
        raise


def _one_line(box: str) -> str:
    """What tyro says in its box, without the box (drawn in ASCII or Unicode, coloured or not) and its helpful rest."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]|-{4,}", "", box).split())
    text = re.sub(r"^(.+?) (?=\1\b)", "", text, flags=re.IGNORECASE)  # the title, where the text begins with it
    return re.sub(r"\s*(For full helptext|Argument helptext).*", "", text)


def _fail(message: str, *, status: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)
