"""Faults of users, data and surroundings, each a subclass of one root.

RecipeError
├── ConfigError    an option, or two options together, that cannot be
├── FactError      a fact or a dump of facts that cannot be used
├── ModelError     an LLM, an encoder or a device that cannot be had
├── EditorError    a trained editor that cannot be read, or that does not fit the LLM
├── TableError     a table of facts that cannot be read, written, or that another editor encoded
├── OutputError    a place that cannot be written
└── ServiceError   a service that cannot start or does not answer

A message says where, what was wrong, what was expected and what to do. Jobs print it as their last line and exit
non-zero; anything else that escapes is our own mistake and keeps its traceback.
"""


class RecipeError(Exception):
    """Root of every fault that a user, an operator or a data set can cause."""


class ConfigError(RecipeError):
    """An option, or two options together, that cannot be."""


class FactError(RecipeError):
    """A fact or a dump of facts that cannot be used."""


class ModelError(RecipeError):
    """An LLM, an encoder or a device that cannot be had."""


class EditorError(RecipeError):
    """A trained editor that cannot be read, or that does not fit the LLM."""


class TableError(RecipeError):
    """A table of facts that cannot be read or written, or that another editor encoded."""


class OutputError(RecipeError):
    """A place that cannot be written."""


class ServiceError(RecipeError):
    """A service that cannot start or does not answer."""
