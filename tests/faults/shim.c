/* Faults of a disk, for tests: LD_PRELOAD this, and calls that write below a folder fail as they are told to.
 *
 *   FAULT_UNDER   the folder (absolute, real)
 *   FAULT_BUT     paths that contain this are left alone, and not counted
 *   FAULT_AT      the call that fails, counted from 1; 0 or unset: none
 *   FAULT_STAYS   set: all calls from that one on fail
 *   FAULT_ONLY    set with FAULT_STAYS: of those, only calls of these names, between commas, such as ",write,open,"
 *   FAULT_ERRNO   what they fail with, as a number
 *   FAULT_LOG     a file, not below the folder, to which each counted call adds a line: number, name, path, what became of it
 *   FAULT_FREE    bytes that statvfs says are free below the folder
 *   FAULT_FROM    from which call on it says so
 *
 * A write that fails with ENOSPC writes half of its bytes at its first attempt where it has several, as a disk does that
 * fills up.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long counted;

static const char *env(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* An absolute path of what is named, as far as that can be had without following its last part. */
static void resolve(int dir, const char *name, char *out) {
    char base[PATH_MAX] = "";
    if (name[0] == '/') {
        snprintf(out, PATH_MAX, "%s", name);
        return;
    }
    if (dir == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = readlink(link, base, sizeof base - 1);
        base[n < 0 ? 0 : n] = 0;
    }
    snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, name);
}

static int is_under(const char *path) {
    const char *under = env("FAULT_UNDER"), *but = env("FAULT_BUT");
    if (!under || strncmp(path, under, strlen(under)) != 0) return 0;
    return !(but && strstr(path, but));
}

/* Whether this call is to fail; sets errno. */
static int fails(const char *call, const char *path) {
    if (!is_under(path)) return 0;
    long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    const char *at = env("FAULT_AT"), *only = env("FAULT_ONLY");
    long wanted = at ? atol(at) : 0;
    int hit = wanted && (number == wanted || (number > wanted && env("FAULT_STAYS")));
    if (hit && only) {
        char named[64];
        snprintf(named, sizeof named, ",%s,", call);
        hit = strstr(only, named) != NULL;
    }
    const char *log = env("FAULT_LOG");
    if (log) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s %s\n", number, call, hit ? "fails" : "passes", path);
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (fd >= 0) {
            if (syscall(SYS_write, fd, line, (size_t)length) < 0) { /* a test will miss the line */ }
            syscall(SYS_close, fd);
        }
    }
    if (hit) errno = env("FAULT_ERRNO") ? atoi(env("FAULT_ERRNO")) : EIO;
    return hit;
}

static int fails_at(const char *call, int dir, const char *name) {
    int before = errno;
    char path[PATH_MAX];
    resolve(dir, name, path);
    if (fails(call, path)) return 1;
    errno = before;
    return 0;
}

static int fails_fd(const char *call, int fd) {
    int before = errno;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) {
        path[n] = 0;
        if (fails(call, path)) return 1;
    }
    errno = before;
    return 0;
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        NEXT(name); \
        if (WRITES(flags) && fails_at("open", AT_FDCWD, path)) return -1; \
        return next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        MODE(flags) \
        NEXT(name); \
        if (WRITES(flags) && fails_at("open", dir, path)) return -1; \
        return next(dir, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *bytes, size_t count) {
    NEXT(write);
    if (fails_fd("write", fd)) {
        /* Half of it comes to the disk, and the rest finds it full. */
        int said = errno;
        if (said == ENOSPC && count > 1 && next(fd, bytes, count / 2) < 0) { /* it fails in any case */ }
        errno = said;
        return -1;
    }
    return next(fd, bytes, count);
}

#define PWRITE(name, offset) \
    ssize_t name(int fd, const void *bytes, size_t count, offset at) { \
        NEXT(name); \
        return fails_fd("write", fd) ? -1 : next(fd, bytes, count, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    NEXT(writev);
    return fails_fd("write", fd) ? -1 : next(fd, parts, count);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    NEXT(copy_file_range);
    return fails_fd("write", out) ? -1 : next(in, from, out, to, count, flags);
}

int fsync(int fd) {
    NEXT(fsync);
    return fails_fd("fsync", fd) ? -1 : next(fd);
}

int fdatasync(int fd) {
    NEXT(fdatasync);
    return fails_fd("fsync", fd) ? -1 : next(fd);
}

#define TRUNCATE(name, offset) \
    int name(int fd, offset length) { \
        NEXT(name); \
        return fails_fd("truncate", fd) ? -1 : next(fd, length); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    NEXT(rename);
    return fails_at("rename", AT_FDCWD, to) ? -1 : next(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    NEXT(renameat);
    return fails_at("rename", to_dir, to) ? -1 : next(from_dir, from, to_dir, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    NEXT(renameat2);
    return fails_at("rename", to_dir, to) ? -1 : next(from_dir, from, to_dir, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    return fails_at("mkdir", AT_FDCWD, path) ? -1 : next(path, mode);
}

int link(const char *from, const char *to) {
    NEXT(link);
    return fails_at("link", AT_FDCWD, to) ? -1 : next(from, to);
}

int unlink(const char *path) {
    NEXT(unlink);
    return fails_at("unlink", AT_FDCWD, path) ? -1 : next(path);
}

int unlinkat(int dir, const char *path, int flags) {
    NEXT(unlinkat);
    return fails_at("unlink", dir, path) ? -1 : next(dir, path, flags);
}

int rmdir(const char *path) {
    NEXT(rmdir);
    return fails_at("unlink", AT_FDCWD, path) ? -1 : next(path);
}

#define STATVFS(name, type) \
    int name(const char *path, struct type *stat) { \
        NEXT(name); \
        int done = next(path, stat); \
        char whole[PATH_MAX]; \
        resolve(AT_FDCWD, path, whole); \
        long from = env("FAULT_FROM") ? atol(env("FAULT_FROM")) : 0; \
        if (done == 0 && env("FAULT_FREE") && is_under(whole) && counted >= from) { \
            stat->f_frsize = 1; \
            stat->f_bavail = strtoull(env("FAULT_FREE"), NULL, 10); \
        } \
        return done; \
    }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)
