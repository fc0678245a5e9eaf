"""What the user asked for.

Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartscan import config
from smartscan.errors import UsageError
from smartscan.model import Limits, Progress, Resources, Rules, b64, show


@dataclass(frozen=True, slots=True)
class Glance:
    """How a running scan stands, for a progress line."""

    entries: int = 0
    bytes: int = 0
    dirs: int = 0
    chunks: dict[str, int] = field(default_factory=dict)
    expected_entries: int | None = None
    paused: str | None = None
    progress: dict[int, Progress] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One run over one mount; `path` is absolute, as the engine's host sees it."""

    db: Path
    path: bytes
    name: str
    limits: Limits = field(default_factory=Limits)
    rules: Rules = field(default_factory=Rules)
    resources: Resources = field(default_factory=lambda: Resources(config.CPUS, 12 << 30))
    max_containers: int = config.MAX_CONTAINERS
    give_up: int = config.GIVE_UP
    engine: str = "auto"
    image: str = config.WORKER_IMAGE
    analyze: bool = False
    moved: bool = False  # the share lies on another file system than before, and that is right
    sizes_only: bool = False  # a survey: the totals of directories, in a catalogue that is thrown away
    say: Callable[[str], None] = lambda _text: None  # a sentence for the user
    glance: Callable[[Glance], None] = lambda _glance: None  # called a few times a second

    def __post_init__(self) -> None:
        if (
            not self.name
            or self.name != self.name.strip()
            or "/" in self.name
            or not self.name.isprintable()
            or self.name in (".", "..")
        ):
            raise UsageError(
                f"'{show(self.name.encode('utf-8', 'surrogateescape'))}' cannot be the name of a "
                "share; use letters, digits, "
                "spaces, - and _, without slashes"
            )
        if len(self.name.encode()) > 100:
            raise UsageError("the name of a share has at most 100 bytes")
        if not self.path.startswith(b"/"):
            raise UsageError("the path of a share is absolute")

    @property
    def work(self) -> Path:
        """Where the attempt folders of this mount lie."""
        return self.db.parent / "work" / self.name

    @property
    def patterns(self) -> tuple[bytes, ...]:
        """Directories that are recorded but not entered, the user's own first."""
        return self.rules.patterns + (tuple(config.SYSTEM_DIRS) if self.rules.system_dirs else ())

    def options(self) -> dict[str, Any]:
        """What is noted of it in the catalogue; `Rules.noted` reads its rules."""
        return {
            "limits": self.limits._asdict(),
            "resources": self.resources._asdict(),
            "max_containers": self.max_containers,
            "give_up": self.give_up,
            "patterns": [show(p) for p in self.rules.patterns],
            "patterns_b64": [b64(p) for p in self.rules.patterns],
            "system_dirs": self.rules.system_dirs,
            "system_dirs_version": config.SYSTEM_DIRS_VERSION,
            "one_file_system": self.rules.one_file_system,
            "image": self.image,
            "analyze": self.analyze,
        }


def namespace(db: Path) -> str:
    """Tell the workers of one data directory from those of another."""
    return hashlib.sha256(str(db.parent).encode("utf-8", "surrogateescape")).hexdigest()[:12]
