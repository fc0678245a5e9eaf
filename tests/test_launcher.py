"""`python smart_scanner.py` is the same program, or says in one sentence why it cannot be."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCHER = ROOT / "smart_scanner.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd="/")


def test_it_has_the_same_commands():
    launched = run(str(LAUNCHER), "--help")
    module = run("-m", "smartscan.cli", "--help")
    assert launched.returncode == module.returncode == 0
    expected = module.stdout.replace("Usage: smartscan", f"Usage: python3 {LAUNCHER}")
    assert launched.stdout.split() == expected.split()  # a long path is wrapped


def test_it_passes_the_exit_status_on():
    assert run(str(LAUNCHER), "no-such-command").returncode == 2


def test_without_its_libraries_it_points_to_the_script_that_needs_none():
    done = run("-S", "-E", str(LAUNCHER), "stats")  # -S: without site-packages
    assert done.returncode == 1
    assert done.stderr == (
        "smart_scanner.py cannot run because the Python module 'click' is missing; "
        "./run_smart_scan.sh does all its own set-up.\n"
    )


def test_an_old_python_is_told_so_before_anything_else_fails():
    code = "import sys, runpy; sys.version_info = (3, 9); runpy.run_path(sys.argv[1], run_name='__main__')"
    done = run("-c", code, str(LAUNCHER))
    assert done.returncode == 1
    assert "because it needs Python 3.11 or newer, and this is 3.9;" in done.stderr
