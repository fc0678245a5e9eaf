"""The catalogue: one SQLite file, written by controllers only.

Pure. `schema.sql` says what is in it, `open` gives it to its writer, `lock` sees to it that there is one per
mount, `read` answers questions beside it.
"""
