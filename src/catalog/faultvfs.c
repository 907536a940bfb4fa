/*
 * A VFS that asks fault() first and hands everything on to the default one: see faultvfs.h.
 *
 * A file of ours is a struct fault_file with the real one right behind it; its methods are
 * copies of a table that has exactly those that the real one has (SQLite goes by iVersion).
 *
 * Threads: as SQLite calls it; nothing here changes after registration.
 */
#include "catalog/faultvfs.h"

#include "base/fault.h"

#ifdef CELLAR_DEVELOPER

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <sqlite3.h>

#include "base/error.h"

struct fault_file {
	sqlite3_file base;
	sqlite3_file *real;
};

static sqlite3_vfs *real_vfs, fault_vfs;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static sqlite3_file *real_of(sqlite3_file *f)
{
	return ((struct fault_file *)f)->real;
}

/* What SQLite's unix VFS makes of an errno. */
static int code_of(int err, int otherwise)
{
	if (err == -ENOSPC || err == -EDQUOT)
		return SQLITE_FULL;
	return err == -ENOMEM ? SQLITE_IOERR_NOMEM : otherwise;
}

/* ---- a file ---- */

static int file_close(sqlite3_file *f)
{
	return real_of(f)->pMethods->xClose(real_of(f));
}

static int file_read(sqlite3_file *f, void *buf, int len, sqlite3_int64 off)
{
	int err = fault(CALL_db_read);

	return err ? code_of(err, SQLITE_IOERR_READ)
	           : real_of(f)->pMethods->xRead(real_of(f), buf, len, off);
}

/* Half of it, then the disk is full: as a real short write ends. */
static int file_write(sqlite3_file *f, const void *buf, int len, sqlite3_int64 off)
{
	int err = fault(CALL_db_write), rc;

	if (err < 0)
		return code_of(err, SQLITE_IOERR_WRITE);
	if (err != FAULT_SHORT)
		return real_of(f)->pMethods->xWrite(real_of(f), buf, len, off);
	rc = real_of(f)->pMethods->xWrite(real_of(f), buf, len / 2, off);
	return rc == SQLITE_OK ? SQLITE_FULL : rc;
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size)
{
	int err = fault(CALL_db_truncate);

	return err ? code_of(err, SQLITE_IOERR_TRUNCATE)
	           : real_of(f)->pMethods->xTruncate(real_of(f), size);
}

static int file_sync(sqlite3_file *f, int flags)
{
	int err = fault(CALL_db_sync);

	return err ? code_of(err, SQLITE_IOERR_FSYNC)
	           : real_of(f)->pMethods->xSync(real_of(f), flags);
}

static int file_size(sqlite3_file *f, sqlite3_int64 *ret)
{
	int err = fault(CALL_db_size);

	return err ? code_of(err, SQLITE_IOERR_FSTAT)
	           : real_of(f)->pMethods->xFileSize(real_of(f), ret);
}

static int file_lock(sqlite3_file *f, int level)
{
	return real_of(f)->pMethods->xLock(real_of(f), level);
}

static int file_unlock(sqlite3_file *f, int level)
{
	return real_of(f)->pMethods->xUnlock(real_of(f), level);
}

static int file_check_reserved_lock(sqlite3_file *f, int *ret)
{
	return real_of(f)->pMethods->xCheckReservedLock(real_of(f), ret);
}

static int file_control(sqlite3_file *f, int op, void *arg)
{
	return real_of(f)->pMethods->xFileControl(real_of(f), op, arg);
}

static int file_sector_size(sqlite3_file *f)
{
	return real_of(f)->pMethods->xSectorSize(real_of(f));
}

static int file_characteristics(sqlite3_file *f)
{
	return real_of(f)->pMethods->xDeviceCharacteristics(real_of(f));
}

static int file_shm_map(sqlite3_file *f, int page, int size, int extend,
                        void volatile **ret)
{
	int err = fault(CALL_db_shm);

	return err ? code_of(err, SQLITE_IOERR_SHMMAP)
	           : real_of(f)->pMethods->xShmMap(real_of(f), page, size, extend, ret);
}

static int file_shm_lock(sqlite3_file *f, int off, int n, int flags)
{
	return real_of(f)->pMethods->xShmLock(real_of(f), off, n, flags);
}

static void file_shm_barrier(sqlite3_file *f)
{
	real_of(f)->pMethods->xShmBarrier(real_of(f));
}

static int file_shm_unmap(sqlite3_file *f, int remove)
{
	return real_of(f)->pMethods->xShmUnmap(real_of(f), remove);
}

/* Version 2: no xFetch, so no page is read past xRead. */
static const sqlite3_io_methods methods = {
    .iVersion = 2,
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_unlock,
    .xCheckReservedLock = file_check_reserved_lock,
    .xFileControl = file_control,
    .xSectorSize = file_sector_size,
    .xDeviceCharacteristics = file_characteristics,
    .xShmMap = file_shm_map,
    .xShmLock = file_shm_lock,
    .xShmBarrier = file_shm_barrier,
    .xShmUnmap = file_shm_unmap,
};

/* ---- the VFS ---- */

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags,
                    int *ret_flags)
{
	struct fault_file *f = (struct fault_file *)file;
	int err = fault(CALL_db_open), rc;

	(void)vfs;
	memset(f, 0, sizeof(*f));
	if (err)
		return code_of(err, SQLITE_CANTOPEN);
	f->real = (sqlite3_file *)(f + 1);
	rc = real_vfs->xOpen(real_vfs, name, f->real, flags, ret_flags);
	if (rc == SQLITE_OK)
		f->base.pMethods = &methods;
	return rc;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
	int err = fault(CALL_db_delete);

	(void)vfs;
	return err ? code_of(err, SQLITE_IOERR_DELETE)
	           : real_vfs->xDelete(real_vfs, name, sync_dir);
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *ret)
{
	(void)vfs;
	return real_vfs->xAccess(real_vfs, name, flags, ret);
}

static int vfs_full_pathname(sqlite3_vfs *vfs, const char *name, int len, char *ret)
{
	(void)vfs;
	return real_vfs->xFullPathname(real_vfs, name, len, ret);
}

static int vfs_randomness(sqlite3_vfs *vfs, int len, char *ret)
{
	(void)vfs;
	return real_vfs->xRandomness(real_vfs, len, ret);
}

static int vfs_sleep(sqlite3_vfs *vfs, int us)
{
	(void)vfs;
	return real_vfs->xSleep(real_vfs, us);
}

static int vfs_last_error(sqlite3_vfs *vfs, int len, char *ret)
{
	(void)vfs;
	return real_vfs->xGetLastError(real_vfs, len, ret);
}

static int vfs_time(sqlite3_vfs *vfs, double *ret)
{
	(void)vfs;
	return real_vfs->xCurrentTime(real_vfs, ret);
}

static int vfs_time64(sqlite3_vfs *vfs, sqlite3_int64 *ret)
{
	(void)vfs;
	return real_vfs->xCurrentTimeInt64(real_vfs, ret);
}

static void register_it(void)
{
	real_vfs = sqlite3_vfs_find(NULL);
	INVARIANT(real_vfs && real_vfs->iVersion >= 2);
	fault_vfs = (sqlite3_vfs){
	    .iVersion = 2,
	    .szOsFile = (int)sizeof(struct fault_file) + real_vfs->szOsFile,
	    .mxPathname = real_vfs->mxPathname,
	    .zName = "cellar-fault",
	    .xOpen = vfs_open,
	    .xDelete = vfs_delete,
	    .xAccess = vfs_access,
	    .xFullPathname = vfs_full_pathname,
	    .xRandomness = vfs_randomness,
	    .xSleep = vfs_sleep,
	    .xGetLastError = vfs_last_error,
	    .xCurrentTime = vfs_time,
	    .xCurrentTimeInt64 = vfs_time64,
	};
	INVARIANT(sqlite3_vfs_register(&fault_vfs, 1) == SQLITE_OK);
}

void fault_vfs_register(void)
{
	INVARIANT(pthread_once(&once, register_it) == 0);
}

#else

void fault_vfs_register(void)
{
}

#endif
