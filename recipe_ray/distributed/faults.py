"""Faults of users and data on their way out of Ray."""

import contextlib
import logging
from collections.abc import Iterator

from ray.exceptions import RayTaskError

from recipe_ray.errors import RecipeError


@contextlib.contextmanager
def user_faults() -> Iterator[None]:
    """Raise a RecipeError that a task or an actor raised as itself, in one line, instead of as Ray's wrapping of it.

    Ray Data writes the traceback of a failed task to the console as well; it is kept quiet here, because the exception
    that leaves carries the same.
    """
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except RayTaskError as error:
        fault = error.cause
        if not isinstance(fault, RecipeError):
            raise
        # Ray Data appends advice on retries to the message; ours has one line.
        raise type(fault)(str(fault).splitlines()[0]) from error
    finally:
        logger.setLevel(level)
