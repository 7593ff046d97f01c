/* A process' own memory and what it shares are told apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/memory.h"

#define SIZE  (INT64_C(16) << 20)
#define SLACK (INT64_C(4) << 20) /* for what the test itself does meanwhile, or a sanitizer */

static void touch(void *at)
{
    assert_true(at != MAP_FAILED);
    memset(at, 1, (size_t)SIZE);
}

static void shared_memory_is_not_private(void **state)
{
    struct spate_memory before = {0}, after = {0};

    (void)state;
    spate_memory_look(&before);
    assert_true(before.private_bytes > 0 && before.shared_bytes >= 0 && before.file_bytes > 0);
    void *at = mmap(NULL, (size_t)SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    touch(at);
    spate_memory_look(&after);
    assert_in_range(after.shared_bytes - before.shared_bytes, SIZE - SLACK, SIZE + SLACK);
    assert_true(after.private_bytes - before.private_bytes < SLACK);
    munmap(at, (size_t)SIZE);
}

static void private_memory_is_not_shared(void **state)
{
    struct spate_memory before = {0}, after = {0};

    (void)state;
    spate_memory_look(&before);
    void *at = mmap(NULL, (size_t)SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(at);
    spate_memory_look(&after);
    assert_in_range(after.private_bytes - before.private_bytes, SIZE - SLACK, SIZE + SLACK);
    assert_true(after.shared_bytes - before.shared_bytes < SLACK);
    munmap(at, (size_t)SIZE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_memory_is_not_private),
        cmocka_unit_test(private_memory_is_not_shared),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
