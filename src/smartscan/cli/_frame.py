"""The command line's frame: finds commands, reads the configuration, turns errors into exit statuses.

Touches: stderr, and a crash report in the temporary directory when the program itself is at fault.
A command is one module of this package that offers `command`; it is imported only when it is called,
so that `smartscan stats` does not pay for Docker. A command returns its exit status (None is 0),
prints results to stdout and raises `SmartScannerError` for what it cannot do.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn

import click

from smartscan import __version__, cli, interrupts
from smartscan.cli._options import PROGRAM
from smartscan.errors import EXIT_INTERRUPTED, SmartScannerError, UsageError

EXIT_PIPE = 128 + 13  # as shells report a program that SIGPIPE ended

# The order in which a user meets them; help lists any others after these.
ORDER = ("scan", "plan", "monitor", "stats", "story", "problems", "retry", "cleanup", "doctor")


class Frame(click.Group):
    """The group of all commands, with this program's words for what goes wrong."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = {m.name for m in pkgutil.iter_modules(cli.__path__) if not m.name.startswith("_")}
        return [name for name in ORDER if name in found] + sorted(found.difference(ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"{cli.__name__}.{cmd_name}")
        interrupts.check()
        command: click.Command = module.command
        return command

    def main(  # type: ignore[override]  # always ends the process, as click's own does by default
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        extra["standalone_mode"] = False
        try:
            sys.excepthook = crash
            interrupts.check()
            for stream in (sys.stdout, sys.stderr):  # a letter that the terminal lacks ends no command
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
            status = super().main(args, prog_name or os.environ.get("SMART_SCAN_COMMAND") or PROGRAM, **extra)
        except SmartScannerError as error:
            say(str(error))
            status = error.exit_status
        except click.ClickException as error:
            say(sentence(error))
            status = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            status = EXIT_INTERRUPTED
        gc.freeze()  # else the interpreter's end looks through all that was loaded, and finds nothing
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            status = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_PIPE
        return status


def say(message: str) -> None:
    """Print one line about this run to stderr."""
    from smartscan.model import printable

    lines = "\n".join(map(printable, message.split("\n")))  # names of a catalogue may be of anybody
    print(f"{PROGRAM}: {lines}", file=sys.stderr)


def sentence(error: click.ClickException) -> str:
    """Make one line of what click prints as three."""
    message = error.format_message().rstrip(".").replace("\n", " ")
    message = message[:1].lower() + message[1:]
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message}; see '{error.ctx.command_path} --help'"
    return message


def crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report a fault of the program itself: one line, with the path of the file that has the rest.

    Installed as sys.excepthook, which also leaves exit status 1.
    """
    import tempfile
    import traceback

    lines = traceback.format_exception(kind, error, trace)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"{PROGRAM}-crash-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as report:
            report.writelines([" ".join(map(repr, sys.argv)), "\n", *lines])
    except OSError:
        sys.stderr.writelines(lines)
    else:
        say(
            f"this is a fault of the program ({kind.__name__}: {error}); "
            f"please report it with the file {report.name}, or run again with --debug to see it."
        )


@click.group(
    cls=Frame,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Results go to stdout, messages to stderr. `smartscan COMMAND --help` shows an example of each.",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Catalogue a share of any size, and never get stuck on one directory."""
    from smartscan import config

    ctx.default_map = config.default_map()
    if umask := os.environ.get("UMASK"):  # as NAS users know it from other containers
        try:
            os.umask(int(umask, 8))
        except ValueError:
            raise UsageError(f"UMASK is '{umask}', and must be octal, such as 022") from None
