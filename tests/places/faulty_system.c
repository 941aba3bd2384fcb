/* Preloaded into a process of the tests: calls to the system fail on purpose, and the wall clock is
 * off. What fails is told by a table in a file that whoever tests has mapped too, so it can change
 * at any moment; `faulty_system.py` has the other side of it.
 *
 * A failure is the errno that it is told, half of what was asked for (a short read or write), or
 * nothing of it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, READ, WRITE, SYNC, RENAME, UNLINK, RESIZE, MKDIR };
enum { NOTHING = -2, HALF = -1, WELL = 0, RULES = 8, PART = 108 };

struct rule {
    int32_t call;    /* 0: no rule */
    int32_t error;   /* an errno, HALF or NOTHING */
    uint32_t after;  /* so many go well yet */
    uint32_t times;  /* and then so many fail */
    uint32_t met;    /* how many have failed */
    char part[PART]; /* of the path; with a $ behind it, its end */
};

struct table {
    double clock_s; /* added to the wall clock */
    struct rule rules[RULES];
};

static struct table *table;

__attribute__((constructor)) static void map_table(void) {
    const char *path = getenv("FAULTY_SYSTEM");
    int opened = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (opened < 0)
        return;
    void *found = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0);
    close(opened);
    if (found != MAP_FAILED)
        table = found;
}

static int is_of(const char *path, const char *part) {
    size_t length = strnlen(part, PART), whole = strlen(path);
    if (length == 0 || part[length - 1] != '$')
        return strstr(path, part) != NULL;
    length -= 1;
    return whole >= length && memcmp(path + whole - length, part, length) == 0;
}

/* Whether this call fails, and how. */
static int verdict(int call, const char *path) {
    if (table == NULL)
        return WELL;
    for (int i = 0; i < RULES; i++) {
        struct rule *rule = &table->rules[i];
        if (rule->call != call || !is_of(path, rule->part))
            continue;
        uint32_t after = __atomic_load_n(&rule->after, __ATOMIC_SEQ_CST);
        if (after > 0) {
            __atomic_sub_fetch(&rule->after, 1, __ATOMIC_SEQ_CST);
            continue;
        }
        if (__atomic_load_n(&rule->met, __ATOMIC_SEQ_CST) >= rule->times)
            continue;
        __atomic_add_fetch(&rule->met, 1, __ATOMIC_SEQ_CST);
        return rule->error;
    }
    return WELL;
}

static int verdict_on(int call, int descriptor) {
    char link[64], path[4096];
    if (table == NULL)
        return WELL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return WELL;
    path[length] = 0;
    return verdict(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(why) do { errno = (why); return -1; } while (0)
#define REFUSED(told) do { int why_ = (told); if (why_ > WELL) FAIL(why_); } while (0)

#define OPENING(name)                                                                      \
    int name(const char *path, int flags, ...) {                                           \
        va_list given;                                                                     \
        va_start(given, flags);                                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(given, mode_t) : 0;           \
        va_end(given);                                                                     \
        REFUSED(verdict(OPEN, path));                                                      \
        return NEXT(name)(path, flags, mode);                                              \
    }
OPENING(open)
OPENING(open64)

/* `size` is what is asked for: half of it, rounded up, where the call is to fall short. */
#define MOVING(kind, name, parameters, arguments, descriptor, size)                        \
    ssize_t name parameters {                                                              \
        int how = verdict_on(kind, descriptor);                                            \
        if (how > WELL)                                                                    \
            FAIL(how);                                                                     \
        if (how == NOTHING)                                                                \
            return 0;                                                                      \
        if (how == HALF)                                                                   \
            size = (size + 1) / 2;                                                         \
        return NEXT(name) arguments;                                                       \
    }
MOVING(READ, read, (int fd, void *to, size_t size), (fd, to, size), fd, size)
MOVING(READ, pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at), fd, size)
MOVING(READ, pread64, (int fd, void *to, size_t size, off64_t at), (fd, to, size, at), fd, size)
MOVING(WRITE, write, (int fd, const void *from, size_t size), (fd, from, size), fd, size)
MOVING(WRITE, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at), fd, size)
MOVING(WRITE, pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at), fd, size)

/* Falling short: half of the first buffer. */
#define VECTORED(kind, name)                                                               \
    ssize_t name(int fd, const struct iovec *buffers, int count) {                         \
        int how = verdict_on(kind, fd);                                                    \
        struct iovec half = {buffers[0].iov_base, (buffers[0].iov_len + 1) / 2};           \
        if (how > WELL)                                                                    \
            FAIL(how);                                                                     \
        if (how == NOTHING)                                                                \
            return 0;                                                                      \
        return how == HALF ? NEXT(name)(fd, &half, 1) : NEXT(name)(fd, buffers, count);    \
    }
VECTORED(READ, readv)
VECTORED(WRITE, writev)

#define JUDGED(kind, name, parameters, arguments, judge, what)                             \
    int name parameters {                                                                  \
        REFUSED(judge(kind, what));                                                        \
        return NEXT(name) arguments;                                                       \
    }
JUDGED(SYNC, fsync, (int fd), (fd), verdict_on, fd)
JUDGED(SYNC, fdatasync, (int fd), (fd), verdict_on, fd)
JUDGED(RESIZE, ftruncate, (int fd, off_t size), (fd, size), verdict_on, fd)
JUDGED(RESIZE, ftruncate64, (int fd, off64_t size), (fd, size), verdict_on, fd)
JUDGED(RENAME, rename, (const char *from, const char *to), (from, to), verdict, to)
JUDGED(UNLINK, unlink, (const char *path), (path), verdict, path)
JUDGED(MKDIR, mkdir, (const char *path, mode_t mode), (path, mode), verdict, path)

/* These two return the error. */
#define RESERVING(name, type)                                                              \
    int name(int fd, type at, type size) {                                                 \
        int how = verdict_on(RESIZE, fd);                                                  \
        return how > WELL ? how : NEXT(name)(fd, at, size);                                \
    }
RESERVING(posix_fallocate, off_t)
RESERVING(posix_fallocate64, off64_t)

static void shift(int64_t *seconds, int64_t *parts, int64_t of_a_second) {
    double off = table == NULL ? 0.0 : table->clock_s;
    int64_t all = *seconds * of_a_second + *parts + (int64_t)(off * (double)of_a_second);
    *seconds = all / of_a_second;
    *parts = all % of_a_second;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = NEXT(clock_gettime)(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        shift(&now->tv_sec, &now->tv_nsec, 1000000000);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = NEXT(gettimeofday)(now, zone);
    if (result == 0)
        shift(&now->tv_sec, &now->tv_usec, 1000000);
    return result;
}

time_t time(time_t *told) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told != NULL)
        *told = now.tv_sec;
    return now.tv_sec;
}
