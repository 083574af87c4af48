/*
 * Lets a program's clock run at a tenth of its speed, for xl on an emulated machine: xl waits for its scripts and
 * for the other side of a device by this clock, with limits that fit a real machine. Loaded by LD_PRELOAD; the
 * programs that xl starts have their usual clock.
 */
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#define SLOWER 10

static long long began_us;

static long long now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

__attribute__((constructor)) static void begin(void) {
  unsetenv("LD_PRELOAD");
  began_us = now_us();
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  long long us = began_us + (now_us() - began_us) / SLOWER;
  (void)zone;
  now->tv_sec = us / 1000000;
  now->tv_usec = us % 1000000;
  return 0;
}
