/* A file system of which every directory operation and every stat takes its time: a NAS far away, or a
 * disk that seeks. It holds a synthetic tree and no data.
 *
 *     cc -O2 latencyfs.c $(pkg-config --cflags --libs fuse3) -o latencyfs
 *     ./latencyfs MOUNTPOINT DIRS FILES_PER_DIR LATENCY_US CACHE_S THREADS
 *
 * lookup, getattr, opendir and each readdir sleep LATENCY_US in a thread of their own, so that THREADS
 * requests really wait at the same time. What was asked is remembered by the kernel for CACHE_S seconds (0:
 * not at all). Stays in the foreground; ends when it is unmounted.
 */
#define FUSE_USE_VERSION 314
#define _GNU_SOURCE
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { FAN_OUT = 12 };
static uint64_t dirs, per, latency_us, requests;
static double cache_s;

/* Directory i has inode i + 1; file j of directory i has inode dirs + 1 + i * per + j. */
static int attributes(fuse_ino_t ino, struct stat *st)
{
    memset(st, 0, sizeof *st);
    if (!ino || ino > dirs + dirs * per) return -1;
    st->st_ino = ino;
    st->st_mtime = st->st_ctime = (time_t)(1500000000 + ino);
    if (ino <= dirs) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
        st->st_size = 4096;
        st->st_blocks = 8;
    } else {
        st->st_mode = S_IFREG | 0644;
        st->st_nlink = 1;
        st->st_size = (off_t)(ino * 977 % 1000000);
        st->st_blocks = (st->st_size + 4095) / 4096 * 8;
    }
    return 0;
}

static void wait_for_it(void)
{
    static __thread int ready;
    struct timespec t = {0, (long)latency_us * 1000};
    if (!ready) { prctl(PR_SET_TIMERSLACK, 1000); ready = 1; }
    __atomic_add_fetch(&requests, 1, __ATOMIC_RELAXED);
    if (latency_us) nanosleep(&t, NULL);
}

static void fs_init(void *data, struct fuse_conn_info *conn)
{
    (void)data;
    conn->want &= ~(unsigned)(FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO); /* a stat costs a stat */
    conn->want |= conn->capable & FUSE_CAP_PARALLEL_DIROPS;
}

static void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param e = {.attr_timeout = cache_s, .entry_timeout = cache_s};
    uint64_t i = parent - 1, k;
    char end;
    wait_for_it();
    if (sscanf(name, "dir_%lu%c", &k, &end) == 1 && k > FAN_OUT * i && k <= FAN_OUT * (i + 1) && k < dirs)
        e.ino = k + 1;
    else if (sscanf(name, "file_%lu.bi%c", &k, &end) == 2 && k < per)
        e.ino = dirs + 1 + i * per + k;
    if (!e.ino || attributes(e.ino, &e.attr)) { fuse_reply_err(req, ENOENT); return; }
    fuse_reply_entry(req, &e);
}

static void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;
    (void)fi;
    wait_for_it();
    if (attributes(ino, &st)) fuse_reply_err(req, ENOENT);
    else fuse_reply_attr(req, &st, cache_s);
}

static void fs_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    wait_for_it();
    if (ino > dirs) fuse_reply_err(req, ENOTDIR);
    else fuse_reply_open(req, fi);
}

static void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    uint64_t i = ino - 1, first = FAN_OUT * i + 1, subs = 0;
    char *buf = malloc(size);
    size_t used = 0;
    (void)fi;
    wait_for_it();
    if (!buf) { fuse_reply_err(req, ENOMEM); return; }
    if (first < dirs) subs = dirs - first < FAN_OUT ? dirs - first : FAN_OUT;
    for (uint64_t at = (uint64_t)off; at < 2 + subs + per; at++) {
        struct stat st = {.st_ino = ino, .st_mode = S_IFDIR};
        char name[40];
        if (at < 2) strcpy(name, at ? ".." : ".");
        else if (at < 2 + subs) {
            st.st_ino = first + at - 2 + 1;
            sprintf(name, "dir_%06lu", first + at - 2);
        } else {
            st.st_ino = dirs + 1 + i * per + (at - 2 - subs);
            st.st_mode = S_IFREG;
            sprintf(name, "file_%04lu.bin", at - 2 - subs);
        }
        size_t need = fuse_add_direntry(req, buf + used, size - used, name, &st, (off_t)at + 1);
        if (need > size - used) break;
        used += need;
    }
    fuse_reply_buf(req, buf, used);
    free(buf);
}

static void fs_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino; (void)fi;
    fuse_reply_err(req, 0);
}

static void fs_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct statvfs s = {.f_bsize = 4096, .f_frsize = 4096, .f_blocks = 1 << 20, .f_namemax = 255};
    (void)ino;
    fuse_reply_statfs(req, &s);
}

static const struct fuse_lowlevel_ops ops = {
    .init = fs_init, .lookup = fs_lookup, .getattr = fs_getattr, .opendir = fs_opendir,
    .readdir = fs_readdir, .releasedir = fs_releasedir, .statfs = fs_statfs};

int main(int argc, char **argv)
{
    if (argc < 7) return 2;
    dirs = strtoul(argv[2], NULL, 10);
    per = strtoul(argv[3], NULL, 10);
    latency_us = strtoul(argv[4], NULL, 10);
    cache_s = strtod(argv[5], NULL);
    unsigned threads = (unsigned)atoi(argv[6]);
    char *fuse_argv[] = {argv[0], "-o", "ro,fsname=latency,subtype=latency", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, fuse_argv);
    struct fuse_session *se = fuse_session_new(&args, &ops, sizeof ops, NULL);
    if (!se || fuse_set_signal_handlers(se) || fuse_session_mount(se, argv[1])) return 1;
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, threads);
    fuse_loop_cfg_set_idle_threads(config, threads);
    int failed = fuse_session_loop_mt(se, config);
    fprintf(stderr, "%lu requests\n", requests);
    fuse_loop_cfg_destroy(config);
    fuse_session_unmount(se);
    fuse_remove_signal_handlers(se);
    fuse_session_destroy(se);
    return failed ? 1 : 0;
}
