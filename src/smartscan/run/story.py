"""What the story of a chunk says of a command of the supervisor.

Pure.
"""

from __future__ import annotations

from smartscan import supervisor as sup


def words_of(command: sup.Command, engine: str) -> tuple[str, str] | None:
    """Give the kind and the sentence of the event that a command is; None for one that others tell of."""
    match command:
        case sup.Start(_, number):
            return "started", f"attempt {number} starts on the {engine} engine"
        case sup.Yield():
            return "yield", "asked to give half of its work to idle workers"
        case sup.Stop():
            return "stop", "asked to stop and give the rest back"
        case sup.Kill(_, _, why):
            return "killed", f"killed: {why}"
        case sup.Abandon():
            return "given up", "it is not waited for any more; what it sealed is kept"
        case sup.Retry(_, fails):
            return "retry", f"will be tried again; {fails} attempts in a row brought nothing"
        case sup.Done():
            return "done", "done"
        case sup.Pause(reason):
            return "paused", reason
        case sup.Resume():
            return "resumed", "goes on"
        case sup.MountDead():
            return "mount dead", "the mount does not answer any more; nothing is started on it"
    return None
