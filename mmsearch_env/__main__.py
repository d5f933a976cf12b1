"""``python -m mmsearch_env play`` and ``python -m mmsearch_env demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from mmsearch_env import demo, play
from mmsearch_env.errors import MMSearchError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status; 2 for a mistake in the arguments or the data."""
    parser = argparse.ArgumentParser(prog="python -m mmsearch_env", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{play,demo}")
    for module in (play, demo):
        summary = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(module.__name__.rpartition(".")[2], help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen, Console(highlight=False)))
    except MMSearchError as error:
        Console(stderr=True, highlight=False).print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130


if __name__ == "__main__":
    sys.exit(main())
