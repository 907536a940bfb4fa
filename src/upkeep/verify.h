/* Proving that objects decode: `cellarctl verify`, online and offline. */
#ifndef CELLAR_UPKEEP_VERIFY_H
#define CELLAR_UPKEEP_VERIFY_H

#include "codec/object.h"
#include "store/store.h"

struct verify_totals {
	uint64_t files, damaged, logical_bytes, stored_bytes, plain;
};
/* error NULL: fine. path is the store path, relative. ranges: what cannot be read, at most
 * VERIFY_RANGES_MAX of them, neighbours joined; none where nothing or (error says so) all is
 * lost. */
#define VERIFY_RANGES_MAX 64
struct verify_result {
	const char *error;
	const struct object_range *ranges;
	size_t count;
};
typedef void (*verify_report_fn)(void *ctx, const char *store_path,
                                 const struct verify_result *result);

/* Whether an empty object is one that was made and not flushed yet, with its bytes in a
 * scratch. (One that is still marked as new needs none: store/attrs.h.) */
typedef bool (*verify_unflushed_fn)(void *ctx, const char *store_path);

/* Decodes and checks every object at or below store_path ("" = all), in order; looks only,
 * takes no lock, changes nothing (no atime where that can be avoided). A file that changes
 * under the reading (replaced by a flush) is looked at once more. Entries that vanish are
 * passed over. unflushed (NULL: no empty object is fine) and report (may be NULL) get ctx.
 * 0 when the walk was complete, whatever was found; stops with -EINTR when
 * *stop becomes true (may be NULL). */
errint_t verify_tree(struct store *s, const char *store_path, uint64_t max_object,
                     verify_unflushed_fn unflushed, verify_report_fn report, void *ctx,
                     const volatile bool *stop, struct verify_totals *totals, char **cause);

#endif
