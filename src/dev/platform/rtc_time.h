/*
 * The MC146818's time registers: between their ten bytes and seconds since the Unix epoch. Pure
 * functions; any register contents are accepted, out-of-range ones are clamped.
 */
#ifndef RING3_DEV_PLATFORM_RTC_TIME_H
#define RING3_DEV_PLATFORM_RTC_TIME_H

#include <stdbool.h>
#include <stdint.h>

/* Register numbers (data sheet table 3; the century is a PC convention, FADT.CENTURY). */
enum rtc_reg {
    RTC_SEC,
    RTC_SEC_ALARM,
    RTC_MIN,
    RTC_MIN_ALARM,
    RTC_HOUR,
    RTC_HOUR_ALARM,
    RTC_DOW,
    RTC_DAY,
    RTC_MONTH,
    RTC_YEAR,
    RTC_A,
    RTC_B,
    RTC_C,
    RTC_D,
    RTC_CENTURY = 0x32
};

#define RTC_B_24H 0x02
#define RTC_B_BINARY 0x04

/* Fills the eight time registers of cmos. The formats follow cmos[RTC_B]; the day of the week is
 * turned by dow_shift (0..6) days against the calendar. */
void rtc_time_store(uint8_t *cmos, int64_t secs, uint8_t dow_shift);
/* The time those registers hold, and the dow_shift that they imply. */
int64_t rtc_time_load(const uint8_t *cmos, uint8_t *dow_shift);

/* The first second >= from that the alarm registers match, or INT64_MAX if none ever does. */
int64_t rtc_time_alarm(const uint8_t *cmos, int64_t from);

#endif
