/*
 * From a logical name to what lies in the store directory, and back for listings: the one
 * place that knows the order in which the forms of a name are tried (design, section 3).
 *
 * Forms of an entry:
 *   ENTRY_OBJECT  regular, NAME.zst, and its bytes are an object (or 0 bytes: broken or
 * new) ENTRY_PLAIN   regular, shown under its store name: no .zst, or undecodable (raw)
 *   ENTRY_OTHER   directory, symlink, fifo, socket, device (store name by the ~ rule or as
 * it is)
 *
 * Order of a look-up of L: (1) non-regular under its encoded form; (2) non-regular under
 * its plain form, where that decodes to L ("x.zst", not "x.zst~"); (3) object L.zst; (4) plain file L, or raw L where L itself ends in .zst.
 * In (3) an object is passed over if its bytes are not zstd; it is then reachable as raw
 * "L.zst" in (4). In (4) raw "X.zst" is shown only if it cannot be decoded: X empty, "." or
 * "..", X taken by a non-regular entry, or the bytes are not zstd.
 */
#ifndef CELLAR_STORE_ENTRY_H
#define CELLAR_STORE_ENTRY_H

#include "store/ident.h"
#include "store/names.h"

enum entry_form { ENTRY_OBJECT, ENTRY_PLAIN, ENTRY_OTHER };

struct entry {
	struct name store_name;
	enum entry_form form;
	struct stat st;
	struct ident ident;
	bool hides; /* an object: a regular file lies under the logical name itself, too */
};

/* Says whether the regular file store_name (which ends in .zst, has size > 0) is an object
 * (1), is not (0), or -errno; -ESTALE where the name has come to lead to another file than
 * `ident`: it is looked at anew then. The caller answers from memory or catalog where it can,
 * else by object_open(). */
typedef int (*entry_probe_fn)(void *ctx, int dirfd, const char *store_name,
                              const struct stat *st, const struct ident *ident);

struct entry_rules {
	entry_probe_fn probe;
	void *ctx;
	size_t name_max; /* of the store's filesystem */
};

/* -ENOENT, -ENAMETOOLONG (logical longer than name_max - 4 and no plain file of that name),
 * or what the store says. is_root: ".cellar" does not exist. */
errint_t entry_lookup(const struct entry_rules *r, int dirfd, bool is_root,
                      const char *logical, struct entry *ret);

/* Is any form of the name taken? 0 free, -EEXIST taken. For create, mkdir, link, mknod,
 * symlink, NOREPLACE; under the directory's lock. At the root ".cellar" is -EPERM. */
errint_t entry_check_free(const struct entry_rules *r, int dirfd, bool is_root,
                          const char *logical);

/* The store name that a new entry will get, made sure of: 0 when it is free or is where the
 * logical name leads now (to be replaced); -EEXIST when something shown under another name
 * lies there (raw "x.zst" for a file x; plain "x.zst~" for a directory x.zst), which a
 * rename must not take away; -EPERM and -ENAMETOOLONG as above. */
errint_t entry_new_name(const struct entry_rules *r, int dirfd, bool is_root,
                        const char *logical, bool regular, struct name *ret);

/* A snapshot of a directory in logical names, in store order, without "." and "..".
 * Shadowed plain files, the private directory and leftovers of the ~ rule are left out. */
struct listing_item {
	char *logical;      /* owned by the listing */
	unsigned char type; /* DT_* */
};
struct listing {
	struct listing_item *items;
	size_t count;
};
errint_t entry_list(const struct entry_rules *r, int dirfd, bool is_root,
                    struct listing *ret);
void listing_clear(struct listing *l);

#endif
