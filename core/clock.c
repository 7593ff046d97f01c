#include "core/clock.h"

#include <time.h>

int64_t spate_clock_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int64_t spate_clock_ms(void)
{
    return spate_clock_us() / 1000;
}

int64_t spate_clock_wall_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void digits(char *out, int count, int64_t value)
{
    while (count-- > 0) {
        out[count] = (char)('0' + value % 10);
        value /= 10;
    }
}

/* Days since 1970-01-01 to a civil date in the proleptic Gregorian calendar: years begin in March, so that
 * the leap day is a year's last day, and 400 years always have 146097 days. */
static void civil(int64_t days, int64_t *year, int64_t *month, int64_t *day)
{
    int64_t shifted = days + 719468; /* since 0000-03-01 */
    int64_t era = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
    int64_t of_era = shifted - era * 146097;
    int64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t from_march = (5 * of_year + 2) / 153;

    *day = of_year - (153 * from_march + 2) / 5 + 1;
    *month = from_march < 10 ? from_march + 3 : from_march - 9;
    *year = year_of_era + era * 400 + (*month <= 2);
}

void spate_clock_format(int64_t wall_us, char out[SPATE_TIMESTAMP_LEN])
{
    const int64_t day_us = INT64_C(86400000000);
    const int64_t oldest = INT64_C(-62167219200000000); /* 0000-01-01 */
    const int64_t newest = INT64_C(253402300799999999); /* 9999-12-31 23:59:59.999999 */
    int64_t days, rest, year, month, day;

    wall_us = wall_us < oldest ? oldest : wall_us > newest ? newest : wall_us;
    days = wall_us / day_us;
    rest = wall_us % day_us;
    if (rest < 0) {
        rest += day_us;
        days--;
    }
    civil(days, &year, &month, &day);
    digits(out, 4, year);
    out[4] = '-';
    digits(out + 5, 2, month);
    out[7] = '-';
    digits(out + 8, 2, day);
    out[10] = 'T';
    digits(out + 11, 2, rest / INT64_C(3600000000));
    out[13] = ':';
    digits(out + 14, 2, rest / 60000000 % 60);
    out[16] = ':';
    digits(out + 17, 2, rest / 1000000 % 60);
    out[19] = '.';
    digits(out + 20, 6, rest % 1000000);
    out[26] = 'Z';
}
