"""``python -m mmsearch_env COMMAND``: play, look, search, and look after what tools keep."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence

from rich.console import Console

from mmsearch_env import cache_command, demo, import_command, index_command, play, search, serve
from mmsearch_env.errors import MMSearchError
from mmsearch_env.rendering import plain

COMMANDS = {
    "play": play,
    "demo": demo,
    "search": search,
    "index": index_command,
    "serve": serve,
    "cache": cache_command,
    "import-fvqa-cache": import_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status; 2 for a mistake in the arguments or the data."""
    _replace_what_cannot_be_coded()
    parser = argparse.ArgumentParser(prog="python -m mmsearch_env", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen, Console(highlight=False)))
    except MMSearchError as error:
        message = plain(f"{type(error).__name__}: {error}")
        Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 130


def _replace_what_cannot_be_coded() -> None:
    """A terminal without UTF-8 shows question marks, and a byte typed by accident is one wrong character."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):  # somebody has read from it already
                stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
