/*
 * main() of the fuzz targets where libFuzzer does not bring its own: the seeds, once each.
 *
 *   tests/fuzz/fuzz-record [FILE|DIRECTORY…]      default: $CELLAR_SOURCE/tests/fuzz/seeds-record
 *
 * Exit status 1 where a file cannot be read or there is none.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv)
    __attribute__((weak)); /* not all have one */

static unsigned replayed, failed;

static void replay_file(const char *path)
{
	FILE *f = fopen(path, "re");
	uint8_t *data = NULL;
	struct stat st;
	size_t got;

	if (f && fstat(fileno(f), &st) == 0) {
		/* Exactly as long as the input: what reads past it is seen. */
		data = malloc((size_t)st.st_size + !st.st_size);
		got = data ? fread(data, 1, (size_t)st.st_size, f) : 0;
		if (data && got == (size_t)st.st_size) {
			(void)LLVMFuzzerTestOneInput(data, got);
			replayed++;
			free(data);
			(void)fclose(f);
			return;
		}
	}
	perror(path);
	failed++;
	free(data);
	if (f)
		(void)fclose(f);
}

static void replay(const char *path)
{
	DIR *d = opendir(path);
	const struct dirent *e;

	if (!d) {
		replay_file(path);
		return;
	}
	while ((e = readdir(d)) != NULL) {
		cleanup_free char *file = xasprintf("%s/%s", path, e->d_name);

		if (e->d_name[0] != '.')
			replay_file(file);
	}
	(void)closedir(d);
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/'), *source = getenv("CELLAR_SOURCE");

	if (LLVMFuzzerInitialize)
		(void)LLVMFuzzerInitialize(&argc, &argv);
	name = name ? name + 1 : argv[0];
	if (strncmp(name, "fuzz-", 5) == 0)
		name += 5;
	for (int i = 1; i < argc; i++)
		replay(argv[i]);
	if (argc == 1) {
		cleanup_free char *seeds =
		    xasprintf("%s/tests/fuzz/seeds-%s", source ? source : ".", name);

		replay(seeds);
	}
	(void)printf("%u inputs\n", replayed);
	return replayed == 0 || failed > 0;
}
