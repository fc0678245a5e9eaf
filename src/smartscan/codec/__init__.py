"""Choose who reads and makes records: the C extension, or its pure Python twin where it was not built.

Touches: nothing. SMART_SCAN_NATIVE=0 in the environment asks for the twin.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def _choose() -> ModuleType:
    if os.environ.get("SMART_SCAN_NATIVE", "1") != "0":
        try:
            return importlib.import_module("smartscan._native")
        except ImportError:
            pass
    return importlib.import_module("smartscan.codec.python")


codec = _choose()
NATIVE = codec.__name__ == "smartscan._native"
