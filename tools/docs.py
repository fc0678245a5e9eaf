"""Make the documents that say what the source says: docs/catalogue.md, configuration.md and commands.md.

Touches: docs/. With --check nothing is written; exit status 1 says that a document is out of date.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from smartscan import config
from smartscan.catalogue.open import APPLICATION_ID
from smartscan.cli import _frame

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "src" / "smartscan" / "catalogue" / "schema.sql"
HELP_COLUMNS = 100


@dataclass(frozen=True)
class Item:
    """A table, view or index of the schema with the comment above it."""

    kind: str
    name: str
    comment: str
    body: str


def catalogue() -> str:
    """Render the schema: what its comments say, and the columns as SQLite understands them."""
    text = SCHEMA.read_text("utf-8")
    history, _, conventions = _uncomment(text.partition("\n\n")[0]).partition("Conventions:")
    items = list(_items(text))
    with sqlite3.connect(":memory:") as conn:
        conn.executescript(text)
        parts = [
            "# The catalogue",
            _note("src/smartscan/catalogue/schema.sql"),
            "`smart_catalog.db` is one SQLite file. Read it with whatever reads SQLite, also while a scan "
            "runs, but leave writing to Smart Scanner. Open it read-only:",
            "```sh\n"
            "sqlite3 'file:smart_catalog.db?mode=ro' \\\n"
            "    \"SELECT path, size FROM files WHERE extension = 'iso' ORDER BY size DESC LIMIT 10\"\n"
            "```",
            "Names and paths hold the bytes of the file system. Where they may not be UTF-8, ask for "
            "`CAST(path AS BLOB)`.",
            f"`PRAGMA application_id` is {APPLICATION_ID:#010x}. " + _paragraph(conventions).strip(),
            "## Versions",
            "```text\n" + history.partition("Version history")[2].partition("\n")[2].rstrip() + "\n```",
        ]
        for kind, title in (("TABLE", "Tables"), ("VIEW", "Views")):
            parts.append(f"## {title}")
            for item in items:
                if item.kind == kind:
                    parts += [f"### {item.name}", item.comment, "\n".join(_columns(conn, item))]
    return _document(parts)


def _items(text: str) -> Iterator[Item]:
    pattern = re.compile(r"((?:^--[^\n]*\n)*)^CREATE (TABLE|VIEW|INDEX) (\w+)(.*?);(?=\n|$)", re.M | re.S)
    for comment, kind, name, body in pattern.findall(text):
        yield Item(kind, name, _paragraph(_uncomment(comment)), body)


def _columns(conn: sqlite3.Connection, item: Item) -> Iterator[str]:
    comments = dict(re.findall(r"^    (\w+) [^\n]*?--\s*([^\n]*)$", item.body, re.M))
    if item.kind == "VIEW":
        yield ", ".join(f"`{name}`" for _, name, *_ in conn.execute(f"PRAGMA table_info({item.name})"))
        return
    yield "| column | type | |"
    yield "|---|---|---|"
    keys = [name for _, name, _, _, _, key in conn.execute(f"PRAGMA table_info({item.name})") if key]
    for _, name, type_name, not_null, _, key in conn.execute(f"PRAGMA table_info({item.name})"):
        null = "" if not_null or key else " or NULL"
        yield f"| `{name}` | {type_name}{null} | {_cell(comments.get(name, ''))} |"
    yield ""
    unique = [", ".join(_index_columns(conn, index)) for index in _indexes(conn, item.name, "u")]
    yield "Key: " + ", ".join(keys) + ("; unique: " + "; ".join(unique) if unique else "") + "."


def _indexes(conn: sqlite3.Connection, table: str, origin: str) -> list[str]:
    return sorted(name for _, name, _, o, _ in conn.execute(f"PRAGMA index_list({table})") if o == origin)


def _index_columns(conn: sqlite3.Connection, index: str) -> list[str]:
    return [name for _, _, name in conn.execute(f"PRAGMA index_info({index})")]


def configuration() -> str:
    """Render the settings and the list of system directories."""
    settings = [
        f"| {f'`{s.name}`' if s.flag else ''} | `{s.env}` | {f'`{s.flag}`' if s.flag else ''} "
        f"| {_cell(s.default)} | {_cell(s.meaning)} |"
        for s in config.SETTINGS
    ]
    directories = [f"| `{name.decode()}` | {what} |" for name, what in config.SYSTEM_DIRS.items()]
    parts = [
        "# Configuration",
        _note("src/smartscan/config.py"),
        "A setting is taken from the flag of a command, else from the environment, else from the settings "
        "file, else it has its default. A command ignores settings that are not its own.",
        "The settings file is `$SMART_SCAN_CONFIG`, else `smart_scan.toml` in the data directory, else in "
        "`$XDG_CONFIG_HOME/smart-scanner` (`~/.config/smart-scanner`). It is TOML:",
        '```toml\nchunk-size = 50\nmax-containers = 4\nmemory = "4g"\nexclude = ["*.tmp", "cache"]\n```',
        "The data directory holds the catalogue, the folders of running attempts and the locks. It is "
        "`$SMART_SCAN_DIR`, else `/mnt/user/appdata/nas-scanner-smart` where `/mnt/user` exists (Unraid), "
        "else `$XDG_DATA_HOME/smart-scanner` (`~/.local/share/smart-scanner`). Where `--db` names a "
        "catalogue, its directory is the data directory.",
        "## Settings",
        "\n".join(["| file | environment | flag | default | meaning |", "|---|---|---|---|---|", *settings]),
        "## Directories that are not entered",
        f"Version {config.SYSTEM_DIRS_VERSION} of the list. A directory with such a name is recorded and "
        "shown as excluded; what is in it is not. Hidden directories are not among them. "
        "`--enter-system-dirs` turns the list off.",
        "\n".join(["| name | what is in it |", "|---|---|", *directories]),
    ]
    return _document(parts)


def commands() -> str:
    """Render the help of every command."""
    group = _frame.main
    top = click.Context(group, info_name="smartscan")
    parts = [
        "# Commands",
        _note("the commands' own help"),
        "`./run_smart_scan.sh COMMAND`, `python smart_scanner.py COMMAND` and the installed "
        "`smartscan COMMAND` are the same. What a command exits with is in the [README](../README.md).",
        _help(group, "smartscan"),
    ]
    for name in group.list_commands(top):
        command = group.get_command(top, name)
        assert command is not None
        parts += [f"## {name}", _help(command, f"smartscan {name}")]
    return _document(parts)


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=HELP_COLUMNS, **command.context_settings)
    return "```text\n" + click.unstyle(command.get_help(context)).rstrip() + "\n```"


def _document(parts: Iterable[str]) -> str:
    """Join headings, tables, code and prose; prose is wrapped."""
    wrapped = (
        part if part.startswith(("#", "|", "```", "<")) else textwrap.fill(part, 110, break_on_hyphens=False)
        for part in parts
    )
    return "\n\n".join(wrapped) + "\n"


def _note(source: str) -> str:
    return f"<!-- Made by `make docs` from {source}; change that. -->"


def _uncomment(text: str) -> str:
    return re.sub(r"^-- ?", "", text, flags=re.M)


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


DOCUMENTS: dict[str, Callable[[], str]] = {
    "docs/catalogue.md": catalogue,
    "docs/configuration.md": configuration,
    "docs/commands.md": commands,
}


def main(arguments: Iterable[str]) -> int:
    """Write all documents, or check them; give the exit status."""
    stale = []
    for name, render in DOCUMENTS.items():
        file, text = ROOT / name, render()
        if file.exists() and file.read_text("utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
            print(f"wrote {name}")
    if stale and "--check" in arguments:
        print(f"out of date: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
