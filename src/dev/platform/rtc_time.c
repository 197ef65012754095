#include "dev/platform/rtc_time.h"

#include "base/util.h"

#define DAY 86400

static uint8_t encode(const uint8_t *cmos, int64_t v)
{
    return (uint8_t)(cmos[RTC_B] & RTC_B_BINARY ? v : v / 10 << 4 | v % 10);
}

static unsigned decode(const uint8_t *cmos, uint8_t v)
{
    return cmos[RTC_B] & RTC_B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static uint8_t encode_hour(const uint8_t *cmos, int64_t h)
{
    if (cmos[RTC_B] & RTC_B_24H)
        return encode(cmos, h);
    return encode(cmos, h % 12 ? h % 12 : 12) | (h >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const uint8_t *cmos, uint8_t v)
{
    if (cmos[RTC_B] & RTC_B_24H)
        return decode(cmos, v);
    return decode(cmos, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* Days from 1970-01-01 to a date of the proleptic Gregorian calendar. Years are counted from March,
 * so that the leap day is the last of its year. */
static int64_t days_from_date(int64_t year, unsigned month, unsigned day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    unsigned m = month <= 2 ? month + 9 : month - 3;

    return y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
}

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static void date_from_days(int64_t days, int64_t *year, unsigned *month, unsigned *day)
{
    int64_t z = days + 719468, era = floor_div(z, 146097);
    int64_t doe = z - era * 146097; /* day of the 400-year era */
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    unsigned doy = (unsigned)(doe - (365 * yoe + yoe / 4 - yoe / 100));
    unsigned m = (5 * doy + 2) / 153;

    *day = doy - (153 * m + 2) / 5 + 1;
    *month = m < 10 ? m + 3 : m - 9;
    *year = yoe + era * 400 + (*month <= 2);
}

static int64_t dow_from_days(int64_t days)
{
    return (days % 7 + 11) % 7; /* 1970-01-01 was a Thursday; 0 is Sunday */
}

void rtc_time_store(uint8_t *cmos, int64_t secs, uint8_t dow_shift)
{
    int64_t days = floor_div(secs, DAY), tod = secs - days * DAY, year;
    unsigned month, day;

    date_from_days(days, &year, &month, &day);
    cmos[RTC_SEC] = encode(cmos, tod % 60);
    cmos[RTC_MIN] = encode(cmos, tod / 60 % 60);
    cmos[RTC_HOUR] = encode_hour(cmos, tod / 3600);
    cmos[RTC_DOW] = encode(cmos, (dow_from_days(days) + dow_shift) % 7 + 1);
    cmos[RTC_DAY] = encode(cmos, day);
    cmos[RTC_MONTH] = encode(cmos, month);
    cmos[RTC_YEAR] = encode(cmos, (year % 100 + 100) % 100);
    cmos[RTC_CENTURY] = encode(cmos, floor_div(year, 100) & 0x7f);
}

int64_t rtc_time_load(const uint8_t *cmos, uint8_t *dow_shift)
{
    int64_t year =
        MIN(decode(cmos, cmos[RTC_CENTURY]), 99u) * 100ll + MIN(decode(cmos, cmos[RTC_YEAR]), 99u);
    unsigned month = decode(cmos, cmos[RTC_MONTH]), day = decode(cmos, cmos[RTC_DAY]);
    int64_t days, dow = decode(cmos, cmos[RTC_DOW]);

    month = MAX(MIN(month, 12u), 1u);
    day = MAX(MIN(day, 31u), 1u);
    days = days_from_date(year, month, day);
    *dow_shift = (uint8_t)((dow + 6 + 7 - dow_from_days(days)) % 7);
    return days * DAY + MIN(decode_hour(cmos, cmos[RTC_HOUR]), 23u) * 3600ll +
           MIN(decode(cmos, cmos[RTC_MIN]), 59u) * 60ll + MIN(decode(cmos, cmos[RTC_SEC]), 59u);
}

/* Bits 7:6 set in an alarm byte mean "any" (data sheet, alarm). */
static bool matches(uint8_t reg, unsigned want, int64_t have)
{
    return (reg & 0xc0) == 0xc0 || want == have;
}

int64_t rtc_time_alarm(const uint8_t *cmos, int64_t from)
{
    unsigned s = decode(cmos, cmos[RTC_SEC_ALARM]), m = decode(cmos, cmos[RTC_MIN_ALARM]);
    unsigned h = decode_hour(cmos, cmos[RTC_HOUR_ALARM]);
    int64_t t = from, end = from + 2 * DAY;

    /* Each step skips to where the mismatching unit changes: at most some 150 of them. */
    while (t < end) {
        int64_t tod = t - floor_div(t, DAY) * DAY;

        if (!matches(cmos[RTC_HOUR_ALARM], h, tod / 3600))
            t += 3600 - tod % 3600;
        else if (!matches(cmos[RTC_MIN_ALARM], m, tod / 60 % 60))
            t += 60 - tod % 60;
        else if (!matches(cmos[RTC_SEC_ALARM], s, tod % 60))
            t++;
        else
            return t;
    }
    return INT64_MAX;
}
