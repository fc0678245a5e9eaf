"""What the documents say is so: made from the source where that can be, and checked where it cannot."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from smartscan import config
from smartscan.catalogue import migrations
from smartscan.cli import _frame

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packaging/**/*.md")])
MODULES = sorted(set((ROOT / "src" / "smartscan").rglob("*.py")) - set(ROOT.rglob("__main__.py")))
GROUP = _frame.main
TOP = click.Context(GROUP)
COMMANDS = {name: GROUP.get_command(TOP, name) for name in GROUP.list_commands(TOP)}
OPTIONS = [s for s in config.SETTINGS if s.flag]


def test_documents_that_are_made_from_the_source_are_up_to_date():
    command = [sys.executable, ROOT / "tools" / "docs.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_is_in_the_documents(name):
    command = COMMANDS[name]
    text = command.get_help(click.Context(command, info_name=f"smartscan {name}", terminal_width=200))
    assert command.help, "what it does"
    assert re.search(rf"Examples?:\n(.*\n)*.*smartscan {name}\b", text), "an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"what {parameter.opts[0]} does"
    assert f"\n## {name}\n" in (ROOT / "docs" / "commands.md").read_text()


@pytest.mark.skipif("scan" not in COMMANDS, reason="there is no scan command")
@pytest.mark.parametrize("setting", OPTIONS, ids=lambda setting: setting.name)
def test_every_setting_is_an_option_that_listens_to_its_place_in_the_file_and_the_environment(setting):
    having = [command for command in COMMANDS.values() if any(setting.flag in p.opts for p in command.params)]
    assert having, f"no command has {setting.flag}"
    for command in having:
        (option,) = [p for p in command.params if setting.flag in p.opts]
        assert option.name == setting.parameter
        assert option.multiple == (setting.kind is list)
        assert option.is_flag == (setting.kind is bool)
        default = option.get_default(click.Context(command))
        if setting.kind in (int, float):
            assert float(default) == float(setting.default)


@pytest.mark.skipif("scan" not in COMMANDS, reason="there is no scan command")
def test_flags_win_over_the_environment_and_the_environment_over_the_file(monkeypatch):
    scan = COMMANDS["scan"]
    parent = click.Context(GROUP, info_name="smartscan")
    parent.default_map = {"chunk_size": 1.0, "threads": 2, "max_containers": 3}
    monkeypatch.setenv("SMART_SCAN_THREADS", "5")
    monkeypatch.setenv("SMART_SCAN_MAX_CONTAINERS", "6")
    context = scan.make_context("scan", ["/usr", "usr", "--max-containers", "7"], parent)
    got = [context.params[name] for name in ("chunk_size", "threads", "max_containers")]
    assert got == [10**9, 5, 7]  # 1.0 GB


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (document.parent / file).resolve() if file else document
        if file == "../README.md" and not linked.exists():
            continue  # the one document that is written last
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_every_module_says_what_it_touches(module):
    words = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    assert re.search(r"(^|\s)(Pure\b|Touches: )", words)


def test_every_table_and_the_newest_version_of_the_schema_are_explained():
    text = (ROOT / "src" / "smartscan" / "catalogue" / "schema.sql").read_text("utf-8")
    assert re.findall(r"(?<!\n)\n\nCREATE \w+ \w+", text) == [], "a comment above"
    assert re.search(rf"^--   {migrations.VERSION}  \w", text, re.M)
    assert not re.search(rf"^--   {migrations.VERSION + 1}  \w", text, re.M)


def test_nothing_is_left_to_be_done():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, and git")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    word = re.compile("TO" r"DO\b|FIX" r"ME\b")
    for name in files.stdout.splitlines():
        file = ROOT / name
        if file.is_file() and file.suffix in (".py", ".c", ".sh", ".sql", ".md", ".toml"):
            assert not word.search(file.read_text("utf-8")), name
