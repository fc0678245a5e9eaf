"""Who asks the engine hears its answers, whatever comes between."""

import os
import signal
import threading
import time

from smartscan.engine import local
from smartscan.run.workers import Workers


def test_a_signal_whose_handler_takes_longer_than_the_wait_does_not_make_it_endless():
    workers = Workers(local.Local("signals", groups=False), "signals", at_a_time=1)
    handled = []

    def slowly(*_):
        time.sleep(0.4)
        handled.append(time.monotonic())

    before = signal.signal(signal.SIGUSR1, slowly)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        begun = time.monotonic()
        assert not workers.hear(0.2)
        assert handled and time.monotonic() - begun < 5
    finally:
        signal.signal(signal.SIGUSR1, before)
        workers.close()
        workers.engine.close()
