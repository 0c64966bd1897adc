"""Look at a table of facts and look after it: `python jobs/facts.py COMMAND --table …`.

Exit status: 0 done, 1 failed (one line on standard error), 64 a wrong command line.
"""

from typing import Annotated, Any, Union

import tyro

from jobs._cli import run
from jobs._facts import Command
from jobs._facts_edit import EDIT_COMMANDS
from jobs._facts_maintain import MAINTAIN_COMMANDS
from jobs._facts_read import READ_COMMANDS

# Each module of commands gives a dictionary of them by name, in the order of the help.
COMMANDS: dict[str, type[Command]] = {**READ_COMMANDS, **EDIT_COMMANDS, **MAINTAIN_COMMANDS}


def main(command: Command) -> None:
    """Look at a table of facts and look after it. `COMMAND --help` tells a command's flags."""
    command.run()


def command_type() -> Any:
    """What tyro parses into: any of the commands, as a subcommand."""
    named = tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())
    together: Any = Union[named]  # noqa: UP007 -- made of what the dictionary holds
    for marker in (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff):
        together = marker[together]
    return together


if __name__ == "__main__":
    run(main, command_type())
