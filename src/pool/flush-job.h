/* One file on its way through a flush; shared by flush.c (the order of steps), flush-install.c
 * (finding and replacing the object), compact.c (the same without a scratch) and nobody else. */
#ifndef CELLAR_POOL_FLUSH_JOB_H
#define CELLAR_POOL_FLUSH_JOB_H

#include "codec/encode.h"
#include "pool/internal.h"

struct job {
	struct node *n;    /* referenced */
	struct scratch *s; /* NULL: a cold file is compacted */
	bool urgent;       /* although open for writing */
	bool prepared;     /* s->flushing is ours */
	bool unchanged;    /* nothing to encode */
	bool hold_writers;
	bool plain;     /* stored as it is: see job_find_target() */
	bool copy_over; /* into the existing inode instead of a rename */
	bool conflict;  /* what is at the name is somebody else's */
	bool installed;
	int in_fd, out_fd; /* scratch, tmp file */
	int target_fd;     /* the object at the name, read only; <= 0: there is none */
	struct stat target_st;
	struct place at; /* where the object goes */
	bool have_place;
	struct name
	    install_name; /* there; differs from at.store_name when a plain file becomes an object */
	struct name tmp;
	uint64_t gen, size, seq;
	struct timespec ctime;
	struct encode_result result;
	/* What the new object is, found out while nothing has changed yet (F8). */
	struct stamp stamp;
	uint32_t kind;
	uint64_t logical_size;
	int32_t level;
	errint_t error;
	char *cause;
};

/* ns and node->lock held: finds the object (or, where it is gone or replaced, the place it belongs)
 * and decides how it will be brought up to date. */
errint_t job_find_target(struct pool *p, struct job *j);
/* ns held: locks directory and file and makes sure that the target is still what was found; -EAGAIN
 * otherwise. */
errint_t job_lock_target(struct pool *p, struct job *j);
void job_unlock_target(struct pool *p, struct job *j);
/* Both locked: the new object takes its place; node, record (in memory) and catalog learn
 * its identity. */
errint_t job_install(struct pool *p, struct job *j);

/* node->lock held: the logical ctime of what the store has (target_st). */
struct timespec job_logical_ctime(const struct job *j);
/* The target is a plain file: does it become an object, and under which name? node->lock held. */
errint_t job_decide_plain(struct pool *p, struct job *j);
/* Closes and frees what the job holds, its reference on the node too; removes its tmp file. */
void job_clear(struct pool *p, struct job *j);

#endif
