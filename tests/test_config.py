"""Where things lie, and what a settings file may say."""

import subprocess
import sys
from pathlib import Path

import pytest

from smartscan import config
from smartscan.errors import UsageError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, and no settings from outside."""
    for name in ("SMART_SCAN_DIR", "SMART_SCAN_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def settings(home, monkeypatch):
    """Write a settings file and read it."""

    def read(text: str) -> dict[str, object]:
        file = home / "my.toml"
        file.write_text(text)
        monkeypatch.setenv("SMART_SCAN_CONFIG", str(file))
        return config.default_map()

    return read


def test_data_dir_is_the_one_asked_for_then_unraids_then_xdg(home, monkeypatch):
    shares = home / "mnt/user"
    assert config.data_dir(unraid=shares) == home / ".local/share/smart-scanner"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/invalid")
    assert config.data_dir(unraid=shares) == home / ".local/share/smart-scanner"
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "xdg"))
    assert config.data_dir(unraid=shares) == home / "xdg/smart-scanner"
    shares.mkdir(parents=True)
    assert config.data_dir(unraid=shares) == shares / "appdata/nas-scanner-smart"
    monkeypatch.setenv("SMART_SCAN_DIR", "/somewhere")
    assert config.data_dir(unraid=shares) == Path("/somewhere")


def test_catalogue_lies_in_the_data_directory_unless_given(home, monkeypatch):
    monkeypatch.setenv("SMART_SCAN_DIR", str(home / "data"))
    assert config.catalogue_path(None) == home / "data/smart_catalog.db"
    monkeypatch.chdir(home)
    assert config.catalogue_path(Path("x.db")) == home / "x.db"
    assert config.catalogue_path(Path("~/y.db")) == home / "y.db"


def test_no_home_is_one_sentence(home, monkeypatch):
    monkeypatch.setenv("HOME", "not/a/home")
    with pytest.raises(UsageError, match="no home directory"):
        config.data_dir(unraid=home / "missing")


def test_every_setting_of_the_file_arrives_under_its_parameter(settings):
    assert settings(
        """
        chunk-size = 0.5
        max-containers = 4
        memory = "2g"
        engine = "local"
        exclude = ["*.tmp", "cache"]
        one-file-system = true
        """
    ) == {
        "chunk_size": 0.5,
        "max_containers": 4,
        "memory": "2g",
        "engine": "local",
        "exclude": ["*.tmp", "cache"],
        "one_file_system": True,
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("chunk-sise = 5", r"unknown setting 'chunk-sise'; did you mean 'chunk-size'\?"),
        ("chunk_size = 5", r"did you mean 'chunk-size'\?"),
        ("colour = 5", "unknown setting 'colour'; there are db, chunk-size"),
        ("dir = '/x'", "unknown setting 'dir'"),  # the file lies there: only the environment can say it
        ("chunk-size = 0", "sets chunk-size to 0, but it must be a number above zero"),
        ("chunk-size = nan", "must be a number above zero"),
        ("chunk-size = true", "must be a number above zero"),
        ("max-containers = 1.5", "must be a whole number above zero"),
        ("engine = 'kubernetes'", "must be one of auto, docker, local"),
        ("engine = []", "must be one of auto, docker, local"),
        ("exclude = 'x'", "must be a list of texts"),
        ("analyze = 1", "must be true or false"),
        ("memory = 12", "must be a text in quotes"),
        ("[scan]\nthreads = 1", "unknown setting 'scan'"),
        ("threads = ,", "is not TOML: .*line 1"),
    ],
)
def test_what_the_file_cannot_say_is_one_sentence_that_names_the_file(settings, text, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        settings(text)
    assert "my.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_settings_file_that_was_asked_for_must_exist(home, monkeypatch):
    monkeypatch.setenv("SMART_SCAN_CONFIG", str(home / "missing.toml"))
    with pytest.raises(UsageError, match=r"missing\.toml cannot be read: No such file"):
        config.default_map()


def test_settings_file_of_the_data_directory_comes_before_the_one_of_xdg(home, monkeypatch):
    assert config.default_map() == {}
    other = home / ".config/smart-scanner/smart_scan.toml"
    other.parent.mkdir(parents=True)
    other.write_text("threads = 2")
    assert config.default_map() == {"threads": 2}
    (home / "smart_scan.toml").write_text("threads = 3")
    monkeypatch.setenv("SMART_SCAN_DIR", str(home))
    assert config.default_map() == {"threads": 3}


def test_it_is_imported_without_anything_heavy():
    heavy = "click", "rich", "docker", "sqlite3", "tomllib", "logging", "asyncio", "socket"
    code = f"import sys, smartscan.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONPATH": "src"}, capture_output=True,
                          text=True, cwd=Path(__file__).parent.parent)
    assert done.stdout == "[]\n", done.stderr
