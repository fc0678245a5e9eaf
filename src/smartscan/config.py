"""Where things lie, what the settings are, and what they are when nobody says otherwise.

Touches: the environment and the settings file. Defaults < file < SMART_SCAN_* environment < flags; the last
two steps are click's. docs/configuration.md is made from `SETTINGS`. Imported by every command and by every
worker: nothing heavy is imported here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from smartscan.errors import UsageError
from smartscan.model import Limits

CATALOGUE = "smart_catalog.db"
SETTINGS_FILE = "smart_scan.toml"
ENV_PREFIX = "SMART_SCAN_"

# Unraid: appdata is where containers keep their state, on every Unraid server at the same place.
UNRAID_SHARES = Path("/mnt/user")
UNRAID_DATA = "appdata/nas-scanner-smart"

LIMITS = Limits()

# Decimal gigabytes on disk, as disks are sold. A chunk that fails costs some minutes, and a share of 100 TB
# makes a thousand chunks, not a million.
CHUNK_GB = LIMITS.chunk_bytes / 10**9
# Time follows entries, not bytes: a million take seconds on a fast disk, an hour on one that needs 4 ms each.
CHUNK_ENTRIES = LIMITS.chunk_entries
# An attempt that walks for an hour gives the rest back, so that idle neighbours can help.
CHUNK_S = LIMITS.chunk_s
# A sleeping disk answers after 10 to 30 s; twice that is no longer sleep.
STALL_S = LIMITS.stall_s
# Reads in flight per worker: enough to hide the latency of a network share, few enough for a spinning disk.
THREADS = LIMITS.threads
# Workers at a time, and the size of each, as the users' own document has them; clamped to what the host has.
MAX_CONTAINERS = 8
CPUS = 12.0
MEMORY = "12g"
# Workers that hang and cannot be killed, each with up to 40 stuck places. So many on one mount, and it is the
# mount that is dead: twice what runs at a time, so that one bad moment of all of them is not the end.
GIVE_UP = 16

WORKER_IMAGE = "nas-scanner-hp:latest"
CONTROLLER_IMAGE = "nas-scanner-smart:latest"
ENGINES = ("auto", "docker", "local")

# Snapshot and system directories of NAS makers: recorded, never entered, because they hold the share's own
# files again (a NAS of 10 TB was once shown with 89 TB) or what the system keeps for itself. Patterns as in
# fnmatch(3), matched with the name. A change of the list changes what a scan covers: count the version up.
SYSTEM_DIRS_VERSION = 1
SYSTEM_DIRS: dict[bytes, str] = {
    b".snapshot": "snapshots (NetApp, Isilon, Qumulo)",
    b".snapshots": "snapshots (snapper, btrfs)",
    b".zfs": "snapshots (ZFS)",
    b"#snapshot": "snapshots (Synology)",
    b"@Recently-Snapshot": "snapshots (QNAP)",
    b"@eaDir": "thumbnails and indexes (Synology)",
    b"#recycle": "recycle bin (Synology)",
    b"@Recycle": "recycle bin (QNAP)",
    b".Recycle.Bin": "recycle bin (Unraid)",
    b"$RECYCLE.BIN": "recycle bin (Windows)",
    b".Trash-*": "recycle bin (freedesktop.org)",
    b"System Volume Information": "restore points (Windows)",
    b"lost+found": "what fsck found (ext4)",
}


class Setting(NamedTuple):
    """One thing that can be set: `chunk-size` in the file, SMART_SCAN_CHUNK_SIZE, --chunk-size."""

    name: str
    kind: type[int | float | bool | str | list[str]]
    default: str  # for people
    meaning: str
    flag: str | None  # None: only in the environment
    choices: tuple[str, ...] = ()

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.parameter.upper()

    @property
    def parameter(self) -> str:
        """Name of the command's parameter, as click knows it."""
        return self.name.replace("-", "_")


SETTINGS = (
    Setting("dir", str, "see above", "Data directory: catalogue, attempt folders, locks.", None),
    Setting("config", str, "see above", "The settings file itself.", None),
    Setting("db", str, f"{CATALOGUE} in the data directory", "The catalogue.", "--db"),
    Setting("chunk-size", float, f"{CHUNK_GB:g}", "Gigabytes (10^9) on disk a chunk may have.",
            "--chunk-size"),
    Setting("chunk-entries", int, f"{CHUNK_ENTRIES}", "Entries a chunk may have.", "--chunk-entries"),
    Setting("max-containers", int, f"{MAX_CONTAINERS}", "Workers at a time.", "--max-containers"),
    Setting("cpus", float, f"{CPUS:g}", "CPUs of one worker, at most what the host has.", "--cpus"),
    Setting("memory", str, MEMORY, "Memory of one worker, as 512m or 12g, at most what the host has.",
            "--memory"),
    Setting("dir-entries", int, f"{LIMITS.dir_entries}", "Names of one directory; one with more counts as "
            "endless.", "--dir-entries"),
    Setting("depth", int, f"{LIMITS.depth}", "Directories within each other; deeper ones are not entered.",
            "--depth"),
    Setting("threads", int, f"{THREADS}", "Directories one worker reads at the same time.", "--threads"),
    Setting("stall-after", float, f"{STALL_S:g}", "Seconds without progress that make a path stuck.",
            "--stall-after"),
    Setting("give-up", int, f"{GIVE_UP}", "Workers that may hang for ever before the mount counts as dead.",
            "--give-up"),
    Setting("engine", str, "auto", "Who runs workers: docker, local, or docker where it answers (auto).",
            "--engine", choices=ENGINES),
    Setting("image", str, WORKER_IMAGE, "Image of the worker containers.", "--image"),
    Setting("exclude", list, "none", "Names or paths that are recorded but not entered, as patterns; in the "
            "environment separated by spaces.", "--exclude"),
    Setting("enter-system-dirs", bool, "false", "Enter the snapshot and system directories below as well.",
            "--enter-system-dirs"),
    Setting("one-file-system", bool, "false", "Do not enter other mounts below the share.",
            "--one-file-system"),
    Setting("analyze", bool, "false", "Measure sizes first, then scan the largest chunk first.", "--analyze"),
)


def data_dir(*, unraid: Path = UNRAID_SHARES) -> Path:
    """Give the directory of everything this program keeps; it need not exist."""
    if chosen := os.environ.get(ENV_PREFIX + "DIR"):
        return Path(os.path.abspath(chosen))
    if unraid.is_dir():
        return unraid / UNRAID_DATA
    return _xdg("XDG_DATA_HOME", ".local/share")


def catalogue_path(db: Path | None) -> Path:
    """Give the absolute path of the catalogue; its directory is the data directory of this run."""
    return Path(os.path.abspath(db.expanduser())) if db else data_dir() / CATALOGUE


def default_map() -> dict[str, Any]:
    """Read the settings file: a value by the name of each parameter that is set there, as click wants it.

    The file is $SMART_SCAN_CONFIG, else smart_scan.toml in the data directory, else in the XDG configuration
    directory; none is no error. Raises UsageError for what the file cannot say.
    """
    file = _settings_file()
    if file is None:
        return {}
    import tomllib  # only where there is a file: start-up time

    try:
        with file.open("rb") as stream:
            found = tomllib.load(stream)
    except OSError as error:
        raise UsageError(f"the settings file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings file {file} is not TOML: {error}") from error
    known = {setting.name: setting for setting in SETTINGS if setting.flag}
    values = {}
    for name, value in found.items():
        if name not in known:
            guess = _guess(name, list(known))
            raise UsageError(f"the settings file {file} has an unknown setting '{name}'; {guess}")
        if complaint := _complaint(known[name], value):
            raise UsageError(f"the settings file {file} sets {name} to {value!r}, but it must be {complaint}")
        values[known[name].parameter] = value
    return values


def _settings_file() -> Path | None:
    if chosen := os.environ.get(ENV_PREFIX + "CONFIG"):
        return Path(chosen)
    for directory in (data_dir(), _xdg("XDG_CONFIG_HOME", ".config")):
        file = directory / SETTINGS_FILE
        if os.access(file, os.F_OK):  # False, not an error, where the directory may not be searched
            return file
    return None


def _complaint(setting: Setting, value: object) -> str | None:
    """Say what the value of a setting must be, if this one is something else."""
    if setting.kind is list:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return None if fits else "a list of texts"
    if setting.kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if setting.kind is str:
        if setting.choices:
            return None if value in setting.choices else f"one of {', '.join(setting.choices)}"
        return None if isinstance(value, str) and value else "a text in quotes"
    if setting.kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if fits else "a whole number above zero"
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return None if fits else "a number above zero"


def _guess(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name.replace("_", "-").lower(), known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"


def _xdg(variable: str, fallback: str) -> Path:
    """Give our directory under an XDG base directory; relative values are invalid by that specification."""
    base = os.environ.get(variable, "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), fallback)
    if not os.path.isabs(base):
        raise UsageError("there is no home directory for the catalogue; set SMART_SCAN_DIR or give --db")
    return Path(base) / "smart-scanner"
