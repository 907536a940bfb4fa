/*
 * Logging to stderr, or to whatever stderr is under systemd (then with sd-daemon(3)
 * priority prefixes: when $JOURNAL_STREAM names the device and inode of stderr).
 *
 * One message = what failed, the quoted object, the cause, the consequence
 * ("..., will retry in 30 s"). Names go through text_escape() (see text.h), so that
 * a file name cannot forge a line. Thread-safe; one write(2) a message; keeps errno.
 *
 * Debug lines start with a stable word so that tests can wait for them.
 */
#ifndef CELLAR_BASE_LOG_H
#define CELLAR_BASE_LOG_H

#include <stdbool.h>
#include <time.h>

enum log_level { LOG_LEVEL_ERR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_init(const char *program); /* static string; picks the prefix style */
void log_set_level(enum log_level level);
/* Puts the time (UTC) before each line: a log file of our own has no other clock. */
void log_show_times(bool show);
enum log_level log_get_level(void);

void log_at(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
#define log_err(...)   log_at(LOG_LEVEL_ERR, __VA_ARGS__)
#define log_warn(...)  log_at(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* The last message of level err: a malloc'ed copy, or NULL if there was none;
 * *ret_when gets its wall-clock time. For `cellarctl status`. */
char *log_last_error(struct timespec *ret_when);

#endif
