"""What every command has: --db, -v, --debug, --help with an example, its place in the configuration.

Touches: the logging of this process.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from smartscan import config

if TYPE_CHECKING:
    from smartscan.report import words

PROGRAM = "smartscan"

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class Command(click.Command):
    """A command whose options are all read from one flat table: `chunk-size`, SMART_SCAN_CHUNK_SIZE."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is not None and parent.default_map is not None:
            extra["default_map"] = parent.default_map
        return super().make_context(info_name, args, parent, auto_envvar_prefix="SMART_SCAN", **extra)

    def get_short_help_str(self, limit: int = 200) -> str:
        return super().get_short_help_str(200)  # a sentence is wrapped, not cut


def command(*, examples: Sequence[str]) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a command of a function; it takes `db` and its own options, and returns its exit status."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        lines = "\n".join(f"  {example}" for example in examples)
        made = click.command(
            cls=Command,
            epilog=f"\b\nExample{'s' if len(examples) > 1 else ''}:\n{lines}",
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        )(function)
        made.params += [
            click.Option(
                ["--db"],
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                callback=_file,
                help="The catalogue; without it, smart_catalog.db in the data directory.",
            ),
            click.Option(
                ["-v", "--verbose"], count=True, expose_value=False, callback=_verbose,
                help="Say more on stderr; twice for everything.",
            ),
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=_debug,
                help="Show where an unexpected fault happened, instead of writing it to a file.",
            ),
        ]
        return made

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def commands(db: Path | None) -> words.Commands:
    """Give the commands as this user has to type them: with the name used, and --db where it was given."""
    from smartscan.report import words

    program = os.environ.get("SMART_SCAN_COMMAND") or PROGRAM
    said = click.get_current_context().get_parameter_source("db") is ParameterSource.COMMANDLINE
    return words.Commands(program, str(config.catalogue_path(db)) if said else None)


def _file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value == Path():
        raise click.BadParameter("it is empty", ctx, param)
    return value


def _verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("smartscan")
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[min(value, len(LEVELS) - 1)])


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        sys.excepthook = sys.__excepthook__


def parsed(parse: Callable[[str], float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Make the callback of a text option that one of the parsers in `smartscan.units` reads."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback
