"""Gold files: what commands print, kept under tests/gold.

`RENEW_GOLD=1 pytest tests/test_report.py ...` writes them anew; read the difference before it is committed.
"""

import os
from pathlib import Path

GOLD = Path(__file__).with_name("gold")


def check(name: str, text: str) -> None:
    """Compare a text with its gold file."""
    file = GOLD / name
    if os.environ.get("RENEW_GOLD"):
        file.write_text(text, "utf-8")
    assert text == file.read_text("utf-8"), f"differs from {file.name}; RENEW_GOLD=1 writes it anew"
