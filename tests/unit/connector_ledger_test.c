/* The ledger against a naive model: what may be confirmed, and what never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "connector/ledger.h"

static struct spate_ledger ledger;
static struct spate_err err;

static int set_up(void **state)
{
    (void)state;
    err = (struct spate_err){0};
    spate_ledger_init(&ledger, 8);
    spate_ledger_start(&ledger, 1000);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_ledger_fini(&ledger);
    return 0;
}

static uint64_t add(uint64_t end)
{
    uint64_t token = 0;

    spate_ledger_received(&ledger, end);
    assert_int_equal(spate_ledger_add(&ledger, end, &token, &err), SPATE_OK);
    assert_int_not_equal(token, 0); /* 0 means "no acknowledgement wanted" to a bus */
    return token;
}

static void P3_nothing_is_confirmed_before_it_is_durable(void **state)
{
    (void)state;
    uint64_t first = add(1100);

    add(1200);
    assert_int_equal(ledger.confirmed, 1000);
    spate_ledger_durable(&ledger, first);
    assert_int_equal(ledger.confirmed, 1100);
    assert_false(spate_ledger_idle(&ledger));
}

static void one_token_stands_for_all_before_it(void **state)
{
    (void)state;
    add(1100);
    add(1200);
    spate_ledger_durable(&ledger, add(1300));
    assert_int_equal(ledger.confirmed, 1300);
    assert_true(spate_ledger_idle(&ledger));
}

static void P12_an_end_that_was_never_received_is_refused(void **state)
{
    uint64_t token = 0;

    (void)state;
    spate_ledger_received(&ledger, 1100);
    assert_int_equal(spate_ledger_add(&ledger, 1101, &token, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(spate_ledger_found(&ledger, 1101, &err), SPATE_FAIL);
    assert_int_equal(ledger.published, 1000);
}

static void P16_zero_is_no_position(void **state)
{
    (void)state;
    spate_ledger_received(&ledger, 0);
    assert_int_equal(ledger.received, 1000);
}

static void an_end_never_goes_back(void **state)
{
    uint64_t token = 0;

    (void)state;
    add(1200);
    assert_int_equal(spate_ledger_add(&ledger, 1100, &token, &err), SPATE_FAIL);
}

static void a_full_ring_takes_no_more(void **state)
{
    uint64_t token = 0, first = add(1001);

    (void)state;
    for (uint64_t i = 2; i <= 8; i++)
        add(1000 + i);
    assert_true(spate_ledger_full(&ledger));
    spate_ledger_received(&ledger, 2000);
    assert_int_equal(spate_ledger_add(&ledger, 2000, &token, &err), SPATE_FAIL);
    spate_ledger_durable(&ledger, first);
    assert_false(spate_ledger_full(&ledger));
    assert_int_equal(spate_ledger_add(&ledger, 2000, &token, &err), SPATE_OK);
}

static void an_acknowledgement_from_an_earlier_connection_is_ignored(void **state)
{
    (void)state;
    uint64_t old = add(1500);

    spate_ledger_start(&ledger, 1100);
    spate_ledger_durable(&ledger, old);
    assert_int_equal(ledger.confirmed, 1100);
    uint64_t token = add(1200);
    assert_true(token > old);
    spate_ledger_durable(&ledger, token + 1); /* never handed out */
    assert_int_equal(ledger.confirmed, 1100);
}

static void what_is_found_again_waits_for_what_is_out(void **state)
{
    (void)state;
    spate_ledger_received(&ledger, 5000);
    assert_int_equal(spate_ledger_found(&ledger, 1100, &err), SPATE_OK);
    assert_int_equal(ledger.confirmed, 1100);
    uint64_t token = add(1200);
    assert_int_equal(spate_ledger_found(&ledger, 1300, &err), SPATE_OK);
    assert_int_equal(ledger.confirmed, 1100);
    spate_ledger_durable(&ledger, token);
    assert_int_equal(ledger.confirmed, 1200);
}

/* The model keeps every end with a flag, and confirms the longest durable prefix. */
static void confirms_what_a_naive_model_confirms(void **state)
{
    enum { MOST = 4096 };
    static uint64_t ends[MOST], tokens[MOST];

    (void)state;
    for (unsigned seed = 1; seed <= 50; seed++) {
        unsigned random = seed;
        size_t count = 0, durable = 0;
        uint64_t end = 1000, confirmed = 1000;

        spate_ledger_start(&ledger, 1000);
        for (int step = 0; step < 2000; step++) {
            if (rand_r(&random) % 2 && !spate_ledger_full(&ledger)) {
                end += (uint64_t)(rand_r(&random) % 100);
                ends[count] = end;
                tokens[count++] = add(end);
            } else if (durable < count && rand_r(&random) % 3) {
                durable += 1 + (size_t)rand_r(&random) % (count - durable);
                spate_ledger_durable(&ledger, tokens[durable - 1]);
                confirmed = ends[durable - 1];
            } else if (count) {
                spate_ledger_durable(&ledger, tokens[(size_t)rand_r(&random) % (durable ? durable : 1)] *
                                                  (durable > 0)); /* an old one again, or none */
            }
            assert_int_equal(ledger.confirmed, confirmed);
            assert_true(ledger.confirmed <= ledger.received);
            assert_int_equal(ledger.next - ledger.first, count - durable);
        }
    }
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(P3_nothing_is_confirmed_before_it_is_durable),
        T(one_token_stands_for_all_before_it),
        T(P12_an_end_that_was_never_received_is_refused),
        T(P16_zero_is_no_position),
        T(an_end_never_goes_back),
        T(a_full_ring_takes_no_more),
        T(an_acknowledgement_from_an_earlier_connection_is_ignored),
        T(what_is_found_again_waits_for_what_is_out),
        T(confirms_what_a_naive_model_confirms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
