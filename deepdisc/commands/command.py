"""What the commands share: how one is added to the parser, its exit codes, how settings are printed."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from deepdisc.errors import InputError, first_line

DONE, FAULT, WRONG_INPUT, PARTS_UNREAD, INTERRUPTED = 0, 1, 2, 3, 130


def command(
    commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
    details: str = "",
) -> argparse.ArgumentParser:
    """Add a command whose help shows an example that runs.

    Args:
        commands: argparse's subparsers.
        name: as typed.
        run: what `deepdisc NAME` calls with the parsed arguments; returns the exit code.
        summary: one line, without a full stop.
        example: one command line or several, each beginning with `deepdisc`.
        details: further lines of the help.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n{details}",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Accept `key=value` arguments, which change the settings of a config file."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the config file to change")
    parser.set_defaults(many="overrides")


def print_yaml(values: dict) -> None:
    """Print plain values for people to read and programs to parse."""
    import yaml

    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), end="")


def choose_device(name: str):
    """The torch device of a --device option; "auto" is a GPU where there is one.

    Raises:
        InputError: there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: {first_line(error)}; use --device cpu") from error
    return device
