/*
 * Faults: a developer build can make the i-th call of something fail, to show what becomes of
 * the rest. What can fail is in FAULT_CALLS: the calls of sysio.h by their names without
 * sys_, and a few that are no calls of it: threads, large allocations, FUSE's own way into a
 * scratch, and SQLite's files (db_*, by a VFS of the catalog's).
 *
 *   SPEC = NAME:NTH:ERROR[:always]     for instance `fsync:3:EIO`, `any:17:ENOSPC:always`
 *
 * NAME is one of the calls; `any`: all but db_*; `db`: all db_*. ERROR is an errno name, or
 * `short`: half of a read or write is transferred. always: the NTH and each one after it. The
 * count is of the whole process, from the moment of arming.
 *
 * Who arms:
 *   CELLAR_TEST_FAULT=SPEC       from the start on
 *   CELLAR_TEST_FAULT_FILE=PATH  a file of FAULT_CONTROL_LEN bytes, mapped and shared with a
 *                                test, which so arms a running daemon and sees what fired, also
 *                                after the daemon has ended (struct fault_control)
 *   fault_set()                  from inside a unit test
 *
 * Without --enable-developer nothing here does anything, and fault() is the constant 0.
 * Threads: any.
 */
#ifndef CELLAR_BASE_FAULT_H
#define CELLAR_BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"

#define FAULT_CALLS(X)                                                                     \
	X(openat)                                                                          \
	X(openat2)                                                                         \
	X(close)                                                                           \
	X(pread)                                                                           \
	X(pwrite)                                                                          \
	X(pwritev)                                                                         \
	X(full_copy_range)                                                                 \
	X(clone_file)                                                                      \
	X(fsync)                                                                           \
	X(fdatasync)                                                                       \
	X(syncfs)                                                                          \
	X(ftruncate)                                                                       \
	X(fallocate)                                                                       \
	X(fstat)                                                                           \
	X(fstatat)                                                                         \
	X(statx)                                                                           \
	X(fstatfs)                                                                         \
	X(mkdirat)                                                                         \
	X(mknodat)                                                                         \
	X(symlinkat)                                                                       \
	X(readlinkat)                                                                      \
	X(unlinkat)                                                                        \
	X(renameat2)                                                                       \
	X(linkat)                                                                          \
	X(utimensat)                                                                       \
	X(futimens)                                                                        \
	X(fchmod)                                                                          \
	X(fchmodat)                                                                        \
	X(fchown)                                                                          \
	X(fchownat)                                                                        \
	X(fgetxattr)                                                                       \
	X(fsetxattr)                                                                       \
	X(fremovexattr)                                                                    \
	X(flistxattr)                                                                      \
	X(walk_dir)                                                                        \
	X(handle)     /* name_to_handle_at(2): store/ident.c */                            \
	X(thread)     /* thread_start() */                                                 \
	X(malloc)     /* try_malloc() and the like: error.h */                             \
	X(fuse_write) /* bytes that FUSE splices into a scratch */                         \
	X(db_open)                                                                         \
	X(db_read)                                                                         \
	X(db_write)                                                                        \
	X(db_sync)                                                                         \
	X(db_truncate)                                                                     \
	X(db_size)                                                                         \
	X(db_delete)                                                                       \
	X(db_shm)

enum fault_call {
#define X(name) CALL_##name,
	FAULT_CALLS(X)
#undef X
	    CALL_COUNT,
	CALL_ANY = CALL_COUNT,
	CALL_DB
};
#define CALL_DB_FIRST CALL_db_open

#define FAULT_SHORT 1 /* what fault() says instead of an error */

/* What CELLAR_TEST_FAULT_FILE holds. The test writes spec ("": disarm), then raises `asked`;
 * the next call of the daemon that can fail takes it, clears calls and fired, and sets `seen`. */
struct fault_control {
	_Atomic uint32_t asked, seen;
	_Atomic uint64_t calls, fired; /* that matched; that failed */
	char spec[104];
	char first[32];          /* name of the first call that failed */
	_Atomic uint32_t mapped; /* 1: the daemon has read this file at its start */
};
#define FAULT_CONTROL_LEN 4096

#ifdef CELLAR_DEVELOPER
/* 0: go on; -errno: fail with it and do nothing; FAULT_SHORT: transfer half. */
int fault(enum fault_call call);
#else
static inline int fault(enum fault_call call)
{
	(void)call;
	return 0;
}
#endif

void fault_init(void); /* reads the environment */
/* Arms, or disarms (NULL, ""); false: not understood, or no developer build. */
bool fault_set(const char *spec);
bool fault_fired(void);
/* Since arming: calls that matched, and the name of one of the first 65536 ("" beyond). */
unsigned long fault_calls(void);
const char *fault_call_name(unsigned long nth);

#endif
