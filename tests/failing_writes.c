/* Preloaded into a process, makes one call fail that writes into a folder: the first whose key is not yet in a list.
 *
 * A key is the call, the file, and how often this process has made the call on that file. The key of the failed call is
 * appended to the list, so that the same program, started repeatedly, fails at every write once. See failing_writes.py.
 *
 *   cc -shared -fPIC -O1 -o failing_writes.so failing_writes.c -ldl -lpthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define KEYS 20000
#define LENGTH 512

static char folder[PATH_MAX];
static char (*failed)[LENGTH]; /* keys of earlier processes */
static char (*calls)[LENGTH];   /* "call path" of each call of this process; times: how often */
static int num_failed, num_calls, times[KEYS], list, error, hits, enabled;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* After this call the first new write below `where` fails with the error `with`; the file `keys` has the list of keys. */
void start_failing(const char *where, const char *keys, int with) {
    failed = calloc(KEYS, LENGTH);
    calls = calloc(KEYS, LENGTH);
    FILE *file = fopen(keys, "r");
    while (file && num_failed < KEYS && fgets(failed[num_failed], LENGTH, file)) {
        failed[num_failed][strcspn(failed[num_failed], "\n")] = 0;
        num_failed++;
    }
    if (file) fclose(file);
    list = syscall(SYS_openat, AT_FDCWD, keys, O_WRONLY | O_CREAT | O_APPEND, 0644);
    snprintf(folder, sizeof folder, "%s/", where);
    error = with;
    enabled = 1;
}

int fails_so_far(void) { return hits; }

/* Whether this call must fail. Names that differ between runs (temporary names, names with a process id) have one key. Of the lines
 * of a log, which nothing depends on, only the first three fail. */
static int must_fail(const char *call, const char *path) {
    if (!enabled || hits || strncmp(path, folder, strlen(folder))) return 0;
    char name[LENGTH], key[LENGTH];
    snprintf(name, sizeof name, "%s %.400s", call, path + strlen(folder));
    char *temporary = strstr(name, "/.tmp");
    if (!temporary) temporary = strstr(name, "/tmp");
    if (temporary) strcpy(temporary + 1, "tmp…");
    char *partial = strstr(name, ".partial"), *digits = partial; /* x.PID.partial is x.partial */
    while (digits && digits[-1] >= '0' && digits[-1] <= '9') digits--;
    if (digits != partial && digits[-1] == '.') memmove(digits - 1, partial, strlen(partial) + 1);
    int answer = 0;
    pthread_mutex_lock(&lock);
    int at = 0;
    while (at < num_calls && strcmp(calls[at], name)) at++;
    if (at == num_calls && num_calls < KEYS - 1) strcpy(calls[num_calls++], name);
    snprintf(key, sizeof key, "%.480s #%d", name, ++times[at]);
    if (strstr(name, ".log") && times[at] > 3) {
        pthread_mutex_unlock(&lock);
        return 0;
    }
    int known = 0;
    for (int n = 0; n < num_failed && !known; n++) known = !strcmp(failed[n], key);
    if (!known && !hits) {
        hits = answer = 1;
        strcat(key, "\n");
        syscall(SYS_write, list, key, strlen(key));
        syscall(SYS_fsync, list);
        errno = error;
    }
    pthread_mutex_unlock(&lock);
    return answer;
}

static int fd_must_fail(const char *call, int fd) {
    if (!enabled || hits) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return must_fail(call, path);
}

static int name_must_fail(const char *call, int at, const char *name) {
    if (!enabled || hits || !name) return 0;
    char path[PATH_MAX * 2], base[PATH_MAX], link[64];
    if (name[0] == '/') {
        snprintf(path, sizeof path, "%s", name);
    } else {
        if (at == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t size = readlink(link, base, sizeof base - 1);
            if (size < 0) return 0;
            base[size] = 0;
        }
        snprintf(path, sizeof path, "%s/%s", base, name);
    }
    return must_fail(call, path);
}

#define REAL(name, type, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

#define ON_FD(name, type, call, parameters, arguments, ...) \
    type name parameters { \
        REAL(#name, type, __VA_ARGS__); \
        return fd_must_fail(call, fd) ? -1 : real arguments; \
    }

ON_FD(write, ssize_t, "write", (int fd, const void *data, size_t size), (fd, data, size), int, const void *, size_t)
ON_FD(writev, ssize_t, "write", (int fd, const struct iovec *parts, int count), (fd, parts, count), int, const struct iovec *, int)
ON_FD(pwrite, ssize_t, "write", (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), int, const void *, size_t, off_t)
ON_FD(pwrite64, ssize_t, "write", (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), int, const void *, size_t, off64_t)
ON_FD(sendfile, ssize_t, "write", (int fd, int from, off_t *at, size_t size), (fd, from, at, size), int, int, off_t *, size_t)
ON_FD(sendfile64, ssize_t, "write", (int fd, int from, off64_t *at, size_t size), (fd, from, at, size), int, int, off64_t *, size_t)
ON_FD(fsync, int, "fsync", (int fd), (fd), int)
ON_FD(fdatasync, int, "fsync", (int fd), (fd), int)
ON_FD(ftruncate, int, "truncate", (int fd, off_t size), (fd, size), int, off_t)
ON_FD(ftruncate64, int, "truncate", (int fd, off64_t size), (fd, size), int, off64_t)

int mkdir(const char *path, mode_t mode) {
    REAL("mkdir", int, const char *, mode_t);
    /* One that is there already is no write. */
    return access(path, F_OK) && name_must_fail("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}

int rename(const char *from, const char *to) {
    REAL("rename", int, const char *, const char *);
    return name_must_fail("rename", AT_FDCWD, to) ? -1 : real(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL("renameat", int, int, const char *, int, const char *);
    return name_must_fail("rename", to_at, to) ? -1 : real(from_at, from, to_at, to);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(#name, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return flags & O_CREAT && name_must_fail("create", AT_FDCWD, path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(#name, int, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return flags & O_CREAT && name_must_fail("create", at, path) ? -1 : real(at, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)
