"""Choose who reads and makes records: the C extension, or its pure Python twin where it was not built.

Touches: nothing. SMART_SCAN_NATIVE=0 in the environment asks for the twin.
"""

from __future__ import annotations

import os
from types import ModuleType

codec: ModuleType

if os.environ.get("SMART_SCAN_NATIVE", "1") != "0":
    try:
        from smartscan import _native as codec
    except ImportError:
        from smartscan.codec import python as codec
else:
    from smartscan.codec import python as codec

NATIVE = codec.__name__.endswith("_native")
