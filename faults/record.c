/* Writes down every change below one folder, in the order in which a process makes them.

   Preloaded (LD_PRELOAD), it stands before the C library, through which Python, Rust and C++ reach
   files. LIKELIER_RECORD_FOLDER is the folder, LIKELIER_RECORD_LOG the file that the changes are
   added to; likelier_record() reads both again. What cannot be replayed exactly (mapped files,
   stdio, files without a name) is written down as refused. faults/power_loss.py reads the log:
   a head, then two texts, then bytes. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
  char kind;
  uint64_t node;  /* inode */
  int64_t number; /* an offset or a size, in bytes */
  uint32_t first, second;
  uint64_t bytes;
} __attribute__((packed));

static char folder[PATH_MAX];
static int log_file = -1;
static int known; /* files */
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static void settle(void);
static void hold(void) { pthread_mutex_lock(&one_at_a_time); }
static void unlock(void) { pthread_mutex_unlock(&one_at_a_time); }
static void lock(void) { hold(); settle(); }

/* The function that this one stands before. */
#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = dlsym(RTLD_NEXT, #name)

void likelier_record(void) {
  const char *where = getenv("LIKELIER_RECORD_FOLDER"), *to = getenv("LIKELIER_RECORD_LOG");
  if (log_file >= 0) syscall(SYS_close, log_file);
  log_file = -1, folder[0] = 0, known = 0;
  if (!where || !to) return;
  int low = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  log_file = fcntl(low, F_DUPFD_CLOEXEC, 700); /* out of the way of the numbers of others */
  syscall(SYS_close, low);
  snprintf(folder, sizeof folder, "%s", where);
}

__attribute__((constructor)) static void begin(void) {
  pthread_atfork(hold, unlock, unlock);
  likelier_record();
}

static void put(char kind, uint64_t node, int64_t number, const char *first, const char *second,
                const struct iovec *parts, int count, size_t bytes) {
  int before = errno;
  struct head head = {kind, node, number, strlen(first), strlen(second), bytes};
  struct iovec all[3 + count];
  all[0] = (struct iovec){&head, sizeof head};
  all[1] = (struct iovec){(void *)first, head.first};
  all[2] = (struct iovec){(void *)second, head.second};
  size_t left = bytes;
  for (int i = 0; i < count; i++) { /* a write may have taken less than it was given */
    size_t size = parts[i].iov_len < left ? parts[i].iov_len : left;
    all[3 + i] = (struct iovec){parts[i].iov_base, size};
    left -= size;
  }
  ssize_t done = syscall(SYS_writev, log_file, all, 3 + count);
  if (done != (ssize_t)(sizeof head + head.first + head.second + bytes)) abort();
  errno = before;
}

static void note(char kind, uint64_t node, int64_t number, const char *first, const char *second) {
  put(kind, node, number, first, second, NULL, 0, 0);
}

static void refuse(const char *why, const char *path) { note('?', 0, 0, why, path); }

/* Something that the program says at this moment. */
void likelier_note(const char *text) {
  if (!folder[0]) return;
  lock();
  note('N', 0, 0, text, "");
  unlock();
}

static int within(const char *path) {
  size_t size = strlen(folder);
  return size && !strncmp(path, folder, size) && (!path[size] || path[size] == '/');
}

/* Whether a path lies in the folder; `full` becomes absolute, without "." and "..". */
static int below(int base, const char *path, char *full) {
  if (!folder[0] || !path) return 0;
  char joined[2 * PATH_MAX], link[64], *rest, *out = full;
  if (path[0] == '/') {
    snprintf(joined, sizeof joined, "%s", path);
  } else {
    if (base == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", base);
    ssize_t size = readlink(link, joined, PATH_MAX - 1);
    if (size < 0) return 0;
    snprintf(joined + size, sizeof joined - size, "/%s", path);
  }
  for (char *name = strtok_r(joined, "/", &rest); name; name = strtok_r(NULL, "/", &rest)) {
    if (!strcmp(name, ".")) continue;
    if (!strcmp(name, "..")) {
      while (out > full && *--out != '/') {}
      continue;
    }
    if (out - full + strlen(name) + 2 > PATH_MAX) return 0;
    out += sprintf(out, "/%s", name);
  }
  *out = 0;
  return within(full);
}

/* Whether an open file lies in the folder, also one that has been renamed or deleted since. */
static int ours(int file, struct stat *about) {
  char link[64], path[PATH_MAX];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  int before = errno;
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size > 0) path[size] = 0;
  int found = size > 0 && within(path) && !fstat(file, about);
  errno = before;
  return found;
}

/* ---- names that change unseen ------------------------------------------------------------

   Rust renames its temporary files by a system call of its own, past the C library. So every file
   made here is looked at before the next change is written down: one that has another name now was
   renamed since the last change, one that has none was deleted. */

#define MAX_FILES 4096
static struct { uint64_t node; char *path; } files[MAX_FILES];

static void forget(const char *path) {
  for (int i = 0; i < known; i++)
    if (!strcmp(files[i].path, path)) free(files[i].path), files[i--] = files[--known];
}

static void know(uint64_t node, const char *path) {
  if (known == MAX_FILES) abort();
  files[known].node = node;
  files[known++].path = strdup(path);
}

/* A file has another name, or a folder, and with it all files below. */
static void renamed(const char *old, const char *path) {
  size_t size = strlen(old);
  forget(path);
  for (int i = 0; i < known; i++) {
    char *now = files[i].path, *then;
    if (strncmp(now, old, size) || (now[size] && now[size] != '/')) continue;
    if (asprintf(&then, "%s%s", path, now + size) < 0) abort();
    free(now);
    files[i].path = then;
  }
}

static int has(const char *path, uint64_t node) {
  struct stat about;
  return !lstat(path, &about) && about.st_ino == node;
}

static void settle(void) {
  int before = errno;
  char now[PATH_MAX];
  for (int i = 0; i < known; i++) {
    if (has(files[i].path, files[i].node)) continue;
    char *old = strdup(files[i].path), *name = strrchr(old, '/');
    snprintf(now, sizeof now, "%.*s", (int)(name - old), old);
    DIR *parent = opendir(now);
    struct dirent *entry;
    while (parent && (entry = readdir(parent))) {
      if (entry->d_ino != files[i].node) continue;
      snprintf(now, sizeof now, "%.*s/%s", (int)(name - old), old, entry->d_name);
      note('R', 0, 0, old, now);
      renamed(old, now);
      i = -1; /* the list has another order: look again */
      break;
    }
    if (parent) closedir(parent);
    free(old);
  }
  for (int i = known - 1; i >= 0; i--) {
    if (has(files[i].path, files[i].node)) continue;
    note('U', 0, 0, files[i].path, "");
    forget(files[i].path);
  }
  errno = before;
}

/* ---- opening ---------------------------------------------------------------------------- */

static int open_at(int base, const char *path, int flags, mode_t mode) {
  REAL(openat64);
  char full[PATH_MAX];
  int changes = (flags & (O_CREAT | O_TRUNC)) || (flags & O_ACCMODE) != O_RDONLY;
  if (!changes || !below(base, path, full)) return real(base, path, flags, mode);
  lock();
  struct stat before, after;
  int was = !fstatat(base, path, &before, 0);
  int file = real(base, path, flags, mode);
  if (file >= 0 && !fstat(file, &after)) {
    if ((flags & O_TMPFILE) == O_TMPFILE) refuse("a file without a name", full);
    else if (!was) note('C', after.st_ino, 0, full, ""), know(after.st_ino, full);
    else if ((flags & O_TRUNC) && before.st_size) note('T', after.st_ino, 0, "", "");
    if (flags & (O_SYNC | O_DSYNC)) refuse("O_SYNC", full);
  }
  unlock();
  return file;
}

#define MODE(last) \
  va_list more; va_start(more, last); mode_t mode = va_arg(more, mode_t); va_end(more)
int open(const char *path, int flags, ...) { MODE(flags); return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); return open_at(AT_FDCWD, path, flags, mode); }
int openat(int base, const char *path, int flags, ...) { MODE(flags); return open_at(base, path, flags, mode); }
int openat64(int base, const char *path, int flags, ...) { MODE(flags); return open_at(base, path, flags, mode); }
int __open_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
int __openat_2(int base, const char *path, int flags) { return open_at(base, path, flags, 0); }
int __openat64_2(int base, const char *path, int flags) { return open_at(base, path, flags, 0); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* What stdio writes never leaves the C library. */
static void stdio(const char *path, const char *how) {
  char full[PATH_MAX];
  if (!strpbrk(how, "wa+") || !below(AT_FDCWD, path, full)) return;
  lock();
  refuse("stdio", full);
  unlock();
}
FILE *fopen(const char *path, const char *how) { REAL(fopen); stdio(path, how); return real(path, how); }
FILE *fopen64(const char *path, const char *how) { REAL(fopen64); stdio(path, how); return real(path, how); }
FILE *freopen(const char *path, const char *how, FILE *old) { REAL(freopen); stdio(path, how); return real(path, how, old); }
FILE *freopen64(const char *path, const char *how, FILE *old) { REAL(freopen64); stdio(path, how); return real(path, how, old); }

static void mapped(int protection, int flags, int file) {
  struct stat about;
  if (file < 0 || !(protection & PROT_WRITE) || !(flags & MAP_SHARED) || !ours(file, &about)) return;
  lock();
  refuse("a file mapped for writing", "");
  unlock();
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t from) {
  REAL(mmap); mapped(protection, flags, file); return real(at, size, protection, flags, file, from);
}
void *mmap64(void *at, size_t size, int protection, int flags, int file, off64_t from) {
  REAL(mmap64); mapped(protection, flags, file); return real(at, size, protection, flags, file, from);
}

/* ---- content ---------------------------------------------------------------------------- */

/* Where the bytes went that have just been written; at: -1 where the file's own place counts. */
static int64_t place(int file, ssize_t done, int64_t at) {
  if (fcntl(file, F_GETFL) & O_APPEND) return lseek64(file, 0, SEEK_END) - done;
  return at >= 0 ? at : lseek64(file, 0, SEEK_CUR) - done;
}

#define WRITE(call, parts, count, at) \
  struct stat about; \
  if (!ours(file, &about)) return call; \
  lock(); \
  ssize_t done = call; \
  if (done > 0) put('W', about.st_ino, place(file, done, at), "", "", parts, count, done); \
  unlock(); \
  return done
#define ONE &(struct iovec){(void *)data, size}

ssize_t write(int file, const void *data, size_t size) { REAL(write); WRITE(real(file, data, size), ONE, 1, -1); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { REAL(pwrite); WRITE(real(file, data, size, at), ONE, 1, at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) { REAL(pwrite64); WRITE(real(file, data, size, at), ONE, 1, at); }
ssize_t writev(int file, const struct iovec *parts, int count) { REAL(writev); WRITE(real(file, parts, count), parts, count, -1); }
ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at) { REAL(pwritev); WRITE(real(file, parts, count, at), parts, count, at); }
ssize_t pwritev64(int file, const struct iovec *parts, int count, off64_t at) { REAL(pwritev64); WRITE(real(file, parts, count, at), parts, count, at); }
ssize_t pwritev2(int file, const struct iovec *parts, int count, off_t at, int flags) { REAL(pwritev2); WRITE(real(file, parts, count, at, flags), parts, count, at); }
ssize_t pwritev64v2(int file, const struct iovec *parts, int count, off64_t at, int flags) { REAL(pwritev64v2); WRITE(real(file, parts, count, at, flags), parts, count, at); }

/* Bytes that the kernel copied are read back from the file. */
static void copied(int file, const struct stat *about, ssize_t done, int64_t at) {
  char link[64], *data = malloc(done);
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  int reading = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY, 0);
  at = place(file, done, at);
  if (reading < 0 || pread64(reading, data, done, at) != done) refuse("a copy", link);
  else put('W', about->st_ino, at, "", "", &(struct iovec){data, done}, 1, done);
  syscall(SYS_close, reading);
  free(data);
}
#define COPY(call, at) \
  struct stat about; \
  if (!ours(to, &about)) return call; \
  lock(); \
  int64_t where = at; \
  ssize_t done = call; \
  if (done > 0) copied(to, &about, done, where); \
  unlock(); \
  return done
ssize_t sendfile(int to, int from, off_t *at, size_t size) { REAL(sendfile); COPY(real(to, from, at, size), -1); }
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { REAL(sendfile64); COPY(real(to, from, at, size), -1); }
ssize_t copy_file_range(int from, off64_t *there, int to, off64_t *here, size_t size, unsigned flags) {
  REAL(copy_file_range); COPY(real(from, there, to, here, size, flags), here ? *here : -1);
}
ssize_t splice(int from, off64_t *there, int to, off64_t *here, size_t size, unsigned flags) {
  REAL(splice); COPY(real(from, there, to, here, size, flags), here ? *here : -1);
}

/* After a call that may have changed the size of a file. */
#define RESIZE(call) \
  struct stat about; \
  if (!ours(file, &about)) return call; \
  lock(); \
  off_t before = about.st_size; \
  int failed = call; \
  if (!failed && !fstat(file, &about) && about.st_size != before) note('T', about.st_ino, about.st_size, "", ""); \
  unlock(); \
  return failed
int ftruncate(int file, off_t size) { REAL(ftruncate); RESIZE(real(file, size)); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); RESIZE(real(file, size)); }
int posix_fallocate(int file, off_t at, off_t size) { REAL(posix_fallocate); RESIZE(real(file, at, size)); }
int posix_fallocate64(int file, off64_t at, off64_t size) { REAL(posix_fallocate64); RESIZE(real(file, at, size)); }
static void punched(int file, int mode) {
  struct stat about;
  if ((mode & ~FALLOC_FL_KEEP_SIZE) && ours(file, &about)) {
    lock();
    refuse("fallocate that changes content", "");
    unlock();
  }
}
int fallocate(int file, int mode, off_t at, off_t size) { REAL(fallocate); punched(file, mode); RESIZE(real(file, mode, at, size)); }
int fallocate64(int file, int mode, off64_t at, off64_t size) { REAL(fallocate64); punched(file, mode); RESIZE(real(file, mode, at, size)); }
int truncate(const char *path, off_t size) {
  int file = open_at(AT_FDCWD, path, O_WRONLY, 0);
  if (file < 0) return -1;
  int failed = ftruncate(file, size);
  close(file);
  return failed;
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }

/* ---- names ------------------------------------------------------------------------------ */

static int made(int failed, int base, const char *path, char kind, const char *full, const char *target) {
  struct stat about;
  if (!failed && !fstatat(base, path, &about, AT_SYMLINK_NOFOLLOW)) note(kind, about.st_ino, 0, full, target);
  return failed;
}
#define NAME(base, path, call, kind, target) \
  char full[PATH_MAX]; \
  if (!below(base, path, full)) return call; \
  lock(); \
  int failed = made(call, base, path, kind, full, target); \
  unlock(); \
  return failed
int mkdir(const char *path, mode_t mode) { REAL(mkdir); NAME(AT_FDCWD, path, real(path, mode), 'M', ""); }
int mkdirat(int base, const char *path, mode_t mode) { REAL(mkdirat); NAME(base, path, real(base, path, mode), 'M', ""); }
int link(const char *old, const char *path) { REAL(link); NAME(AT_FDCWD, path, real(old, path), 'L', ""); }
int linkat(int from, const char *old, int base, const char *path, int flags) { REAL(linkat); NAME(base, path, real(from, old, base, path, flags), 'L', ""); }
int symlink(const char *target, const char *path) { REAL(symlink); NAME(AT_FDCWD, path, real(target, path), 'S', target); }
int symlinkat(const char *target, int base, const char *path) { REAL(symlinkat); NAME(base, path, real(target, base, path), 'S', target); }

#define GONE(base, path, call) \
  char full[PATH_MAX]; \
  if (!below(base, path, full)) return call; \
  lock(); \
  int failed = call; \
  if (!failed) note('U', 0, 0, full, ""), forget(full); \
  unlock(); \
  return failed
int unlink(const char *path) { REAL(unlink); GONE(AT_FDCWD, path, real(path)); }
int unlinkat(int base, const char *path, int flags) { REAL(unlinkat); GONE(base, path, real(base, path, flags)); }
int rmdir(const char *path) { REAL(rmdir); GONE(AT_FDCWD, path, real(path)); }
int remove(const char *path) { REAL(remove); GONE(AT_FDCWD, path, real(path)); }

#define MOVE(from, old, to, path, call) \
  char source[PATH_MAX], target[PATH_MAX]; \
  int out = below(from, old, source), in = below(to, path, target); \
  if (!out && !in) return call; \
  lock(); \
  int failed = call; \
  if (!failed && out && in) note('R', 0, 0, source, target), renamed(source, target); \
  else if (!failed) refuse("a rename across the folder's border", out ? source : target); \
  unlock(); \
  return failed
int rename(const char *old, const char *path) { REAL(rename); MOVE(AT_FDCWD, old, AT_FDCWD, path, real(old, path)); }
int renameat(int from, const char *old, int to, const char *path) { REAL(renameat); MOVE(from, old, to, path, real(from, old, to, path)); }
int renameat2(int from, const char *old, int to, const char *path, unsigned flags) {
  REAL(renameat2);
  if (folder[0] && (flags & ~RENAME_NOREPLACE)) refuse("two names that change places", path);
  MOVE(from, old, to, path, real(from, old, to, path, flags));
}

/* ---- to the disk ------------------------------------------------------------------------ */

#define SYNC(kind, call) \
  struct stat about; \
  if (!ours(file, &about)) return call; \
  lock(); \
  int failed = call; \
  if (!failed) note(kind, about.st_ino, 0, "", ""); \
  unlock(); \
  return failed
int fsync(int file) { REAL(fsync); SYNC('F', real(file)); }
int fdatasync(int file) { REAL(fdatasync); SYNC('F', real(file)); }
int syncfs(int file) { REAL(syncfs); SYNC('Y', real(file)); }
void sync(void) {
  REAL(sync);
  real();
  if (!folder[0]) return;
  lock();
  note('Y', 0, 0, "", "");
  unlock();
}
