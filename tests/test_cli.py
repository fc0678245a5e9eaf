"""cli: every command has help, an example and --db; what goes wrong is one sentence and an exit status."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import catalogue_fixture as fixture
from smartscan.cli._frame import main

COMMANDS = main.list_commands(click.Context(main))


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SMART_SCAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SMART_SCAN_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main installs its own
    (tmp_path / "data").mkdir()


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "smart_catalog.db"
    fixture.running(path).close()
    return path


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def _process(
    script: str, *arguments: str, stdout: int = subprocess.PIPE, tmp: Path | None = None
) -> subprocess.Popen[str]:
    """Start Python on a script that has `main` and adds commands of its own."""
    lines = "import sys, click\nfrom smartscan.cli._frame import main\n" + textwrap.dedent(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if tmp:
        environment["TMPDIR"] = str(tmp)
    command = [sys.executable, "-c", lines, *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


# --- what every command has -------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output
    assert "..." not in result.output.partition("Commands:")[2].partition("Results")[0]  # no sentence is cut


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_an_example_and_db(name: str) -> None:
    result = _run(name, "--help")
    assert result.exit_code == 0
    assert f"\n    smartscan {name}" in result.output.partition("Example")[2]
    assert "--db FILE" in result.output
    assert all(len(line) <= 110 for line in result.output.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_the_frame_loads_no_command_and_nothing_heavy() -> None:
    heavy = "{'rich', 'docker', 'sqlite3', 'json', 'asyncio', 'smartscan.catalogue', 'smartscan.cli.stats'}"
    process = _process(f"print(sorted({heavy} & set(sys.modules)))")
    assert process.communicate(timeout=30)[0] == "[]\n"


def test_version() -> None:
    from smartscan import __version__

    assert _run("--version").output == f"smartscan {__version__}\n"


# --- what goes wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("nonsense",), 2, "no such command 'nonsense'"),
        (("stats", "--nonsense"), 2, "no such option"),
        (("stats", "--top", "0"), 2, "invalid value for '--top'"),
        (("stats", "a", "b"), 2, "unexpected extra argument"),
        (("story",), 2, "missing argument 'CHUNK'"),
        (("story", "x"), 2, "invalid value for 'CHUNK'"),
        (("story", "99"), 2, "there is no chunk 99"),
        (("stats", "Fotos"), 2, "no mount is named 'Fotos'; the catalogue has Photos, Videos"),
        (("problems", "--db", "/nonexistent/c.db"), 12, "there is no catalogue /nonexistent/c.db yet"),
        (("monitor", "--once", "--db", "/etc/passwd"), 12, "/etc/passwd is not a catalogue"),
        (("stats", "--db", "/etc"), 2, "is a directory"),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(
    catalogue: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    result = _run(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.startswith("smartscan: ") and result.stderr.count("\n") == 1
    assert words in result.stderr


def test_a_fault_of_the_program_is_one_sentence_and_a_file(tmp_path: Path) -> None:
    script = """
        @main.command()
        def fail(): raise ZeroDivisionError("what nobody expects")
        main()
    """
    process = _process(script, "fail", tmp=tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.count("\n") == 1 and "(ZeroDivisionError: what nobody expects)" in errors
    (report,) = tmp_path.glob("smartscan-crash-*.txt")
    assert str(report) in errors
    assert "Traceback" in report.read_text() and "'fail'" in report.read_text()


def test_a_fault_is_shown_with_debug(tmp_path: Path) -> None:
    script = """
        from smartscan.cli import _options as options
        @options.command(examples=("x",))
        def fail(db): raise ZeroDivisionError
        main.add_command(fail, "fail")
        main()
    """
    process = _process(script, "fail", "--debug", tmp=tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.startswith("Traceback")
    assert list(tmp_path.glob("*crash*")) == []


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    script = """
        import time
        @main.command()
        def wait():
            print("ready", flush=True)
            time.sleep(60)
        main()
    """
    process = _process(script, "wait")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (130, "")


def test_a_reader_that_has_seen_enough_is_no_error(catalogue: Path) -> None:
    for arguments in (("stats", "--json"), ("problems",)):
        reading, writing = os.pipe()
        os.close(reading)
        process = _process("main()", *arguments, stdout=writing)
        os.close(writing)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (141, "")


def test_a_closed_stdout_is_no_fault(catalogue: Path) -> None:
    script = f"PYTHONPATH={os.pathsep.join(sys.path)} {sys.executable} -m smartscan.cli problems >&-"
    done = subprocess.run(["sh", "-c", script], stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_our_letters_is_no_fault(catalogue: Path) -> None:
    command = [sys.executable, "-m", "smartscan.cli", "stats"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=30, check=True)
    assert b"\\u2265 83.7 GB" in done.stdout


def test_a_command_gives_its_exit_status() -> None:
    process = _process("@main.command()\ndef three(): return 3\nmain()", "three")
    process.communicate(timeout=30)
    assert process.returncode == 3


# --- where settings come from -----------------------------------------------------------------------


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    settings = tmp_path / "data" / "smart_scan.toml"
    settings.write_text('db = "/nonexistent/file.db"\n')
    assert "/nonexistent/file.db" in _run("stats").stderr
    assert "/nonexistent/env.db" in _run("stats", SMART_SCAN_DB="/nonexistent/env.db").stderr
    both = _run("stats", "--db", "/nonexistent/flag.db", SMART_SCAN_DB="/nonexistent/env.db")
    assert "/nonexistent/flag.db" in both.stderr


def test_a_wrong_setting_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data" / "smart_scan.toml").write_text("chunk-size = -1\n")
    result = _run("stats")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "chunk-size" in result.stderr


# --- the commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("stats",), ("stats", "Videos"), ("stats", "--top", "1"), ("story", "1"), ("problems",),
        ("problems", "Videos", "--all"), ("monitor", "--once"),
    ],
)
def test_what_people_and_programs_get(catalogue: Path, arguments: tuple[str, ...]) -> None:
    text = _run(*arguments)
    assert (text.exit_code, text.stderr) == (0, "") and text.stdout
    data = _run(*arguments, "--json")
    assert (data.exit_code, data.stderr) == (0, "")
    assert json.loads(data.stdout)


@pytest.mark.parametrize("command", ["problems", "monitor"])
def test_commands_that_reports_tell_to_run_are_those_the_user_can_type(tmp_path: Path, command: str) -> None:
    other = tmp_path / "other disk" / "smart_catalog.db"
    other.parent.mkdir()
    fixture.videos(other).close()
    words = {"problems": "retry Videos", "monitor": "stats Videos"}[command]
    script = {"SMART_SCAN_COMMAND": "./run_smart_scan.sh", "SMART_SCAN_DIR": str(other.parent)}
    text = _run(command, "--db", str(other), **script).stdout
    assert f"./run_smart_scan.sh {words} --db '{other}'" in text
    text = _run(command, SMART_SCAN_DB=str(other)).stdout  # the environment is still there the next time
    assert f" smartscan {words}" in text
    assert "--db" not in text


def test_no_problem_of_a_scan_that_did_not_end_is_no_good_news(tmp_path: Path) -> None:
    path = tmp_path / "data" / "smart_catalog.db"
    fixture.videos(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM problem")
        db.execute("UPDATE scan SET state = 'cancelled' WHERE id = 2")
        db.commit()
    assert _run("problems").stdout == (
        "Every path that was visited could be read, and not all were: Videos scan 2 is cancelled.\n"
    )
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE scan SET state = 'complete'")
        db.commit()
    assert _run("problems").stdout == "Every path could be read.\n"


def test_a_retry_has_no_rules_of_its_own(catalogue: Path) -> None:
    for option in (("--exclude", "x"), ("--enter-system-dirs",), ("--one-file-system",)):
        result = _run("retry", "Videos", *option)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "no such option" in result.stderr


def test_a_lossy_path_comes_exactly_in_json(catalogue: Path) -> None:
    import base64

    largest = json.loads(_run("stats", "--json").stdout)["largest_files"]
    exact = [base64.b64decode(file["path_b64"]) for file in largest if "path_b64" in file]
    assert exact == [b"/mnt/user/Videos/Movies/Caf\xe9 [red].avi"]


def test_reading_changes_nothing(catalogue: Path) -> None:
    before = catalogue.read_bytes()
    for arguments in (("stats",), ("story", "1"), ("problems",), ("monitor", "--once")):
        assert _run(*arguments).exit_code == 0
    assert catalogue.read_bytes() == before


def test_verbose_says_more_on_stderr_only(catalogue: Path) -> None:
    script = """
        import logging
        from smartscan.cli import _options as options
        @options.command(examples=("x",))
        def talk(db):
            log = logging.getLogger("smartscan.somewhere")
            log.warning("important")
            log.info("news")
            log.debug("detail")
            print("result")
        main.add_command(talk, "talk")
        main()
    """
    words = ["important", "news", "detail"]
    for number, flags in enumerate(((), ("-v",), ("-vv",)), start=1):
        output, errors = _process(script, "talk", *flags).communicate(timeout=30)
        assert output == "result\n"
        assert [line.split()[-1] for line in errors.splitlines()] == words[:number]
