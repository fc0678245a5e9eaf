"""Smart Scanner: catalogue file storage that is too big, too slow or too broken to walk in one go.

Pure. Holds the version, nothing else.
"""

__version__ = "1.0.0"
