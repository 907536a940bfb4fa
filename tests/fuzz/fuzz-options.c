/*
 * libFuzzer target: options as text, in a configuration file and after -o.
 *
 * The first byte chooses: even, the rest is a file for options_read_file(); odd, a list for
 * options_parse(). What is refused has a cause; what was accepted prints as text that is
 * accepted again and means the same.
 *
 *   tests/fuzz/fuzz-options -max_total_time=60 NEW_SEEDS tests/fuzz/seeds-options
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/options.h"
#include "base/sysio.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_texts(const struct options *o)
{
	struct options again;

	options_init(&again);
	for (size_t i = 0;; i++) {
		const char *name = NULL;
		char *text = options_text(o, i, &name);
		char *cause = NULL, *second;

		if (!text)
			break;
		/* An unset string shows as "", which -o takes for a mistake. */
		if (text[0]) {
			INVARIANT(options_set(&again, "-o", name, text, &cause) == 0);
			second = options_text(&again, i, &name);
			INVARIANT(second && strcmp(text, second) == 0);
			free(second);
		}
		free(cause);
		free(text);
	}
	options_clear(&again);
}

static errint_t read_as_file(struct options *o, const uint8_t *data, size_t size,
                             char **cause)
{
	int fd = memfd_create("options", MFD_CLOEXEC);
	errint_t err;

	INVARIANT(fd >= 0 && full_pwrite(fd, data, size, 0) == 0);
	err = options_read_file(o, fd_path(fd).s, cause);
	(void)close(fd);
	return err;
}

static errint_t read_as_list(struct options *o, const uint8_t *data, size_t size,
                             char **cause)
{
	char *list = xmalloc(size + 1);
	errint_t err;

	memcpy(list, data, size);
	list[size] = '\0';
	err = options_parse(o, list, cause);
	free(list);
	return err;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct options o;
	char *cause = NULL;
	errint_t err;

	if (!size)
		return 0;
	options_init(&o);
	err = data[0] & 1 ? read_as_list(&o, data + 1, size - 1, &cause)
	                  : read_as_file(&o, data + 1, size - 1, &cause);
	INVARIANT(!err || cause);
	for (const unsigned char *p = (unsigned char *)cause; p && *p; p++)
		INVARIANT(*p >= 0x20 && *p != 0x7f); /* it goes to a terminal */
	if (!err)
		check_texts(&o);
	free(cause);
	options_clear(&o);
	return 0;
}
