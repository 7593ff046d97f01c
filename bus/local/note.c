/* bus/local/note.c - small checked files, replaced by rename. */
#include "bus/local/note.h"

#include "bus/local/place.h"
#include "core/failpoint.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum spate_rc spate_local_note_write(int dir, const char *name, const char *text, bool sync,
                                     struct spate_err *err)
{
    char temp[64], whole[SPATE_LOCAL_NOTE_SIZE];
    const int len =
        snprintf(whole, sizeof whole, "%scrc %08" PRIx32 "\n", text, spate_crc32c(0, text, strlen(text)));

    snprintf(temp, sizeof temp, ".%s.tmp", name);
    if (len < 0 || (size_t)len >= sizeof whole)
        return spate_fail(err, SPATE_FATAL, "the file %s would be too long", name);
    const int fd = openat(dir, temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (fd < 0)
        return spate_fail(err, errno == ENOSPC || (!sync && errno == ENOENT) ? SPATE_RETRY : SPATE_FATAL,
                          "cannot create the file %s: %s", temp, strerror(errno));
    spate_local_open_up(dir, fd);
    errno = 0;
    const bool written = write(fd, whole, (size_t)len) == len && (!sync || fsync(fd) == 0);
    const int why = errno ? errno : ENOSPC; /* a short write is a full disk */
    close(fd);
    SPATE_FAILPOINT(local_note_written);
    if (!written || renameat(dir, temp, dir, name) != 0 || (sync && fsync(dir) != 0)) {
        const int cause = written ? errno : why;
        unlinkat(dir, temp, 0);
        return spate_fail(
            err, cause == ENOSPC || cause == EDQUOT || (!sync && cause == ENOENT) ? SPATE_RETRY : SPATE_FATAL,
            "cannot write the file %s: %s", name, strerror(cause));
    }
    return SPATE_OK;
}

enum spate_rc spate_local_note_read(int dir, const char *name, char text[SPATE_LOCAL_NOTE_SIZE],
                                    struct spate_err *err)
{
    const int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return SPATE_END;
    if (fd < 0)
        return spate_fail(err, SPATE_FATAL, "cannot open the file %s: %s", name, strerror(errno));
    const ssize_t got = read(fd, text, SPATE_LOCAL_NOTE_SIZE - 1);
    const int why = errno;
    close(fd);
    if (got < 0)
        return spate_fail(err, SPATE_FATAL, "cannot read the file %s: %s", name, strerror(why));
    text[got] = '\0';
    char *sum = strstr(text, "crc ");
    if (!sum || strtoul(sum + 4, NULL, 16) != spate_crc32c(0, text, (size_t)(sum - text)))
        return spate_fail(err, SPATE_FATAL, "the file %s is damaged: its checksum is wrong", name);
    *sum = '\0';
    return SPATE_OK;
}

bool spate_local_note_get(const char *text, const char *name, char *out, size_t size)
{
    const size_t len = strlen(name);

    for (const char *line = text; *line;) {
        const size_t end = strcspn(line, "\n");
        if (end > len && memcmp(line, name, len) == 0 && line[len] == ' ') {
            if (end - len - 1 >= size)
                return false;
            memcpy(out, line + len + 1, end - len - 1);
            out[end - len - 1] = '\0';
            return true;
        }
        line += end + (line[end] == '\n');
    }
    return false;
}

bool spate_local_note_u64(const char *text, const char *name, int radix, uint64_t *out)
{
    char value[32], *end;

    if (!spate_local_note_get(text, name, value, sizeof value) || value[0] == '\0')
        return false;
    errno = 0;
    *out = strtoull(value, &end, radix);
    return errno == 0 && *end == '\0';
}
