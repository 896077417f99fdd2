/* A wall clock that a test can set, for one process: preloaded, it moves CLOCK_REALTIME by as many milliseconds as the first
 * eight bytes of a file say at that moment. The monotonic clock and the machine's own clock stay as they are. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *moved_ms;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("TM_POOL_CLOCK"), O_RDONLY | O_CLOEXEC);
    void *page = mmap(NULL, sizeof *moved_ms, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED)
        abort();
    close(file);
    moved_ms = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int code = (int)syscall(SYS_clock_gettime, clock, now);
    if (code == 0 && clock == CLOCK_REALTIME) {
        int64_t ms = *moved_ms, nanos = now->tv_nsec + ms % 1000 * 1000000;
        now->tv_sec += ms / 1000 + nanos / 1000000000 - (nanos < 0);
        now->tv_nsec = nanos % 1000000000 + (nanos < 0 ? 1000000000 : 0);
    }
    return code;
}
