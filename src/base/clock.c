/*
 * Time and boot identity.
 *
 * clock_now() is the coarse clock on purpose: filesystems stamp with it, and a time taken
 * from the fine one could lie after the stamp of a change that happened later. The boot id
 * is read once; any thread may be the first to ask.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/log.h"

static struct uuid boot_id;
static pthread_once_t boot_id_once = PTHREAD_ONCE_INIT;

static struct timespec now_of(clockid_t id)
{
	struct timespec ts;

	INVARIANT(clock_gettime(id, &ts) == 0);
	return ts;
}

uint64_t clock_mono_ms(void)
{
	struct timespec ts = now_of(CLOCK_MONOTONIC);

	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

struct timespec clock_now(void)
{
	return now_of(CLOCK_REALTIME_COARSE);
}

void clock_sleep_ms(uint64_t ms)
{
	struct timespec ts = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

int timespec_cmp(const struct timespec *a, const struct timespec *b)
{
	if (a->tv_sec != b->tv_sec)
		return a->tv_sec < b->tv_sec ? -1 : 1;
	if (a->tv_nsec != b->tv_nsec)
		return a->tv_nsec < b->tv_nsec ? -1 : 1;
	return 0;
}

/* Text that is no UUID stands for one all the same: only equality matters. */
static struct uuid uuid_from_any_text(const char *text)
{
	struct uuid u;
	XXH128_canonical_t hash;

	if (uuid_parse(text, &u))
		return u;
	XXH128_canonicalFromHash(&hash, XXH3_128bits(text, strlen(text)));
	memcpy(u.b, hash.digest, sizeof(u.b));
	return u;
}

static bool read_kernel_boot_id(struct uuid *ret)
{
	cleanup_fd int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	char text[64];
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return uuid_parse(text, ret);
}

static void boot_id_init(void)
{
	const char *env = getenv("CELLAR_BOOT_ID");

	if (env && *env) {
		boot_id = uuid_from_any_text(env);
		return;
	}
	if (read_kernel_boot_id(&boot_id))
		return;
	/* Unknown counts as a reboot: what was not synced is not believed. */
	log_warn("/proc/sys/kernel/random/boot_id cannot be read: treating this start as "
	         "one after a reboot");
	boot_id = uuid_random();
}

struct uuid clock_boot_id(void)
{
	INVARIANT(pthread_once(&boot_id_once, boot_id_init) == 0);
	return boot_id;
}
