"""The command `amortopt`: finds the subcommand, imports only what that needs, turns errors into one line."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amortopt.system.extras import MissingExtraError, needed_for
from amortopt.system.memory import keep_freed_memory


@dataclass(frozen=True)
class Command:
    """A subcommand, imported when it is called.

    Args:
        module: Where it lives.
        attribute: Name of the function there.
        help: One line for the overview.
        parses_itself: Whether the function takes the list of arguments; otherwise it is an ordinary function
            with typed arguments, from which jsonargparse makes positionals (required ones) and options.
        extra: The extra with the packages that it imports.
    """

    module: str
    attribute: str
    help: str
    parses_itself: bool = False
    extra: str = "cli"


COMMANDS = {
    "demo": Command(
        "amortopt.cli.demo",
        "demo",
        "watch one forward pass improve networks that it has never seen",
        extra="demo",
    ),
    "zoo": Command(
        "amortopt.cli.zoo",
        "main",
        "train and store many base networks (zoo build)",
        parses_itself=True,
        extra="train",
    ),
    "fit": Command(
        "amortopt.cli.fit", "main", "train a metanet by a recipe", parses_itself=True, extra="train"
    ),
    "one-shot": Command(
        "amortopt.cli.one_shot", "one_shot", "apply a trained metanet to stored weights once"
    ),
    "info": Command("amortopt.cli.info", "info", "print and prove the symmetry of a module"),
}


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; by default those of the process.

    Returns:
        Exit status: 0 if all went well, 2 if the arguments or a file are wrong, 130 after an interruption.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        from amortopt import __version__

        print(__version__)
        return 0
    try:
        _run(args[0], args[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("AMORTOPT_DEBUG") == "1" or not _is_for_the_user(error):
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2
    return 0


def _run(name: str, args: list[str]) -> None:
    if name not in COMMANDS:
        raise ValueError(
            f"got the command {name!r}, expected one of: {', '.join(COMMANDS)}; see amortopt --help"
        )
    keep_freed_memory()
    command = COMMANDS[name]
    with needed_for(f"amortopt {name}", extra=command.extra):
        from jsonargparse import auto_cli

        function: Callable[..., Any] = getattr(importlib.import_module(command.module), command.attribute)
    if command.parses_itself:
        function(args)
        return
    auto_cli(function, args=args, prog=f"amortopt {name}", exit_on_error=False)


def _overview() -> str:
    lines = [f"  {name:<10}{command.help}" for name, command in COMMANDS.items()]
    return "usage: amortopt COMMAND [options]\n\n" + "\n".join(lines) + "\n\nOptions: amortopt COMMAND --help"


def _is_for_the_user(error: Exception) -> bool:
    # jsonargparse and argparse are imported only by commands that ran, so they are recognised by name.
    return (
        isinstance(error, ValueError | OSError | MissingExtraError) or type(error).__name__ == "ArgumentError"
    )


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if type(error).__name__ == "ArgumentError":
        # jsonargparse: 'Parser key "rows":\n  Expected a <class \'int\'>. Got value: x'
        text = re.sub(r"<class '(\w+)'>", r"\1", " ".join(str(error).split()))
        return re.sub(r'^Parser key "([\w.]+)":', r"--\1:", text)
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
