"""Errors that end a command: one class, one message, one exit status.

Pure. A path that could not be read is data (`model.WalkError`), not one of these.
The message is one sentence that says what is wrong and what to do.
"""

EXIT_OK = 0
EXIT_INCOMPLETE = 3  # finished, but something could not be read
EXIT_MOUNT_DEAD = 4  # the mount itself stopped answering; its chunks are deferred
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class SmartScannerError(Exception):
    """Base of all errors that end a command; exit status 1."""

    exit_status = 1


class UsageError(SmartScannerError):
    """The command was called with words it cannot use; exit status 2."""

    exit_status = 2


class MountError(SmartScannerError):
    """The share is missing, empty, unreadable or not what it was; exit status 10."""

    exit_status = 10


class MountSilent(MountError):
    """The share does not answer, not even to be opened; exit status 4."""

    exit_status = EXIT_MOUNT_DEAD


class EngineError(SmartScannerError):
    """Workers cannot be started at all (no engine, no image, refused limits); exit status 11."""

    exit_status = 11


class EngineLost(EngineError):
    """The engine will never answer this process again, whatever becomes of the engine; exit status 11."""


class CatalogueError(SmartScannerError):
    """The catalogue cannot be opened, is not ours, is locked or cannot be written; exit status 12."""

    exit_status = 12


class CatalogueFull(CatalogueError):
    """There is no space left for the catalogue; a scan waits until there is, a command ends."""


class CatalogueBusy(CatalogueError):
    """Another program held the catalogue for too long; the same may work in a moment."""


class Interrupted(SmartScannerError):
    """Somebody stopped it where that could not be written down; exit status 130."""

    exit_status = EXIT_INTERRUPTED


class ShardError(SmartScannerError):
    """A shard is torn, garbled or of another version; it is refused whole and its part tried again."""
