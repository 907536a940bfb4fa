/*
 * Faults: see fault.h.
 *
 * The armed fault is under fault_mutex; calls look at it only while the atomic `fault_armed`
 * says that there is one. The control file is looked at (one atomic load) by every call.
 * Files are touched with bare calls here: a fault must not use up itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"

#ifdef CELLAR_DEVELOPER

#define TRACE_MAX 65536

static const char *const call_names[] = {
#define X(name) #name,
    FAULT_CALLS(X)
#undef X
        "any",
    "db"};

static const struct {
	const char *name;
	int number;
} fault_errors[] = {
#define E(name)                                                                            \
	{                                                                                  \
#name, name                                                                \
	}
    E(EACCES),  E(EAGAIN),    E(EBUSY),   E(EDQUOT),       E(EEXIST), E(EFBIG),  E(EINTR),
    E(EINVAL),  E(EIO),       E(EISDIR),  E(ELOOP),        E(EMFILE), E(EMLINK), E(ENFILE),
    E(ENODATA), E(ENODEV),    E(ENOENT),  E(ENAMETOOLONG), E(ENOMEM), E(ENOSPC), E(ENOSYS),
    E(ENOTDIR), E(ENOTEMPTY), E(ENXIO),   E(EOPNOTSUPP),   E(EPERM),  E(ERANGE), E(EROFS),
    E(ESTALE),  E(ETIMEDOUT), E(EUCLEAN), E(EXDEV),
#undef E
};

struct fault {
	enum fault_call call;
	unsigned long nth;
	int err; /* -errno or FAULT_SHORT */
	bool always;
};

static atomic_bool fault_armed;
static struct fault_control *control; /* constant after fault_init(); may be NULL */
static _Atomic uint32_t control_seen;
static pthread_mutex_t fault_mutex = PTHREAD_MUTEX_INITIALIZER;
/* under fault_mutex */
static struct fault armed;
static unsigned long calls;
static bool fired;
static uint8_t trace[TRACE_MAX];

static bool can_be_short(enum fault_call call)
{
	return call == CALL_pread || call == CALL_pwrite || call == CALL_pwritev ||
	       call == CALL_db_write;
}

static bool matches(enum fault_call call)
{
	if (armed.err == FAULT_SHORT && !can_be_short(call))
		return false;
	if (armed.call == CALL_ANY)
		return call < CALL_DB_FIRST;
	if (armed.call == CALL_DB)
		return call >= CALL_DB_FIRST;
	return armed.call == call;
}

static void tell_control_locked(enum fault_call call, int err)
{
	if (!control)
		return;
	atomic_store(&control->calls, calls);
	if (err && atomic_fetch_add(&control->fired, 1) == 0)
		(void)snprintf(control->first, sizeof(control->first), "%s",
		               call_names[call]);
}

static int fault_slow(enum fault_call call)
{
	int err = 0;

	(void)pthread_mutex_lock(&fault_mutex);
	if (matches(call)) {
		if (calls < TRACE_MAX)
			trace[calls] = (uint8_t)call;
		calls++;
		if (calls == armed.nth || (armed.always && calls > armed.nth)) {
			fired = true;
			err = armed.err;
		}
		tell_control_locked(call, err);
	}
	(void)pthread_mutex_unlock(&fault_mutex);
	return err;
}

/* ---- specs ---- */

static bool parse_call(const char *s, struct fault *f)
{
	for (size_t i = 0; i < ARRAY_LEN(call_names); i++) {
		if (strcmp(s, call_names[i]) == 0) {
			f->call = (enum fault_call)i;
			return true;
		}
	}
	return false;
}

static bool parse_nth(const char *s, struct fault *f)
{
	char *end;

	if (*s < '1' || *s > '9')
		return false;
	errno = 0;
	f->nth = strtoul(s, &end, 10);
	return errno == 0 && *end == '\0';
}

static bool parse_error(const char *s, struct fault *f)
{
	if (strcmp(s, "short") == 0) {
		f->err = FAULT_SHORT;
		return f->call >= CALL_ANY || can_be_short(f->call);
	}
	for (size_t i = 0; i < ARRAY_LEN(fault_errors); i++) {
		if (strcmp(s, fault_errors[i].name) == 0) {
			f->err = -fault_errors[i].number;
			return true;
		}
	}
	return false;
}

static bool parse_fault(const char *spec, struct fault *ret)
{
	cleanup_free char *copy = xstrdup(spec);
	struct fault f = {.nth = 0};
	char *rest = copy;
	const char *call = strsep(&rest, ":"), *nth = strsep(&rest, ":");
	const char *err = strsep(&rest, ":"), *always = strsep(&rest, ":");

	if (!err || rest || !parse_call(call, &f) || !parse_nth(nth, &f) ||
	    !parse_error(err, &f))
		return false;
	if (always && strcmp(always, "always") != 0)
		return false;
	f.always = always != NULL;
	*ret = f;
	return true;
}

bool fault_set(const char *spec)
{
	struct fault f = {.nth = 0};
	bool arm = spec && *spec;

	if (arm && !parse_fault(spec, &f))
		return false;
	(void)pthread_mutex_lock(&fault_mutex);
	armed = f;
	calls = 0;
	fired = false;
	(void)pthread_mutex_unlock(&fault_mutex);
	atomic_store(&fault_armed, arm);
	return true;
}

/* ---- the control file ---- */

/* A test whose fault never fires would prove nothing. */
__attribute__((noreturn)) static void refuse(const char *name, const char *value,
                                             const char *why)
{
	log_err("%s=%s: %s", name, value, why);
	exit(2);
}

static void read_control(void)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	uint32_t asked;

	(void)pthread_mutex_lock(&mutex);
	asked = atomic_load(&control->asked);
	if (asked != atomic_load(&control_seen)) {
		char spec[sizeof(control->spec)];

		memcpy(spec, control->spec, sizeof(spec));
		spec[sizeof(spec) - 1] = '\0';
		(void)fault_set(NULL);
		atomic_store(&control->calls, 0);
		atomic_store(&control->fired, 0);
		control->first[0] = '\0';
		if (!fault_set(spec))
			refuse("CELLAR_TEST_FAULT_FILE", spec, "not understood");
		atomic_store(&control_seen, asked);
		atomic_store(&control->seen, asked);
	}
	(void)pthread_mutex_unlock(&mutex);
}

static void map_control(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd >= 0 && lseek(fd, 0, SEEK_END) == FAULT_CONTROL_LEN)
		p = mmap(NULL, FAULT_CONTROL_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		         0);
	if (p == MAP_FAILED)
		refuse("CELLAR_TEST_FAULT_FILE", path, "cannot be mapped");
	(void)close(fd);
	control = p;
	atomic_store(&control->mapped, 1);
}

/* ---- what the rest calls ---- */

int fault(enum fault_call call)
{
	if (control && atomic_load(&control->asked) !=
	                   atomic_load_explicit(&control_seen, memory_order_relaxed))
		read_control();
	if (!atomic_load_explicit(&fault_armed, memory_order_relaxed))
		return 0;
	return fault_slow(call);
}

bool fault_fired(void)
{
	bool f;

	(void)pthread_mutex_lock(&fault_mutex);
	f = fired;
	(void)pthread_mutex_unlock(&fault_mutex);
	return f;
}

unsigned long fault_calls(void)
{
	unsigned long n;

	(void)pthread_mutex_lock(&fault_mutex);
	n = calls;
	(void)pthread_mutex_unlock(&fault_mutex);
	return n;
}

const char *fault_call_name(unsigned long nth)
{
	const char *name = "";

	(void)pthread_mutex_lock(&fault_mutex);
	if (nth > 0 && nth <= MIN_OF(calls, (unsigned long)TRACE_MAX))
		name = call_names[trace[nth - 1]];
	(void)pthread_mutex_unlock(&fault_mutex);
	return name;
}

void fault_init(void)
{
	const char *env = getenv("CELLAR_TEST_FAULT");
	const char *file = getenv("CELLAR_TEST_FAULT_FILE");

	if (!fault_set(env))
		refuse("CELLAR_TEST_FAULT", env, "not understood");
	if (file && *file)
		map_control(file);
}

#else

bool fault_set(const char *spec)
{
	return !spec || !*spec;
}

bool fault_fired(void)
{
	return false;
}

unsigned long fault_calls(void)
{
	return 0;
}

const char *fault_call_name(unsigned long nth)
{
	(void)nth;
	return "";
}

void fault_init(void)
{
}

#endif
