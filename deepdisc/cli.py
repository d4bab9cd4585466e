"""The command line: `deepdisc COMMAND ...`. Arguments in, one call of the public API, an exit code out.

Exit codes: 0 done; 2 the user's input is wrong; 3 done, but parts of the field could not be read; 1 a fault of ours.
Heavy modules are imported inside the handlers in `deepdisc.commands`, so that `deepdisc --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence

from deepdisc import __version__
from deepdisc.commands import catalogue, fields, models, scoring, training
from deepdisc.commands.command import DONE, FAULT, INTERRUPTED, WRONG_INPUT
from deepdisc.errors import InputError

COMMANDS = (
    fields.add_simulate,
    training.add_prepare,
    training.add_train,
    training.add_calibrate,
    catalogue.add_predict,
    scoring.add_evaluate,
    scoring.add_compare,
    scoring.add_match,
    models.add_models,
    models.add_export,
    fields.add_regrid,
    fields.add_inspect,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the arguments of the process."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
    except SystemExit as exit_:  # argparse has printed its help or its message
        return int(exit_.code or 0)
    # what libraries tell of themselves is no news to the user
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("deepdisc").setLevel(logging.INFO)
    try:
        with _terminated_like_interrupted():
            return args.run(args)
    except InputError as error:
        print(f"deepdisc: error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("deepdisc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone (`deepdisc models list | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception:
        traceback.print_exc()
        print(f"deepdisc {__version__}: a fault of deepdisc; please report it with the lines above", file=sys.stderr)
        return FAULT


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which batch systems end a job, clean up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    """Prints a mistake as one line, without the usage."""

    def error(self, message: str):
        self.exit(WRONG_INPUT, f"deepdisc: error: {message}; see {self.prog} --help\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse arguments; `key=value` arguments may stand anywhere among the flags, which argparse alone refuses."""
    parser = make_parser()
    args, rest = parser.parse_known_args(list(argv))
    strangers = [text for text in rest if text.startswith("-") or "=" not in text or "many" not in args]
    if strangers:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    if rest:
        setattr(args, args.many, [*getattr(args, args.many), *rest])
    return args


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="deepdisc",
        description="Pixels in, a photo-z catalogue out: find, separate and measure the galaxies of a mosaic.",
        epilog="`deepdisc COMMAND --help` shows an example of each command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"deepdisc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
