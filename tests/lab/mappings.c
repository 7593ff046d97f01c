/* tests/lab/mappings.c - one mapping of a file for all threads of a process (L15).
 *
 * Each handle of the bus maps a segment for itself, so two threads meet the same bytes at two addresses, and
 * a race detector, which goes by addresses, sees neither their races nor what orders them. Linked with
 * --wrap=mmap,--wrap=munmap, as the variant tsan does, whoever maps the same file gets the same address. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void *__real_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t len);
void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t len);

static struct mapping {
    void *at; /* NULL: a free place */
    size_t len;
    dev_t dev;
    ino_t ino;
    off_t offset;
    int users;
} mappings[1024];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct mapping *find(const struct stat *st, size_t len, off_t offset)
{
    for (struct mapping *m = mappings; m < mappings + 1024; m++)
        if (m->at && m->dev == st->st_dev && m->ino == st->st_ino && m->len == len && m->offset == offset)
            return m;
    return NULL;
}

/* A reader's file is open for reading only; the mapping has to serve a writer as well. */
static void *map_for_all(size_t len, int fd, off_t offset)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const int own = open(path, O_RDWR | O_CLOEXEC);
    if (own < 0)
        return MAP_FAILED;
    void *at = __real_mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, own, offset);
    close(own);
    return at;
}

void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    struct stat st;
    void *found = MAP_FAILED;

    if (at || fd < 0 || !(flags & MAP_SHARED) || fstat(fd, &st) != 0)
        return __real_mmap(at, len, prot, flags, fd, offset);
    pthread_mutex_lock(&lock);
    struct mapping *m = find(&st, len, offset);
    if (m) {
        m->users++;
        found = m->at;
    } else {
        for (m = mappings; m < mappings + 1024 && m->at; m++)
            ;
        if (m < mappings + 1024 && (found = map_for_all(len, fd, offset)) != MAP_FAILED)
            *m = (struct mapping){
                .at = found, .len = len, .dev = st.st_dev, .ino = st.st_ino, .offset = offset, .users = 1};
    }
    pthread_mutex_unlock(&lock);
    return found != MAP_FAILED ? found : __real_mmap(at, len, prot, flags, fd, offset);
}

int __wrap_munmap(void *at, size_t len)
{
    int users = 0;

    pthread_mutex_lock(&lock);
    for (struct mapping *m = mappings; m < mappings + 1024; m++)
        if (m->at == at && m->len == len) {
            users = --m->users;
            if (users == 0)
                m->at = NULL;
            break;
        }
    const int rc = users > 0 ? 0 : __real_munmap(at, len);
    pthread_mutex_unlock(&lock);
    return rc;
}
