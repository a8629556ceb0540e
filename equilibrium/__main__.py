"""The command line ``contracting-equilibria``, or ``python -m equilibrium``: every study of the documentation by name.

Whatever goes wrong on purpose is one sentence on standard error and exit code 2. Results appear complete or not at all.
``torchrun --nproc-per-node 2 -m equilibrium COMMAND`` trains every model of a command with two processes.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Annotated, Any, get_args, get_type_hints

from contracting import __version__, checks
from contracting.errors import ContractingError, InputError
from equilibrium.experiments.catalogue import COMMANDS, TRAINED_TOGETHER
from equilibrium.training import ranks

PROGRAM = "contracting-equilibria"
_BAD_INPUT, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (those of the process if None) and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_empty_values(given)
        application = _application(checks.extra("typer", "cli", "the command line"))
        with ranks.joined():
            code: int = application(args=given or ["--help"], prog_name=PROGRAM, standalone_mode=False) or 0
        return _refuse("interrupted", code) if code == _INTERRUPTED else code
    except ContractingError as error:
        return _refuse(str(error))
    except Exception as error:
        # a mistake in the options or an interrupt; the class is typer's or click's, depending on their versions
        if type(error).__name__ == "Abort":
            return _refuse("interrupted", _INTERRUPTED)
        if not hasattr(error, "format_message"):
            raise
        return _refuse(f"{error.format_message()} (options: {PROGRAM} COMMAND --help)")


def _refuse_empty_values(given: Sequence[str]) -> None:
    """No option has a use for the empty text, and as a path it would silently be the current folder."""
    for before, text in zip([PROGRAM, *given], given, strict=False):
        if not text or (text.startswith("--") and text.endswith("=")):
            raise InputError(f"the value of {text[:-1] or before} is the empty text; give another one or leave it out")


def _refuse(message: str, code: int = _BAD_INPUT) -> int:
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _application(typer: ModuleType) -> Any:
    """The typer application with all commands."""
    application = typer.Typer(
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Contracting flows and equilibrium networks: solved, certified, compared and drawn.",
    )
    application.callback(invoke_without_command=True)(_with_options(_version, typer))
    for name, command in COMMANDS.items():
        application.command(name)(_with_options(command, typer))
    return application


def _version(version: Annotated[bool, "Print the version and exit."] = False) -> None:
    if version:
        print(f"{PROGRAM} {__version__}")
        sys.exit()


def _with_options(command: Callable[..., None], typer: ModuleType) -> Callable[..., None]:
    """The command with typer's options where its annotations have a type and a help text."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        if ranks.count() > 1 and command not in (_version, *TRAINED_TOGETHER):
            together = ", ".join(name for name, other in COMMANDS.items() if other in TRAINED_TOGETHER)
            raise InputError(f"torchrun's processes can share the trainings of {together}; start this one alone")
        command(**given)

    options: dict[str, Any] = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        if name != "return":
            kind, text = get_args(hint)
            flag = [f"--{name.replace('_', '-')}"] if kind is bool else []  # or typer would add --no-small
            options[name] = Annotated[kind, typer.Option(*flag, help=text)]
    parameters = inspect.signature(command).parameters
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameters[name].replace(annotation=option) for name, option in options.items()]
    )
    run.__annotations__ = options
    return run


if __name__ == "__main__":
    sys.exit(main())
