/* Faults for a process under test: loaded before libc, it meddles with calls on chosen files.
 *
 * FAULTS      rules "call path nth times action", one a line. The rule holds for the calls whose
 *             file has `path` in its path (at its end where it ends in $), from the nth on (1 is the
 *             first), `times` of them. The
 *             action is a number of errno; or "short" (half of what was asked for), "zero" (nothing,
 *             as at the end of a file), "pause" (until a file FAULT_LOG.go is there).
 * FAULT_LOG   gets a line "call path" for each call on a file that has FAULT_TRACE in its path, and
 *             "fired call path" for each fault.
 *
 * Counters are shared with processes that are forked.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RULES = 8, NAME = 4096 };

struct rule {
    char call[32], path[256], action[16];
    long nth, times;
};

static struct rule rules[RULES];
static long *seen; /* calls by rule */
static int count, journal = -1;
static const char *trace, *journal_name;

static ssize_t (*real_write)(int, const void *, size_t);

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Called when the layer is loaded, and once more by a process that is forked with rules of its own. */
__attribute__((constructor)) void begin_faults(void)
{
    real_write = REAL(write);
    seen = mmap(NULL, RULES * sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    trace = getenv("FAULT_TRACE");
    journal_name = getenv("FAULT_LOG");
    if (journal_name)
        journal = open(journal_name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    for (const char *text = getenv("FAULTS"); text && *text && count < RULES; count++) {
        struct rule *r = &rules[count];
        if (sscanf(text, "%31s %255s %ld %ld %15s", r->call, r->path, &r->nth, &r->times, r->action) != 5)
            abort();
        text = strchr(text, '\n');
        text = text ? text + 1 : NULL;
    }
}

static void note(const char *kind, const char *call, const char *path)
{
    char line[NAME + 64];
    int length = snprintf(line, sizeof line, "%s%s %s\n", kind, call, path);
    if (journal >= 0 && real_write(journal, line, length) != length)
        abort();
}

static int matches(const char *path, const char *wanted)
{
    size_t length = strlen(path), size = strlen(wanted);
    if (size && wanted[size - 1] == '$')
        return length >= size - 1 && !strncmp(path + length - (size - 1), wanted, size - 1);
    return strstr(path, wanted) != NULL;
}

/* The action that a rule has for this call, or NULL. */
static const char *meddle(const char *call, const char *path)
{
    if (!seen)
        return NULL;
    if (trace && strstr(path, trace))
        note("", call, path);
    for (int i = 0; i < count; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->call, call) || !matches(path, r->path))
            continue;
        long now = __atomic_add_fetch(&seen[i], 1, __ATOMIC_SEQ_CST);
        if (now < r->nth || now >= r->nth + r->times)
            continue;
        note("fired ", call, path);
        if (!strcmp(r->action, "pause")) {
            char go[NAME];
            snprintf(go, sizeof go, "%s.go", journal_name);
            for (int tries = 0; access(go, F_OK) && tries < 12000; tries++)
                usleep(5000);
            continue;
        }
        return r->action;
    }
    return NULL;
}

static const char *meddle_fd(const char *call, int fd)
{
    int before = errno;
    char link[64], path[NAME];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0)
        return NULL;
    path[length] = 0;
    return meddle(call, path);
}

/* For calls that return 0 or -1. */
#define FAIL(action)                   \
    do {                               \
        const char *done = action;     \
        if (done) {                    \
            errno = atoi(done);        \
            return -1;                 \
        }                              \
    } while (0)

/* For calls that return a count. */
#define TRANSFER(action, size, half)                    \
    do {                                                \
        if (action && !strcmp(action, "zero"))          \
            return 0;                                   \
        if (action && strcmp(action, "short"))          \
            FAIL(action);                               \
        if (action && (size) > 1)                       \
            return half;                                \
    } while (0)

ssize_t read(int fd, void *to, size_t size)
{
    const char *action = meddle_fd("read", fd);
    TRANSFER(action, size, REAL(read)(fd, to, size / 2));
    return REAL(read)(fd, to, size);
}

ssize_t preadv64v2(int fd, const struct iovec *to, int n, off64_t at, int flags)
{
    const char *action = meddle_fd("preadv", fd);
    struct iovec part = {to->iov_base, to->iov_len / 2};
    TRANSFER(action, to->iov_len, REAL(preadv64v2)(fd, &part, 1, at, flags));
    return REAL(preadv64v2)(fd, to, n, at, flags);
}

ssize_t preadv64(int fd, const struct iovec *to, int n, off64_t at)
{
    const char *action = meddle_fd("preadv", fd);
    struct iovec part = {to->iov_base, to->iov_len / 2};
    TRANSFER(action, to->iov_len, REAL(preadv64)(fd, &part, 1, at));
    return REAL(preadv64)(fd, to, n, at);
}

ssize_t write(int fd, const void *from, size_t size)
{
    const char *action = meddle_fd("write", fd);
    TRANSFER(action, size, real_write(fd, from, size / 2));
    return real_write(fd, from, size);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at)
{
    const char *action = meddle_fd("pwrite", fd);
    TRANSFER(action, size, REAL(pwrite64)(fd, from, size / 2, at));
    return REAL(pwrite64)(fd, from, size, at);
}

int fsync(int fd)
{
    FAIL(meddle_fd("fsync", fd));
    return REAL(fsync)(fd);
}

int ftruncate64(int fd, off64_t size)
{
    FAIL(meddle_fd("ftruncate", fd));
    return REAL(ftruncate64)(fd, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size)
{
    const char *action = meddle_fd("posix_fallocate", fd);
    return action ? atoi(action) : REAL(posix_fallocate64)(fd, at, size);
}

int rename(const char *from, const char *to)
{
    FAIL(meddle("rename", from));
    return REAL(rename)(from, to);
}

int unlink(const char *path)
{
    FAIL(meddle("unlink", path));
    return REAL(unlink)(path);
}

int mkdir(const char *path, mode_t mode)
{
    FAIL(meddle("mkdir", path));
    return REAL(mkdir)(path, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    FAIL(meddle("open", path));
    return REAL(open64)(path, flags, mode);
}

/* A failing close closes all the same, as Linux does. */
int close(int fd)
{
    const char *action = meddle_fd("close", fd);
    int done = REAL(close)(fd);
    FAIL(action);
    return done;
}
