/*
 * SQLite's own files under faults (base/fault.h, db_*): a VFS in front of the default one, in
 * developer builds only. Every connection opened after fault_vfs_register() goes through it.
 */
#ifndef CELLAR_CATALOG_FAULTVFS_H
#define CELLAR_CATALOG_FAULTVFS_H

/* Once for the process; any thread. Without --enable-developer it does nothing. */
void fault_vfs_register(void);

#endif
