// LD_PRELOAD: counts the file calls under a folder and, at the n-th, kills the process or fails.
//
// Armed by a process for itself alone (its forks are let be); what it counts stands in a shared
// file, so that it can be read of a process that was killed. A kill at a write, and an error of a
// write, let half of the bytes through.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

// As faults/shim.py reads it.
struct tally {
    long calls;        // that touched the folder and are of the kinds that count
    long hits;         // of them that were killed or failed
    char call[496];    // the last of these: its kind and path
    char kinds[15872]; // the kind of each call, in order
};

static struct tally *tally;
static char folder[4096], counted[32];
static size_t length;
static long at;
static int error, from_then_on;
static pid_t armed;

// `number` is the call to act at, 0 for none; `code` the errno to fail with, 0 to be killed.
int shim_arm(const char *file, const char *under, const char *kinds, long number, int code,
             int sticky) {
    int fd = open(file, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 0) || ftruncate(fd, sizeof *tally)) return -1;
    tally = mmap(0, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (tally == MAP_FAILED) return -1;
    snprintf(folder, sizeof folder, "%s", under);
    snprintf(counted, sizeof counted, "%s", kinds);
    length = strlen(folder);
    at = number, error = code, from_then_on = sticky, armed = getpid();
    return 0;
}

// Where a call goes: an absolute path, one below an open folder, or an open file.
static const char *place(int dir, const char *path, char *room) {
    if (path && (path[0] == '/' || dir == AT_FDCWD)) return path;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t n = readlink(link, room, 4095);
    if (n <= 0) return "";
    room[n] = 0;
    if (path) snprintf(room + n, 4096 - n, "/%s", path);
    return room;
}

enum { GO, FAIL, KILL };

static int fate(char kind, int dir, const char *path) {
    if (!armed || armed != getpid() || !strchr(counted, kind)) return GO;
    char room[4096];
    int before = errno;
    const char *where = place(dir, path, room);
    errno = before;
    if (strncmp(where, folder, length)) return GO;
    long call = __sync_add_and_fetch(&tally->calls, 1);
    if (call <= (long)sizeof tally->kinds) tally->kinds[call - 1] = kind;
    if (!at || (from_then_on ? call < at : call != at)) return GO;
    if (!tally->hits++) snprintf(tally->call, sizeof tally->call, "%c %s", kind, where + length);
    return error ? FAIL : KILL;
}

static int refuse(int what) {
    if (what == KILL) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = error;
    return -1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define OTHERWISE(kind, dir, path) \
    int what = fate(kind, dir, path); \
    if (what != GO) return refuse(what)

static char opened(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT) ? 'o' : 'R'; }
#define MODE va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more)
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE; REAL(name); OTHERWISE(opened(flags), AT_FDCWD, path); return real(path, flags, mode); }
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        MODE; REAL(name); OTHERWISE(opened(flags), dir, path); return real(dir, path, flags, mode); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        int what = fate(strpbrk(mode, "wa+") ? 'o' : 'R', AT_FDCWD, path); \
        if (what != GO) return refuse(what), NULL; \
        return real(path, mode); }
FOPEN(fopen)
FOPEN(fopen64)

// Half of what was to be written gets there.
#define WRITE(half, whole) \
    int what = fd > 2 ? fate('w', fd, NULL) : GO; \
    if (what != GO) { if (size > 1) (void)!(half); return refuse(what); } \
    return whole
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write); WRITE(real(fd, data, size / 2), real(fd, data, size)); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t to) {
    REAL(pwrite); WRITE(real(fd, data, size / 2, to), real(fd, data, size, to)); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t to) {
    REAL(pwrite64); WRITE(real(fd, data, size / 2, to), real(fd, data, size, to)); }
ssize_t writev(int fd, const struct iovec *data, int size) {
    REAL(writev); WRITE(real(fd, data, size / 2), real(fd, data, size)); }
ssize_t sendfile64(int fd, int from, off64_t *at_, size_t size) {
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    WRITE(0, real(fd, from, at_, size)); }
ssize_t read(int fd, void *data, size_t size) {
    REAL(read); OTHERWISE('r', fd, NULL); return real(fd, data, size); }

int rename(const char *from, const char *to) {
    REAL(rename); OTHERWISE('n', AT_FDCWD, to); return real(from, to); }
int renameat(int there, const char *from, int dir, const char *to) {
    REAL(renameat); OTHERWISE('n', dir, to); return real(there, from, dir, to); }
int link(const char *from, const char *to) {
    REAL(link); OTHERWISE('n', AT_FDCWD, to); return real(from, to); }
int linkat(int there, const char *from, int dir, const char *to, int flags) {
    REAL(linkat); OTHERWISE('n', dir, to); return real(there, from, dir, to, flags); }
int unlink(const char *path) { REAL(unlink); OTHERWISE('d', AT_FDCWD, path); return real(path); }
int rmdir(const char *path) { REAL(rmdir); OTHERWISE('d', AT_FDCWD, path); return real(path); }
int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat); OTHERWISE('d', dir, path); return real(dir, path, flags); }
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir); OTHERWISE('m', AT_FDCWD, path); return real(path, mode); }
int mkdirat(int dir, const char *path, mode_t mode) {
    REAL(mkdirat); OTHERWISE('m', dir, path); return real(dir, path, mode); }
int chmod(const char *path, mode_t mode) {
    REAL(chmod); OTHERWISE('c', AT_FDCWD, path); return real(path, mode); }
int fchmod(int fd, mode_t mode) { REAL(fchmod); OTHERWISE('c', fd, NULL); return real(fd, mode); }
int fsync(int fd) { REAL(fsync); OTHERWISE('s', fd, NULL); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); OTHERWISE('s', fd, NULL); return real(fd); }
int ftruncate(int fd, off_t size) {
    REAL(ftruncate); OTHERWISE('t', fd, NULL); return real(fd, size); }
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64); OTHERWISE('t', fd, NULL); return real(fd, size); }
int flock(int fd, int how) { REAL(flock); OTHERWISE('l', fd, NULL); return real(fd, how); }
