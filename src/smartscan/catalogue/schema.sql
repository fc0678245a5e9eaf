-- The catalogue of Smart Scanner: one SQLite file, written by controllers only.
--
-- Version history (PRAGMA user_version; migrations in catalogue/migrations):
--   1  first version
--
-- Conventions: *_at is Unix seconds (REAL), *_ns is nanoseconds, sizes are bytes, `blocks` counts
-- 512 bytes as in stat(2). Paths and names are TEXT that holds the raw bytes of the file system,
-- UTF-8 or not: read them as bytes. A path is relative to its mount; '' is the mount itself.
-- NULL means unknown, never zero. Sums of bytes are kept modulo 2^64: read a negative one as unsigned.

-- A share that the user named.
CREATE TABLE mount (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,          -- what the user calls it
    path TEXT NOT NULL UNIQUE,          -- absolute path on the host
    fs_type TEXT,                       -- from mountinfo: ext4, fuse.shfs, nfs4, ...
    source TEXT,                        -- from mountinfo: device or server behind it
    created_at REAL NOT NULL
) STRICT;

-- One run over one mount. The certificate is its closing account, JSON, NULL until there is one: `dirs` (how many
-- directories were `found`, and how many ended in each state), `files`, `entries`, `bytes` and `disk_bytes` of the
-- mount as the catalogue has it now, `fs` (statvfs: `total_bytes`, `used_bytes`) and `unexplained_bytes` (used less
-- catalogued), `complete` (every directory found was read or left out by a rule, and no problem is open), `problems`
-- (open ones), `unread_paths` (paths that have one, besides the directories that could not be read), `missing` (the
-- first 1,000 of those directories: `path`, `state`, `reason`), `stale_dirs` (known only from an earlier scan),
-- `abandoned` (workers that could not be killed).
CREATE TABLE scan (
    id INTEGER PRIMARY KEY,
    mount_id INTEGER NOT NULL REFERENCES mount(id),
    state TEXT NOT NULL,                -- running (also after a kill), complete, incomplete, cancelled
    started_at REAL NOT NULL,
    ended_at REAL,
    beat_at REAL,                       -- last sign of life of the controller
    engine TEXT NOT NULL,               -- local, docker
    controller TEXT NOT NULL,           -- JSON: pid, host, boot_id, db: who runs it
    options TEXT NOT NULL,              -- JSON: limits, rules, resources of this run
    mount_dead INTEGER NOT NULL DEFAULT 0, -- 1: the mount stopped answering, chunks were deferred
    paused TEXT,                        -- why the scan waits (disk full, engine gone), else NULL
    entries INTEGER NOT NULL DEFAULT 0, -- seen in this run, so far
    dirs INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,   -- apparent bytes (st_size) seen in this run
    disk_bytes INTEGER NOT NULL DEFAULT 0,
    entries_new INTEGER,                -- against the scan before; NULL on a first scan
    entries_changed INTEGER,
    entries_gone INTEGER,
    fs_total_bytes INTEGER,             -- statvfs(3) of the share, taken by a worker
    fs_used_bytes INTEGER,
    certificate TEXT                    -- JSON: the closing account, see above
) STRICT;
CREATE INDEX scan_mount ON scan(mount_id, started_at);

-- Work for one container.
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY,
    scan_id INTEGER NOT NULL REFERENCES scan(id),
    state TEXT NOT NULL,                -- pending, running, done, quarantined
    origin TEXT NOT NULL,               -- plan, leftover, bisect, retry
    parent_id INTEGER REFERENCES chunk(id), -- the chunk whose leftover this was
    est_bytes INTEGER,                  -- disk bytes expected; NULL where no size is known
    est_entries INTEGER,
    fails INTEGER NOT NULL DEFAULT 0,   -- attempts in a row that brought nothing
    entries INTEGER NOT NULL DEFAULT 0, -- catalogued by this chunk
    dirs INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    disk_bytes INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    ended_at REAL
) STRICT;
CREATE INDEX chunk_scan ON chunk(scan_id, state);

-- Where a chunk begins; a chunk has one or more roots.
CREATE TABLE root (
    chunk_id INTEGER NOT NULL REFERENCES chunk(id),
    path TEXT NOT NULL,
    scope TEXT NOT NULL,                -- subtree, files
    PRIMARY KEY (chunk_id, path)
) STRICT, WITHOUT ROWID;

-- One run of a chunk.
CREATE TABLE attempt (
    chunk_id INTEGER NOT NULL REFERENCES chunk(id),
    number INTEGER NOT NULL,            -- 1, 2, ... within the chunk
    worker_id TEXT,                     -- pid or container id
    started_at REAL NOT NULL,
    progressed_at REAL NOT NULL,        -- when it last moved
    ended_at REAL,
    entries INTEGER NOT NULL DEFAULT 0, -- seen by the worker so far
    dirs INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    disk_bytes INTEGER NOT NULL DEFAULT 0,
    outcome TEXT,                       -- sealed, failed, stalled, overdue, oom, lost, cancelled
    exit_code INTEGER,
    log_tail TEXT,
    PRIMARY KEY (chunk_id, number)
) STRICT, WITHOUT ROWID;

-- What the walker threads of running attempts are in right now.
CREATE TABLE reading (
    chunk_id INTEGER NOT NULL REFERENCES chunk(id),
    thread INTEGER NOT NULL,
    path TEXT NOT NULL,
    op TEXT NOT NULL,                   -- open, readdir, stat, readlink
    since_at REAL NOT NULL,
    PRIMARY KEY (chunk_id, thread)
) STRICT, WITHOUT ROWID;

-- Shards already ingested: a second time is refused.
CREATE TABLE shard (
    chunk_id INTEGER NOT NULL REFERENCES chunk(id),
    attempt INTEGER NOT NULL,
    name TEXT NOT NULL,
    entries INTEGER NOT NULL,
    dirs INTEGER NOT NULL,
    bytes INTEGER NOT NULL,             -- apparent bytes
    ingested_at REAL NOT NULL,
    PRIMARY KEY (chunk_id, attempt, name)
) STRICT, WITHOUT ROWID;

-- Everything that happened, in order; `story CHUNK` reads it.
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    scan_id INTEGER NOT NULL REFERENCES scan(id),
    chunk_id INTEGER REFERENCES chunk(id),
    attempt INTEGER,
    kind TEXT NOT NULL,                 -- created, started, progress, ingested, exited, killed, leftover, ...
    detail TEXT NOT NULL                -- a sentence for people
) STRICT;
CREATE INDEX event_chunk ON event(chunk_id, id) WHERE chunk_id IS NOT NULL;

-- A path that could not be read, over all scans.
CREATE TABLE problem (
    mount_id INTEGER NOT NULL REFERENCES mount(id),
    path TEXT NOT NULL,
    op TEXT NOT NULL,                   -- open, readdir, stat, readlink
    errno INTEGER NOT NULL,             -- ETIMEDOUT: did not answer
    scan_id INTEGER NOT NULL REFERENCES scan(id), -- the scan that saw it last
    first_at REAL NOT NULL,
    last_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 1,
    waited_s REAL,                      -- how long it did not answer
    wchan TEXT,                         -- where in the kernel the reader waited
    cause TEXT,                         -- the likely cause, in words
    retry_at REAL,                      -- not before; NULL: at the next scan
    cleared_at REAL,                    -- a later scan read it; NULL: still open
    PRIMARY KEY (mount_id, path, op)
) STRICT, WITHOUT ROWID;

-- A directory. Totals are of the whole subtree, itself included, hard links counted once.
CREATE TABLE dir (
    id INTEGER PRIMARY KEY,
    mount_id INTEGER NOT NULL REFERENCES mount(id),
    parent_id INTEGER REFERENCES dir(id), -- NULL: the mount itself
    name TEXT NOT NULL,
    state TEXT NOT NULL,                -- found, listed, excluded, denied, timed out, I/O error, other mount, vanished
    reason TEXT,                        -- the rule that excluded it, the error's name
    scan_id INTEGER,                    -- the scan that last decided its state; older than the mount's last scan: stale
    dev INTEGER,                        -- st_dev of what lies in it
    digest INTEGER,                     -- of its listing; the same digest: nothing changed
    own_entries INTEGER NOT NULL DEFAULT 0, -- directly in it
    own_dirs INTEGER NOT NULL DEFAULT 0,    -- of these, directories
    own_blocks INTEGER NOT NULL DEFAULT 0,  -- of the directory itself, 512 bytes each
    files INTEGER NOT NULL DEFAULT 0,   -- regular files of the subtree
    entries INTEGER NOT NULL DEFAULT 0, -- everything below it
    bytes INTEGER NOT NULL DEFAULT 0,   -- apparent bytes of everything below that is no directory
    disk_bytes INTEGER NOT NULL DEFAULT 0, -- as du(1): st_blocks * 512, directories included
    UNIQUE (mount_id, parent_id, name)
) STRICT;
-- Finds the few directories that could not be read, or were left out.
CREATE INDEX dir_unlisted ON dir(mount_id, state) WHERE state <> 'listed';

-- Type, mode and owner, which few combinations make up; entries point here.
CREATE TABLE attr (
    id INTEGER PRIMARY KEY,
    type TEXT NOT NULL,                 -- f, d, l, p, s, c, b as find(1) -printf %y; ? unknown
    mode INTEGER,                       -- permission bits (st_mode & 07777); NULL: stat did not answer
    uid INTEGER,
    gid INTEGER,
    UNIQUE (type, mode, uid, gid)
) STRICT;

-- One directory entry, as statx(2) has it.
CREATE TABLE entry (
    dir_id INTEGER NOT NULL,            -- dir.id of the directory it lies in
    name TEXT NOT NULL,
    attr_id INTEGER NOT NULL,           -- attr.id: type, mode, uid, gid
    size INTEGER,                       -- apparent bytes
    blocks INTEGER,                     -- 512 bytes each; disk bytes = blocks * 512
    mtime_ns INTEGER,                   -- since 1970; times outside 1677..2262 are held at that end
    ctime_ns INTEGER,
    ino INTEGER,                        -- st_ino as a signed 64-bit number, of when the entry last changed in something else
    nlink INTEGER,
    counted INTEGER,                    -- of a file with several names: 1 this one is in the totals, 0 another is
    PRIMARY KEY (dir_id, name)
) STRICT, WITHOUT ROWID;
-- Finds the other names of a file; holds only files that have several.
CREATE INDEX entry_link ON entry(ino) WHERE counted IS NOT NULL;

-- Where a symbolic link points; never followed.
CREATE TABLE symlink (
    dir_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (dir_id, name)
) STRICT, WITHOUT ROWID;

-- Totals of regular files, kept up as shards come in. Hard links count once.
CREATE TABLE tally (
    mount_id INTEGER NOT NULL REFERENCES mount(id),
    dimension TEXT NOT NULL,            -- extension, owner (uid), month (of mtime, YYYY-MM), size (class)
    key TEXT NOT NULL,
    files INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    disk_bytes INTEGER NOT NULL,
    PRIMARY KEY (mount_id, dimension, key)
) STRICT, WITHOUT ROWID;

-- The largest regular files of each mount.
CREATE TABLE largest (
    mount_id INTEGER NOT NULL REFERENCES mount(id),
    size INTEGER NOT NULL,
    dir_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (mount_id, size, dir_id, name)
) STRICT, WITHOUT ROWID;

-- One row per regular file, for scripts made for the catalogues of other scanners.
CREATE VIEW files AS
WITH RECURSIVE tree(id, mount_id, path) AS (
    SELECT dir.id, dir.mount_id, CASE mount.path WHEN '/' THEN '' ELSE mount.path END
    FROM dir JOIN mount ON mount.id = dir.mount_id WHERE dir.parent_id IS NULL
    UNION ALL
    SELECT dir.id, dir.mount_id, tree.path || '/' || dir.name
    FROM tree JOIN dir ON dir.mount_id = tree.mount_id AND dir.parent_id = tree.id
)
SELECT tree.path || '/' || entry.name AS path,
       entry.name AS name,
       entry.size AS size,
       entry.blocks * 512 AS disk_bytes,
       -- floor, also before 1970
       (entry.mtime_ns - (entry.mtime_ns % 1000000000 + 1000000000) % 1000000000) / 1000000000 AS mtime,
       NULL AS checksum,
       mount.name AS mount_point,
       'file' AS file_type,
       -- what follows the last dot ('/', which no name has, keeps bytes apart that together would be a letter)
       CASE WHEN instr(ltrim(entry.name, '.'), '.') THEN
           lower(replace(entry.name, rtrim(entry.name, replace(entry.name, '.', '/')), '')) ELSE '' END AS extension,
       scan.ended_at AS scan_time,
       attr.mode AS mode, attr.uid AS uid, attr.gid AS gid,
       entry.ino AS inode, entry.nlink AS nlink, entry.ctime_ns AS ctime_ns, entry.mtime_ns AS mtime_ns
FROM tree
JOIN mount ON mount.id = tree.mount_id
JOIN dir ON dir.id = tree.id
LEFT JOIN scan ON scan.id = dir.scan_id
JOIN entry ON entry.dir_id = tree.id
JOIN attr ON attr.id = entry.attr_id
WHERE attr.type = 'f';
