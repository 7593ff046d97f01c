/* bus/local/note.h - small files of "name value" lines that are replaced as a whole: manifest, bus.meta.
 *
 * The last line is a checksum. A crash leaves the old file or the new one, beside it at most a temp file
 * (".name.tmp"), which the next write takes over.
 * Blocks: writing waits for the disk when asked to. Thread: any; writers of one file exclude each other. */
#ifndef SPATE_BUS_LOCAL_NOTE_H
#define SPATE_BUS_LOCAL_NOTE_H

#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPATE_LOCAL_NOTE_SIZE 1024

/* `text`: whole lines without the checksum. */
SPATE_CHECKED enum spate_rc spate_local_note_write(int dir, const char *name, const char *text, bool sync,
                                                   struct spate_err *err);
/* SPATE_END: there is no such file. SPATE_FAIL (fatal): it cannot be read, or its checksum is wrong. */
SPATE_CHECKED enum spate_rc spate_local_note_read(int dir, const char *name, char text[SPATE_LOCAL_NOTE_SIZE],
                                                  struct spate_err *err);
/* The value of a line, copied and NUL-terminated; false: no such line, or it does not fit. */
bool spate_local_note_get(const char *text, const char *name, char *out, size_t size);
bool spate_local_note_u64(const char *text, const char *name, int radix, uint64_t *out);

#endif
