/* One file on its way through a flush; shared by flush.c (the order of steps), flush-install.c
 * (finding and replacing the object), flush-plan.c (what is encoded and what stays), compact.c (the
 * same without a scratch) and nobody else. */
#ifndef CELLAR_POOL_FLUSH_JOB_H
#define CELLAR_POOL_FLUSH_JOB_H

#include "codec/encode.h"
#include "codec/plan.h"
#include "pool/internal.h"
#include "store/store.h"

struct job {
	struct node *n;    /* referenced */
	struct scratch *s; /* NULL: a cold file is compacted */
	bool urgent;       /* although open for writing */
	int snap_fd;       /* > 0: a clone of the scratch, which is read in its place */
	bool closed;       /* for writing, when it was prepared (content.h) */
	bool prepared;     /* s->flushing is ours */
	bool unchanged;    /* nothing to encode */
	bool same;         /* written, and yet the same bytes: only the times may differ */
	bool appended;     /* by job_append(): the node knows already */
	bool no_append;    /* this object cannot be written into */
	bool alone;        /* a tail whose object is somebody else's */
	bool base_current; /* target_fd is what the scratch came from */
	bool hold_writers;
	bool plain;     /* stored as it is: see job_find_target() */
	bool copy_over; /* into the existing inode instead of a rename */
	bool conflict;  /* what is at the name is somebody else's */
	bool tried;     /* to install it: whatever an error says, it may be in the store */
	bool installed;
	bool was_replacing; /* RECORD_REPLACING was set before */
	int in_fd, out_fd;  /* scratch, tmp file */
	int target_fd;      /* the object at the name, read only; <= 0: there is none */
	struct stat target_st;
	struct place at; /* where the object goes */
	bool have_place;
	struct name
	    install_name; /* there; differs from at.store_name when a plain file becomes an object */
	struct name tmp;
	bool
	    left_here; /* (F10): the file has lost names in at.parent only, as of left_gen */
	uint32_t left_gen;
	uint64_t gen, size, seq;
	uint64_t ask; /* bytes below are asked of the object, the others of the scratch */
	struct timespec ctime;
	struct timespec ctime_before; /* logical, of the object that is appended to */
	struct changes changes;       /* what the scratch's were when `size` was taken */
	struct object base;           /* has_base: frames of it may stay */
	bool has_base;
	uint8_t *changed; /* one an entry of base */
	struct plan plan;
	struct encode_source source;
	struct frame_hash *hashes; /* of the new object's frames, or NULL */
	struct encode_result result;
	/* What the new object is, found out while nothing has changed yet (F8). */
	struct stamp stamp;
	uint32_t kind;
	uint64_t logical_size, dead_bytes;
	uint32_t frames;
	struct frame_hashes *new_frames; /* made from `hashes`, or NULL */
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

/* (F10): what the file has lost of its names is durably gone on return, where another inode is about
 * to take the object's place. No lock held. */
errint_t job_sync_left(struct pool *p, struct job *j);
/* Whether it has lost one since. */
bool job_has_left(struct pool *p, const struct job *j);

/* node->lock held: the logical ctime of the job's file, whose object has the attributes st. */
struct timespec job_logical_ctime(const struct job *j, const struct stat *st);
/* The target is a plain file: does it become an object, and under which name? node->lock held. */
errint_t job_decide_plain(struct pool *p, struct job *j);
/* Closes and frees what the job holds, its reference on the node too; removes its tmp file. */
void job_clear(struct pool *p, struct job *j);

/* ---- flush-plan.c ---- */

/* What of the object stays and what is encoded; may read and hash the scratch. No lock held, unless
 * j->hold_writers: then the gate. */
errint_t job_plan(struct pool *p, struct job *j);
/* Encodes what the plan says into the empty j->out_fd, proved. */
errint_t job_run_plan(struct pool *p, struct job *j);
/* An encoder for j->plan that writes into fd. */
errint_t job_encoder(struct pool *p, struct job *j, int fd, struct encoder **ret);
void job_keep_hashes(struct job *j, struct encoder *e);
void job_plan_clear(struct job *j);
/* 0, or -EAGAIN: bytes below j->size changed since they were read (F2). */
errint_t job_still_true(struct job *j);

/* ---- flush-append.c ---- */

/* j->plan.append: writes it at the end of the object. On return the node knows the result. -EAGAIN:
 * the file or the object changed meanwhile. On an error the object is what it was. No lock held. */
errint_t job_append(struct pool *p, struct job *j);
/* An append that failed could not be undone then: now. ns and node->lock held. */
errint_t job_undo_append(struct pool *p, struct job *j);

/* Finds out all that there is to know of the new object, open as fd (F8). */
errint_t job_look_at_new(struct job *j, int fd);
/* It is in its place: node, record (in memory) and info learn what the object is now. Cannot fail.
 * node->lock held. */
void job_adopt_object(struct pool *p, struct job *j, int fd);
/* The object behind fd once more, for writing. */
int job_open_writable(const char *path, const struct stat *st);

#endif
