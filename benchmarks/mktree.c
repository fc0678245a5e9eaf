/* Make a tree for the benchmarks: regular files without blocks, with a size, in nested directories.
 *
 *     cc -O2 mktree.c -o mktree && ./mktree PATH DIRS FILES_PER_DIR
 *
 * PATH itself is the first of DIRS; each directory has up to 12 subdirectories. Names and sizes are like
 * those of real files in length, and the same at every run.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FAN_OUT = 12 };
static const char *ends[] = {"jpg", "mp4", "txt", "py", "mkv", "tar.gz", "doc", "c", "h", "xml"};

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

int main(int argc, char **argv)
{
    if (argc < 4) return 2;
    long dirs = atol(argv[2]), per = atol(argv[3]);
    char **path = calloc((size_t)dirs, sizeof *path);
    char name[64];
    if (!path || mkdir(argv[1], 0755)) { perror(argv[1]); return 1; }
    path[0] = argv[1];
    for (long i = 0; i < dirs; i++) {
        int fd = open(path[i], O_RDONLY | O_DIRECTORY);
        if (fd < 0) { perror(path[i]); return 1; }
        for (long k = FAN_OUT * i + 1; k <= FAN_OUT * i + FAN_OUT && k < dirs; k++) {
            int n = snprintf(name, sizeof name, "dir_%06ld", k);
            path[k] = malloc(strlen(path[i]) + (size_t)n + 2);
            if (!path[k] || mkdirat(fd, name, 0755)) { perror(name); return 1; }
            sprintf(path[k], "%s/%s", path[i], name);
        }
        for (long j = 0; j < per; j++) {
            uint64_t r = mix((uint64_t)(i * per + j) + 1);
            snprintf(name, sizeof name, "file_%04ld_%02d.%s", j, (int)(r % 90 + 10), ends[j % 10]);
            int f = openat(fd, name, O_CREAT | O_EXCL | O_WRONLY, 0644);
            if (f < 0 || ftruncate(f, (off_t)(r >> 20 & ((1u << (r % 25)) - 1)))) { perror(name); return 1; }
            close(f);
        }
        close(fd);
        if (i) free(path[i]);
    }
    return 0;
}
