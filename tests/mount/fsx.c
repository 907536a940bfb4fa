/*
 * Random operations on a few files, each answer compared with a model in memory.
 *
 *   fsx [-s SEED] [-n OPS] [-l MAX_SIZE] [-e EVERY] [-d] [-o LOG] DIR
 *   fsx -r LOG [-l MAX_SIZE] DIR       the operations of a log again, without any chance
 *
 * A log has one operation a line with all its arguments; whatever lines are taken out, the
 * rest is a valid run (each operation looks at the model, not at what came before), so a
 * failing log can be shrunk by leaving lines out (test_fsx.py).
 *
 * About every EVERY operations one is an event: "event NAME FILE" goes to standard output,
 * and the run waits for a line on standard input: "ok" (done, or not possible now) or
 * anything else (failed). What an event does is the business of whoever started this: it
 * must change nothing that the model knows. Before and after an event size, inode number,
 * mode, times and extended attribute of each file are compared, and after it its content.
 * Handles and mappings stay open over an event, but for `cold` and `remount` (closed before)
 * and `kill` (opened again after it). Without -e there are none, so that the program can be
 * run on any filesystem.
 *
 * Exit status: 0 fine, 1 a difference (said on standard error), 2 usage or setup.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define FILES      3
#define SLOTS      2
#define PAGE       4096U
#define XATTR_NAME "user.fsx"

enum kind {
	OP_OPEN,
	OP_CLOSE,
	OP_WRITE,
	OP_APPEND,
	OP_TRUNCATE,
	OP_READ,
	OP_MAP,
	OP_UNMAP,
	OP_MAP_READ,
	OP_MAP_WRITE,
	OP_MAP_PRIVATE,
	OP_ALLOCATE,
	OP_COPY,
	OP_SEEK,
	OP_SYNC,
	OP_LINK,
	OP_UNLINK,
	OP_REPLACE,
	OP_ORPHAN,
	OP_ATTR,
	OP_CHECK,
	OP_EVENT,
	OP_COUNT
};

static const char *const op_names[OP_COUNT] = {
    [OP_OPEN] = "open",
    [OP_CLOSE] = "close",
    [OP_WRITE] = "write",
    [OP_APPEND] = "append",
    [OP_TRUNCATE] = "truncate",
    [OP_READ] = "read",
    [OP_MAP] = "map",
    [OP_UNMAP] = "unmap",
    [OP_MAP_READ] = "mapread",
    [OP_MAP_WRITE] = "mapwrite",
    [OP_MAP_PRIVATE] = "mapprivate",
    [OP_ALLOCATE] = "allocate",
    [OP_COPY] = "copy",
    [OP_SEEK] = "seek",
    [OP_SYNC] = "sync",
    [OP_LINK] = "link",
    [OP_UNLINK] = "unlink",
    [OP_REPLACE] = "replace",
    [OP_ORPHAN] = "orphan",
    [OP_ATTR] = "attr",
    [OP_CHECK] = "check",
    [OP_EVENT] = "event",
};

/* How often each is chosen. */
static const unsigned op_weights[OP_COUNT] = {
    [OP_OPEN] = 6,     [OP_CLOSE] = 6,     [OP_WRITE] = 22,      [OP_APPEND] = 8,
    [OP_TRUNCATE] = 9, [OP_READ] = 20,     [OP_MAP] = 2,         [OP_UNMAP] = 2,
    [OP_MAP_READ] = 6, [OP_MAP_WRITE] = 7, [OP_MAP_PRIVATE] = 2, [OP_ALLOCATE] = 10,
    [OP_COPY] = 5,     [OP_SEEK] = 6,      [OP_SYNC] = 4,        [OP_LINK] = 1,
    [OP_UNLINK] = 1,   [OP_REPLACE] = 1,   [OP_ORPHAN] = 1,      [OP_ATTR] = 1,
    [OP_CHECK] = 1,
};

/* The names of events; more often what comes more often. */
static const char *const events[] = {"flush", "flush",  "flush", "evict",   "cold", "cold",
                                     "dirty", "verify", "cold",  "remount", "kill"};

/* What an operation means by its arguments is said where it is done. */
struct op {
	enum kind kind;
	unsigned f, slot;
	uint64_t a, b, c;
	uint64_t seed;
};

struct file {
	char id[8];                    /* "f0" */
	char *name, *link, *temporary; /* paths: a working directory would keep the mount */
	uint8_t *data;                 /* max_size bytes, 0 behind size */
	size_t size;
	bool exists, linked;
	uint64_t attr; /* value of the extended attribute; 0: none */
	int fd[SLOTS]; /* -1: closed */
	int flags[SLOTS];
	uint8_t *map; /* all max_size bytes, shared; NULL: none */
};

static size_t max_size = 768 << 10;
static unsigned every;
static uint64_t rng_state;
static struct file files[FILES];
static uint8_t *buffer, *buffer2; /* max_size bytes, page aligned */
static int log_fd = -1;
static uint64_t op_number;
static struct op current;

/* ---- ends ---- */

static int print_op(char *line, size_t size, const struct op *op)
{
	return snprintf(line, size, "%s %u %u %llu %llu %llu %llu\n", op_names[op->kind],
	                op->f, op->slot, (unsigned long long)op->a,
	                (unsigned long long)op->b, (unsigned long long)op->c,
	                (unsigned long long)op->seed);
}

__attribute__((format(printf, 1, 2), noreturn)) static void differs(const char *format, ...)
{
	char line[200];
	va_list ap;

	(void)print_op(line, sizeof(line), &current);
	fprintf(stderr, "operation %llu, %s  ", (unsigned long long)op_number, line);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(1);
}

__attribute__((format(printf, 1, 2), noreturn)) static void setup_failed(const char *format,
                                                                         ...)
{
	va_list ap;

	fprintf(stderr, "fsx: ");
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(2);
}

static void must(bool fine, const char *call)
{
	if (!fine)
		differs("%s: %s", call, strerror(errno));
}

/* Of an access to a mapping: the log has the operation. */
static void on_bus_error(int sig)
{
	static const char text[] =
	    "a bus error in a mapping: the last operation of the log\n";

	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(sig == SIGBUS ? 1 : 2);
}

/* ---- chance, and content ---- */

static uint64_t mix(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static uint64_t below(uint64_t n)
{
	return n ? mix(&rng_state) % n : 0;
}

/* Text that compresses, noise that does not, or one byte all along; never zeros. */
static void fill(uint8_t *to, size_t len, uint64_t seed)
{
	static const char *const words[] = {"open ",  "closed ", "retry\n", "accepted ",
	                                    "error ", "17 ",     "after ",  "block "};
	uint64_t state = seed;
	unsigned how = (unsigned)(seed % 8);

	for (size_t at = 0; at < len;) {
		uint64_t r = mix(&state);
		const char *word = words[r % 8];

		if (how == 0) {
			to[at++] = (uint8_t)(r | 1);
		} else if (how == 1) {
			to[at++] = (uint8_t)(seed >> 8 | 1);
		} else {
			for (; *word && at < len; word++)
				to[at++] = (uint8_t)*word;
		}
	}
}

/* ---- comparing ---- */

static void compare(const struct file *f, const uint8_t *got, size_t off, size_t len,
                    const char *how)
{
	size_t at = 0, wrong = 0;

	if (len == 0 || memcmp(got, f->data + off, len) == 0)
		return;
	while (got[at] == f->data[off + at])
		at++;
	for (size_t i = at; i < len; i++)
		wrong += got[i] != f->data[off + i];
	differs("%s: %s: byte %zu is %#x instead of %#x; of %zu bytes from %zu on %zu are "
	        "wrong",
	        f->name, how, off + at, got[at], f->data[off + at], len, off, wrong);
}

static int fd_of(struct file *f, unsigned slot, int flags)
{
	const char *name = f->linked && slot ? f->link : f->name;

	if (f->fd[slot] >= 0)
		return f->fd[slot];
	f->fd[slot] = open(name, O_RDWR | O_CREAT | O_CLOEXEC | flags, 0644);
	must(f->fd[slot] >= 0, "open");
	f->flags[slot] = flags;
	f->exists = true;
	return f->fd[slot];
}

static void check_stat(const struct file *f, int fd)
{
	struct stat st;

	must((fd >= 0 ? fstat(fd, &st) : lstat(f->name, &st)) == 0, "stat");
	if ((size_t)st.st_size != f->size)
		differs("%s: stat says %lld bytes instead of %zu", f->id,
		        (long long)st.st_size, f->size);
	if (st.st_nlink != (f->linked ? 2 : 1))
		differs("%s: %u links", f->id, (unsigned)st.st_nlink);
}

static void check_whole(struct file *f)
{
	ssize_t n;
	int fd;

	if (!f->exists) {
		struct stat st;

		if (lstat(f->name, &st) == 0 || errno != ENOENT)
			differs("%s exists", f->id);
		return;
	}
	check_stat(f, -1);
	fd = open(f->name, O_RDONLY | O_CLOEXEC);
	must(fd >= 0, "open to check");
	for (size_t at = 0; at < max_size; at += (size_t)n) {
		n = pread(fd, buffer + at, max_size - at, (off_t)at);
		must(n >= 0, "read to check");
		if (n == 0) {
			if (at != f->size)
				differs("%s: ends after %zu bytes instead of %zu", f->id,
				        at, f->size);
			break;
		}
	}
	compare(f, buffer, 0, f->size, "checking");
	check_stat(f, fd);
	(void)close(fd);
}

/* ---- operations ---- */

/* O_DIRECT wants whole blocks, also where the store's own filesystem is asked. */
static void align(struct file *f, unsigned slot, uint64_t *off, uint64_t *len)
{
	if (!(f->flags[slot] & O_DIRECT))
		return;
	*off &= ~(uint64_t)(PAGE - 1);
	*len = (*len + PAGE - 1) & ~(uint64_t)(PAGE - 1);
	if (*off + *len > max_size)
		*len = max_size - *off;
}

static void grow(struct file *f, uint64_t end)
{
	if (end > f->size)
		f->size = end;
}

/* a flags */
static void do_open(struct file *f, const struct op *op)
{
	if (f->fd[op->slot] < 0)
		(void)fd_of(f, op->slot, (int)op->a);
	if (f->flags[op->slot] & O_TRUNC) {
		memset(f->data, 0, f->size);
		f->size = 0;
		f->flags[op->slot] &= ~O_TRUNC;
	}
}

static void do_close(struct file *f, unsigned slot)
{
	if (f->fd[slot] >= 0)
		must(close(f->fd[slot]) == 0, "close");
	f->fd[slot] = -1;
}

/* a offset, b length */
static void do_write(struct file *f, const struct op *op)
{
	int fd = fd_of(f, op->slot, 0);
	uint64_t off = op->a, len = op->b;

	align(f, op->slot, &off, &len);
	if (f->flags[op->slot] & O_APPEND)
		off = f->size;
	if (off + len > max_size)
		return;
	fill(buffer, len, op->seed);
	for (uint64_t at = 0; at < len;) {
		ssize_t n = pwrite(fd, buffer + at, len - at, (off_t)(off + at));

		must(n > 0, "write");
		at += (uint64_t)n;
	}
	if (len == 0)
		return;
	memcpy(f->data + off, buffer, len);
	grow(f, off + len);
	check_stat(f, fd);
}

/* b length */
static void do_append(struct file *f, const struct op *op)
{
	int fd = open(f->name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);

	must(fd >= 0, "open to append");
	f->exists = true;
	if (op->b && f->size + op->b <= max_size) {
		fill(buffer, op->b, op->seed);
		must(write(fd, buffer, op->b) == (ssize_t)op->b, "append");
		memcpy(f->data + f->size, buffer, op->b);
		f->size += op->b;
	}
	check_stat(f, fd);
	must(close(fd) == 0, "close");
}

/* a size; slot 0 by descriptor, slot 1 by name */
static void do_truncate(struct file *f, const struct op *op)
{
	int fd = op->slot && f->exists ? -1 : fd_of(f, 0, 0);

	if (fd < 0)
		must(truncate(f->name, (off_t)op->a) == 0, "truncate");
	else
		must(ftruncate(fd, (off_t)op->a) == 0, "ftruncate");
	if (op->a < f->size)
		memset(f->data + op->a, 0, f->size - op->a);
	f->size = op->a;
	check_stat(f, fd);
}

/* a offset, b length */
static void do_read(struct file *f, const struct op *op)
{
	int fd = fd_of(f, op->slot, 0);
	uint64_t off = op->a, len = op->b, want;
	ssize_t n;

	align(f, op->slot, &off, &len);
	want = off >= f->size ? 0 : len < f->size - off ? len : f->size - off;
	n = pread(fd, buffer, len, (off_t)off);
	must(n >= 0, "read");
	if ((uint64_t)n != want)
		differs("%s: read %zd bytes instead of %llu", f->id, n,
		        (unsigned long long)want);
	compare(f, buffer, off, want,
	        f->flags[op->slot] & O_DIRECT ? "direct read" : "read");
}

static void do_unmap(struct file *f)
{
	if (f->map)
		must(munmap(f->map, max_size) == 0, "munmap");
	f->map = NULL;
}

static void do_map(struct file *f)
{
	if (f->map)
		return;
	f->map =
	    mmap(NULL, max_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_of(f, 0, 0), 0);
	if (f->map == MAP_FAILED) {
		f->map = NULL;
		differs("mmap: %s", strerror(errno));
	}
}

/* [*off, *off + *len) within the file; false where nothing is left. */
static bool clamp(const struct file *f, uint64_t *off, uint64_t *len)
{
	if (*off >= f->size || *len == 0)
		return false;
	if (*len > f->size - *off)
		*len = f->size - *off;
	return true;
}

/* a offset, b length: through the mapping that is kept, or one for the moment */
static void do_mapped(struct file *f, const struct op *op)
{
	uint64_t off = op->a, len = op->b;
	const bool kept = f->map;

	if (!f->exists || !clamp(f, &off, &len))
		return;
	do_map(f);
	if (op->kind == OP_MAP_READ) {
		/* also what is behind the end on its page: zeros */
		uint64_t page_end = (f->size + PAGE - 1) & ~(uint64_t)(PAGE - 1);

		if (off + len == f->size && page_end <= max_size)
			len = page_end - off;
		memcpy(buffer, f->map + off, len);
		compare(f, buffer, off, len, "mapped read");
	} else {
		fill(f->data + off, len, op->seed);
		memcpy(f->map + off, f->data + off, len);
		if (op->c)
			must(msync(f->map, max_size, op->c == 1 ? MS_SYNC : MS_ASYNC) == 0,
			     "msync");
	}
	if (!kept)
		do_unmap(f);
}

/* a offset, b length: what is stored through a private mapping stays private */
static void do_map_private(struct file *f, const struct op *op)
{
	uint64_t off = op->a, len = op->b;
	uint8_t *map;
	int fd;

	if (!f->exists || !clamp(f, &off, &len))
		return;
	fd = open(f->name, O_RDONLY | O_CLOEXEC);
	must(fd >= 0, "open to map");
	map = mmap(NULL, f->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	must(map != MAP_FAILED, "private mmap");
	(void)close(fd);
	memcpy(buffer, map + off, len);
	compare(f, buffer, off, len, "private mapping");
	fill(map + off, len, op->seed);
	must(munmap(map, f->size) == 0, "munmap");
}

/* Where a filesystem knows them. */
static void shift(struct file *f, const struct op *op)
{
	if (op->c & FALLOC_FL_COLLAPSE_RANGE) {
		memmove(f->data + op->a, f->data + op->a + op->b, f->size - op->a - op->b);
		f->size -= op->b;
		memset(f->data + f->size, 0, op->b);
	} else {
		memmove(f->data + op->a + op->b, f->data + op->a, f->size - op->a);
		memset(f->data + op->a, 0, op->b);
		f->size += op->b;
	}
}

/* a offset, b length, c mode */
static void do_allocate(struct file *f, const struct op *op)
{
	int fd = fd_of(f, 0, 0);
	uint64_t end = op->a + op->b;
	int mode = (int)op->c, r;

	if (op->b == 0 || end > max_size ||
	    (mode & FALLOC_FL_INSERT_RANGE && f->size + op->b > max_size))
		return;
	r = fallocate(fd, mode, (off_t)op->a, (off_t)op->b);
	if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) {
		if (r == 0)
			shift(f, op);
		else if (errno != EOPNOTSUPP && errno != EINVAL)
			differs("fallocate: %s", strerror(errno));
		check_stat(f, fd);
		return;
	}
	must(r == 0, "fallocate");
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) && op->a < f->size)
		memset(f->data + op->a, 0,
		       op->b < f->size - op->a ? op->b : f->size - op->a);
	if (!(mode & FALLOC_FL_KEEP_SIZE))
		grow(f, end);
	check_stat(f, fd);
}

/* a offset here, b length, c offset there; there: file number seed % FILES */
static void do_copy(struct file *f, const struct op *op)
{
	struct file *g = &files[op->seed % FILES];
	loff_t from = (loff_t)op->a, to = (loff_t)op->c;
	uint64_t left = op->b;
	int in = fd_of(f, 0, 0), out = fd_of(g, 0, 0);

	if (g == f && (op->a < op->c + op->b && op->c < op->a + op->b))
		return; /* overlapping: EINVAL */
	if ((f->flags[0] | g->flags[0]) & (O_APPEND | O_DIRECT) || op->c + op->b > max_size)
		return;
	while (left > 0) {
		uint64_t off = (uint64_t)from, at = (uint64_t)to;
		ssize_t n = copy_file_range(in, &from, out, &to, left, 0);

		must(n >= 0, "copy_file_range");
		if (n == 0) {
			if (off < f->size)
				differs("copy_file_range ends at %llu of %zu",
				        (unsigned long long)off, f->size);
			break;
		}
		if (off + (uint64_t)n > f->size)
			differs("copy_file_range went past the end of %s", f->id);
		memmove(g->data + at, f->data + off, (size_t)n);
		grow(g, at + (uint64_t)n);
		left -= (uint64_t)n;
	}
	check_stat(g, out);
}

static bool is_zero(const struct file *f, uint64_t from, uint64_t to)
{
	for (; from < to; from++) {
		if (f->data[from])
			return false;
	}
	return true;
}

/* a offset, b 0 SEEK_DATA, 1 SEEK_HOLE */
static void do_seek(struct file *f, const struct op *op)
{
	int fd = fd_of(f, op->slot, 0);
	off_t r = lseek(fd, (off_t)op->a, op->b ? SEEK_HOLE : SEEK_DATA);

	if (op->a >= f->size) {
		if (r >= 0 || errno != ENXIO)
			differs("%s: a seek behind the end answers %lld (%s)", f->id,
			        (long long)r, strerror(errno));
		return;
	}
	if (r < 0) {
		if (errno != ENXIO || op->b || !is_zero(f, op->a, f->size))
			differs("%s: seek: %s", f->id, strerror(errno));
		return;
	}
	if ((uint64_t)r < op->a || (uint64_t)r > f->size)
		differs("%s: a seek answers %lld", f->id, (long long)r);
	if (!op->b && !is_zero(f, op->a, (uint64_t)r))
		differs("%s: SEEK_DATA passes over data before %lld", f->id, (long long)r);
	if (op->b && (uint64_t)r < f->size && f->data[r])
		differs("%s: SEEK_HOLE calls data at %lld a hole", f->id, (long long)r);
}

/* a 0 fsync, 1 fdatasync, 2 msync */
static void do_sync(struct file *f, const struct op *op)
{
	int fd = fd_of(f, op->slot, 0);

	if (op->a == 2) {
		if (f->map)
			must(msync(f->map, max_size, MS_SYNC) == 0, "msync");
		return;
	}
	must((op->a ? fdatasync(fd) : fsync(fd)) == 0, "fsync");
}

static void do_link(struct file *f)
{
	if (!f->exists || f->linked)
		return;
	must(link(f->name, f->link) == 0, "link");
	f->linked = true;
	check_stat(f, -1);
}

static void forget_content(struct file *f)
{
	memset(f->data, 0, f->size);
	f->size = 0;
	f->attr = 0;
}

/* a 0: the link goes, 1: the name goes and the link takes its place */
static void do_unlink(struct file *f, const struct op *op)
{
	if (f->linked) {
		must(unlink(op->a ? f->name : f->link) == 0, "unlink");
		f->linked = false;
		if (op->a)
			must(rename(f->link, f->name) == 0, "rename");
		check_stat(f, -1);
		return;
	}
	if (!f->exists)
		return;
	do_unmap(f);
	for (unsigned slot = 0; slot < SLOTS; slot++)
		do_close(f, slot);
	must(unlink(f->name) == 0, "unlink");
	f->exists = false;
	forget_content(f);
}

/* Unlinked with a handle that goes on being used, then closed. a offset, b length */
static void do_orphan(struct file *f, const struct op *op)
{
	struct stat st;
	int fd;

	if (f->linked || op->a + op->b > max_size)
		return;
	fd = fd_of(f, 0, 0);
	must(unlink(f->name) == 0, "unlink");
	if (!(f->flags[0] & (O_APPEND | O_DIRECT))) {
		fill(buffer, op->b, op->seed);
		must(pwrite(fd, buffer, op->b, (off_t)op->a) == (ssize_t)op->b, "write");
		memcpy(f->data + op->a, buffer, op->b);
		if (op->b)
			grow(f, op->a + op->b);
		must(pread(fd, buffer, max_size, 0) == (ssize_t)f->size, "read");
		compare(f, buffer, 0, f->size, "unlinked");
	}
	must(fstat(fd, &st) == 0, "fstat");
	if (st.st_nlink != 0 || (size_t)st.st_size != f->size)
		differs("%s: unlinked, with %u links and %lld of %zu bytes", f->id,
		        (unsigned)st.st_nlink, (long long)st.st_size, f->size);
	do_unmap(f);
	for (unsigned slot = 0; slot < SLOTS; slot++)
		do_close(f, slot);
	f->exists = false;
	forget_content(f);
}

/* As editors do. b length, c whether it is synced first */
static void do_replace(struct file *f, const struct op *op)
{
	int fd = open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	must(fd >= 0, "open");
	fill(buffer, op->b, op->seed);
	must(write(fd, buffer, op->b) == (ssize_t)op->b, "write");
	if (op->c)
		must(fsync(fd) == 0, "fsync");
	must(close(fd) == 0, "close");
	if (f->linked)
		must(unlink(f->link) == 0, "unlink");
	f->linked = false;
	must(rename(f->temporary, f->name) == 0, "rename");
	do_unmap(f);
	if (f->exists && f->fd[0] >= 0 && !(f->flags[0] & O_DIRECT)) {
		/* the old one is still there for who has it open */
		must(pread(f->fd[0], buffer2, max_size, 0) == (ssize_t)f->size, "read");
		compare(f, buffer2, 0, f->size, "renamed over");
	}
	for (unsigned slot = 0; slot < SLOTS; slot++)
		do_close(f, slot);
	forget_content(f);
	memcpy(f->data, buffer, op->b);
	f->size = op->b;
	f->exists = true;
	check_stat(f, -1);
}

/* a what: 0 xattr, 1 mtime */
static void do_attr(struct file *f, const struct op *op)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT},
	                         {.tv_sec = (time_t)(op->seed % 2000000000),
	                          .tv_nsec = (long)(op->seed % 999999999)}};
	struct stat st;

	if (!f->exists)
		return;
	if (op->a == 0) {
		must(setxattr(f->name, XATTR_NAME, &op->seed, sizeof(op->seed), 0) == 0,
		     "setxattr");
		f->attr = op->seed;
		return;
	}
	if (f->map) /* what was stored through it moves the time when it pleases */
		return;
	must(utimensat(AT_FDCWD, f->name, ts, 0) == 0 && stat(f->name, &st) == 0,
	     "utimensat");
	if (st.st_mtim.tv_sec != ts[1].tv_sec || st.st_mtim.tv_nsec != ts[1].tv_nsec)
		differs("%s: another mtime than was set", f->id);
}

/* ---- events ---- */

struct look {
	struct stat st;
	uint64_t attr;
};

static void look(const struct file *f, struct look *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (!f->exists)
		return;
	must(lstat(f->name, &ret->st) == 0, "lstat");
	if (getxattr(f->name, XATTR_NAME, &ret->attr, sizeof(ret->attr)) < 0 &&
	    errno != ENODATA)
		must(false, "getxattr");
	if (ret->attr != f->attr)
		differs("%s: another extended attribute than was set", f->id);
	if (f->size && ret->st.st_blocks == 0)
		differs("%s: holds %zu bytes in no block", f->id, f->size);
}

static void same(const struct file *f, const char *what, long long was, long long is)
{
	if (was != is)
		differs("%s: its %s was %lld and is %lld", f->id, what, was, is);
}

/* ctime: not after kill -9, which may lose the catalog's last rows; an object that does not
 * carry its logical ctime shows its own then. */
static void same_look(const struct file *f, const struct look *was, bool ctime)
{
	struct look is;

	look(f, &is);
	same(f, "inode number", (long long)was->st.st_ino, (long long)is.st.st_ino);
	same(f, "size", was->st.st_size, is.st.st_size);
	same(f, "mode", was->st.st_mode, is.st.st_mode);
	same(f, "mtime", was->st.st_mtim.tv_sec, is.st.st_mtim.tv_sec);
	same(f, "mtime's fraction", was->st.st_mtim.tv_nsec, is.st.st_mtim.tv_nsec);
	if (!ctime)
		return;
	same(f, "ctime", was->st.st_ctim.tv_sec, is.st.st_ctim.tv_sec);
	same(f, "ctime's fraction", was->st.st_ctim.tv_nsec, is.st.st_ctim.tv_nsec);
}

static void ask(const char *event, const struct file *f)
{
	char line[200];

	printf("event %s %s\n", event, f->id);
	(void)fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(2); /* whoever started this is gone */
	if (strcmp(line, "ok\n") != 0)
		differs("%s: %s", event, line);
}

/* a the event */
static void do_event(struct file *f, const struct op *op)
{
	const char *event = events[op->a % (sizeof(events) / sizeof(*events))];
	bool closes = strcmp(event, "cold") == 0 || strcmp(event, "remount") == 0;
	bool kills = strcmp(event, "kill") == 0, dirty = strcmp(event, "dirty") == 0;
	bool was_open[FILES][SLOTS] = {{false}};
	struct look was[FILES];

	for (unsigned i = 0; i < FILES; i++) {
		struct file *g = &files[i];

		/* A flush while stores through a mapping are not written back: `dirty`. */
		if (g->map && !dirty)
			must(msync(g->map, max_size, MS_SYNC) == 0, "msync");
		if (kills || closes)
			do_unmap(g);
		for (unsigned slot = 0; slot < SLOTS; slot++) {
			was_open[i][slot] = g->fd[slot] >= 0;
			if (closes)
				do_close(g, slot);
		}
		if (!dirty)
			look(g, &was[i]);
	}
	ask(event, f);
	for (unsigned i = 0; i < FILES; i++) {
		struct file *g = &files[i];

		for (unsigned slot = 0; kills && slot < SLOTS; slot++) {
			if (g->fd[slot] >= 0)
				(void)close(g->fd[slot]); /* ENOTCONN */
			g->fd[slot] = -1;
		}
		if (!dirty && (g != f || !closes))
			same_look(g, &was[i], !kills);
		check_whole(g);
		if (!dirty)
			same_look(g, &was[i], !kills);
		for (unsigned slot = 0; kills && slot < SLOTS; slot++) {
			if (was_open[i][slot])
				(void)fd_of(g, slot, g->flags[slot]);
		}
	}
}

/* ---- runs ---- */

static void do_op(const struct op *op)
{
	struct file *f = &files[op->f];
	char line[200];

	current = *op;
	op_number++;
	if (log_fd >= 0) {
		int n = print_op(line, sizeof(line), op);

		if (write(log_fd, line, (size_t)n) != n)
			setup_failed("cannot write the log: %s", strerror(errno));
	}
	switch (op->kind) {
	case OP_OPEN:
		do_open(f, op);
		break;
	case OP_CLOSE:
		do_close(f, op->slot);
		break;
	case OP_WRITE:
		do_write(f, op);
		break;
	case OP_APPEND:
		do_append(f, op);
		break;
	case OP_TRUNCATE:
		do_truncate(f, op);
		break;
	case OP_READ:
		do_read(f, op);
		break;
	case OP_MAP:
		do_map(f);
		break;
	case OP_UNMAP:
		do_unmap(f);
		break;
	case OP_MAP_READ:
	case OP_MAP_WRITE:
		do_mapped(f, op);
		break;
	case OP_MAP_PRIVATE:
		do_map_private(f, op);
		break;
	case OP_ALLOCATE:
		do_allocate(f, op);
		break;
	case OP_COPY:
		do_copy(f, op);
		break;
	case OP_SEEK:
		do_seek(f, op);
		break;
	case OP_SYNC:
		do_sync(f, op);
		break;
	case OP_LINK:
		do_link(f);
		break;
	case OP_UNLINK:
		do_unlink(f, op);
		break;
	case OP_REPLACE:
		do_replace(f, op);
		break;
	case OP_ORPHAN:
		do_orphan(f, op);
		break;
	case OP_ATTR:
		do_attr(f, op);
		break;
	case OP_CHECK:
		check_whole(f);
		break;
	case OP_EVENT:
		do_event(f, op);
		break;
	case OP_COUNT:
		break;
	}
}

/* Offsets are often near the end, a frame's or a page's border. */
static uint64_t some_offset(const struct file *f)
{
	static const uint64_t borders[] = {PAGE, 64 << 10, 128 << 10, 512};
	uint64_t border = borders[below(4)], off;

	switch (below(6)) {
	case 0:
		return f->size;
	case 1:
		off = f->size > 40 ? f->size - below(40) : 0;
		break;
	case 2:
	case 3:
		off = below(max_size / border) * border;
		if (below(2))
			off = off + below(3) - (off ? 1 : 0);
		break;
	case 4:
		off = below(f->size + 1);
		break;
	default:
		off = below(max_size);
	}
	return off < max_size ? off : max_size - 1;
}

static uint64_t some_length(uint64_t off)
{
	static const uint64_t most[] = {10, 600, PAGE, 2 * PAGE, 70 << 10, 200 << 10};
	uint64_t len = below(3) ? below(most[below(6)]) + 1 : PAGE << below(5);

	return len < max_size - off ? len : max_size - off;
}

static int some_flags(void)
{
	static const int flags[] = {0, 0, 0, O_DIRECT, O_SYNC, O_DSYNC, O_APPEND, O_TRUNC};

	return flags[below(8)];
}

static int some_mode(void)
{
	static const int modes[] = {0,
	                            FALLOC_FL_KEEP_SIZE,
	                            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	                            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	                            FALLOC_FL_ZERO_RANGE,
	                            FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
	                            FALLOC_FL_COLLAPSE_RANGE,
	                            FALLOC_FL_INSERT_RANGE};

	return modes[below(8)];
}

static void choose(struct op *op)
{
	unsigned total = 0, dice;
	struct file *f;

	memset(op, 0, sizeof(*op));
	op->f = (unsigned)below(FILES);
	op->slot = (unsigned)below(SLOTS);
	op->seed = mix(&rng_state);
	if (every && below(every) == 0) {
		op->kind = OP_EVENT;
		op->a = below(sizeof(events) / sizeof(*events));
		return;
	}
	for (unsigned i = 0; i < OP_COUNT; i++)
		total += op_weights[i];
	dice = (unsigned)below(total);
	for (op->kind = 0; dice >= op_weights[op->kind]; op->kind++)
		dice -= op_weights[op->kind];
	f = &files[op->f];
	op->a = some_offset(f);
	op->b = some_length(op->a);
	if (op->kind == OP_OPEN)
		op->a = (uint64_t)some_flags();
	else if (op->kind == OP_ALLOCATE)
		op->c = (uint64_t)some_mode();
	else if (op->kind == OP_MAP_WRITE)
		op->c = below(4);
	else if (op->kind == OP_COPY)
		op->c = some_offset(&files[op->seed % FILES]);
	else if (op->kind == OP_SEEK || op->kind == OP_UNLINK || op->kind == OP_ATTR)
		op->b = op->b & 1;
	if (op->kind == OP_UNLINK || op->kind == OP_ATTR)
		op->a = op->b;
	else if (op->kind == OP_SYNC)
		op->a = below(3);
	else if (op->kind == OP_REPLACE)
		op->c = below(2);
}

static bool parse(const char *line, struct op *op)
{
	unsigned long long a, b, c, seed;
	char name[20];

	memset(op, 0, sizeof(*op));
	if (sscanf(line, "%19s %u %u %llu %llu %llu %llu", name, &op->f, &op->slot, &a, &b,
	           &c, &seed) != 7 ||
	    op->f >= FILES || op->slot >= SLOTS)
		return false;
	op->a = a;
	op->b = b;
	op->c = c;
	op->seed = seed;
	while (op->kind < OP_COUNT && strcmp(name, op_names[op->kind]) != 0)
		op->kind++;
	return op->kind < OP_COUNT;
}

static void replay(const char *path)
{
	FILE *f = fopen(path, "re");
	char line[200];
	struct op op;

	if (!f)
		setup_failed("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		if (!parse(line, &op))
			setup_failed("%s: not an operation: %s", path, line);
		do_op(&op);
	}
	(void)fclose(f);
}

static char *path_in(const char *dir, const char *id, const char *suffix)
{
	char *path;

	if (asprintf(&path, "%s/%s%s", dir, id, suffix) < 0)
		setup_failed("no memory");
	return path;
}

static void set_up(const char *dir)
{
	struct sigaction act = {.sa_handler = on_bus_error};

	max_size &= ~(size_t)(PAGE - 1);
	buffer = aligned_alloc(PAGE, max_size);
	buffer2 = aligned_alloc(PAGE, max_size);
	if (!buffer || !buffer2)
		setup_failed("no memory");
	for (unsigned i = 0; i < FILES; i++) {
		struct file *f = &files[i];

		(void)snprintf(f->id, sizeof(f->id), "f%u", i);
		f->name = path_in(dir, f->id, "");
		f->link = path_in(dir, f->id, ".link");
		f->temporary = path_in(dir, f->id, ".new");
		f->data = calloc(1, max_size);
		if (!f->data)
			setup_failed("no memory");
		for (unsigned slot = 0; slot < SLOTS; slot++)
			f->fd[slot] = -1;
	}
	(void)sigaction(SIGBUS, &act, NULL);
}

static void finish(void)
{
	for (unsigned i = 0; i < FILES; i++) {
		do_unmap(&files[i]);
		for (unsigned slot = 0; slot < SLOTS; slot++)
			do_close(&files[i], slot);
		check_whole(&files[i]);
	}
}

int main(int argc, char **argv)
{
	const char *log = NULL, *from = NULL;
	uint64_t count = 1000;
	struct op op;
	int c;

	while ((c = getopt(argc, argv, "s:n:l:e:o:r:")) != -1) {
		if (c == 's')
			rng_state = strtoull(optarg, NULL, 0);
		else if (c == 'n')
			count = strtoull(optarg, NULL, 0);
		else if (c == 'l')
			max_size = strtoull(optarg, NULL, 0);
		else if (c == 'e')
			every = (unsigned)strtoul(optarg, NULL, 0);
		else if (c == 'o')
			log = optarg;
		else if (c == 'r')
			from = optarg;
		else
			return 2;
	}
	if (optind != argc - 1 || max_size < (256 << 10))
		setup_failed(
		    "usage: fsx [-s SEED] [-n OPS] [-l MAX_SIZE] [-e EVERY] [-o LOG] "
		    "[-r LOG] DIR");
	if (log) {
		log_fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		if (log_fd < 0)
			setup_failed("%s: %s", log, strerror(errno));
	}
	set_up(argv[optind]);
	if (from) {
		replay(from);
	} else {
		while (op_number < count) {
			choose(&op);
			do_op(&op);
		}
	}
	finish();
	printf("done %llu\n", (unsigned long long)op_number);
	return 0;
}
