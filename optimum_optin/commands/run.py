"""Run one command: parse its arguments, print what it returns, turn errors into exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout

from ..commands import benchmark, check, evaluate, export, info, plan, prune, push, recover, score
from ..files.folders import NotSavedError
from ..quoting import printable
from ..running.processes import is_main

COMMANDS = {
    "check": check,
    "prune": prune,
    "score": score,
    "plan": plan,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "export": export,
    "info": info,
    "push": push,
    "recover": recover,
}
"""Name -> module with `add_arguments(parser)` and `run(arguments)`, which returns `(JSON-able dict, text)`, or these
and the exit code."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run a command.

    The result goes to stdout; logs and progress bars go to stderr.

    Args:
        command: a key of `COMMANDS`.
        arguments: the words that follow it.

    Returns:
        The exit code: 0, 1 for a failure or where `check` finds one, 2 for bad input, 130 if interrupted.

    Raises:
        SystemExit: wrong usage (2), or `--help` (0).
    """
    parser = make_parser(command)
    parsed = parser.parse_args(arguments)
    try:
        with redirect_stdout(sys.stderr):
            data, text, *code = COMMANDS[command].run(parsed)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except NotSavedError as error:
        if error.result is not None:
            _print(parsed, *error.result)
        return _report(parser, parsed, error, 2 if _is_refused(error.__cause__) else 1)
    except Exception as error:
        return _report(parser, parsed, error, 2 if _is_bad_input(error) else 1)
    _print(parsed, data, text)
    return code[0] if code else 0


def make_parser(command: str) -> argparse.ArgumentParser:
    """The parser of a command; its description is the module's docstring."""
    module = COMMANDS[command]
    parser = argparse.ArgumentParser(f"optimum-cli optin {command}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout instead of text")
    parser.add_argument("--verbose", action="store_true", help="show where an error came from (so does OPTIN_DEBUG=1)")
    return parser


def _print(parsed: argparse.Namespace, data: dict, text: str) -> None:
    if is_main():  # under `accelerate launch`, one result
        print(json.dumps(data, indent=2) if parsed.json else printable(text))


def _report(parser: argparse.ArgumentParser, parsed: argparse.Namespace, error: Exception, code: int) -> int:
    if parsed.verbose or os.environ.get("OPTIN_DEBUG"):
        traceback.print_exception(error)
    print(f"{parser.prog}: error: {_one_line(error)}", file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__


def _is_refused(error: BaseException | None) -> bool:
    """Whether the Hub answered with a refusal, rather than failed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and status < 500


def _is_bad_input(error: Exception) -> bool:
    if getattr(error, "response", None) is not None:
        return _is_refused(error)
    if isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError, PermissionError)):
        return True
    # transformers raises a bare OSError for a model that does not exist; the system's errors carry a number.
    return isinstance(error, OSError) and error.errno is None and not isinstance(error, ConnectionError)
