"""Look at a table of facts and look after it: `python jobs/facts.py COMMAND --table …`.

Exit status: 0 done, 1 failed (one line on standard error), 64 a wrong command line.
"""

from typing import Annotated, Any, Union

import tyro

from jobs._cli import run
from jobs._facts import Command
from jobs._facts_read import READ_COMMANDS

# Each module of commands gives a dictionary of them by name, in the order of the help.
COMMANDS: dict[str, type[Command]] = {**READ_COMMANDS}

_AnyCommand: Any = tyro.conf.FlagCreatePairsOff[
    tyro.conf.OmitSubcommandPrefixes[
        Union[tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())]  # noqa: UP007
    ]
]


def main(command: Command) -> None:
    """Look at a table of facts and look after it. `COMMAND --help` tells a command's flags."""
    command.run()


if __name__ == "__main__":
    run(main, _AnyCommand)
