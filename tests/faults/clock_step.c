/* Adds an offset to the wall clock of a process, and leaves its monotonic clocks alone.
 *
 * Loaded by LD_PRELOAD. CLOCK_STEP_FILE names a file of 8 bytes, a signed integer in the machine's
 * byte order: the offset in nanoseconds. It is mapped into memory, so a change is seen at once by
 * every process that has the file; it is made when missing. Without the variable nothing changes.
 *
 * What does not pass through the C library keeps the true time: statically linked programs (Go),
 * the time stamps of files.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

typedef int clock_function(clockid_t, struct timespec *);

static _Atomic(clock_function *) true_clock;
static _Atomic(int64_t) *offset;

static clock_function *find_true_clock(void)
{
    clock_function *found = atomic_load(&true_clock);

    if (!found) {
        found = (clock_function *)dlsym(RTLD_NEXT, "clock_gettime");
        atomic_store(&true_clock, found);
    }
    return found;
}

__attribute__((constructor)) static void map_offset(void)
{
    const char *path = getenv("CLOCK_STEP_FILE");
    mode_t mask;
    int file;
    void *map;

    if (!path)
        return;
    mask = umask(0); /* Programs of other users in the pod share the file. */
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    umask(mask);
    if (file < 0)
        return;
    if (lseek(file, 0, SEEK_END) >= (off_t)sizeof(*offset) ||
        ftruncate(file, sizeof(*offset)) == 0) {
        map = mmap(NULL, sizeof(*offset), PROT_READ, MAP_SHARED, file, 0);
        if (map != MAP_FAILED)
            offset = map;
    }
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = find_true_clock()(clock, time);
    int64_t step, nanoseconds;

    if (result || !offset)
        return result;
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE && clock != CLOCK_TAI)
        return result;
    step = atomic_load(offset);
    nanoseconds = time->tv_nsec + step % SECOND;
    time->tv_sec += step / SECOND;
    if (nanoseconds < 0) {
        nanoseconds += SECOND;
        time->tv_sec -= 1;
    } else if (nanoseconds >= SECOND) {
        nanoseconds -= SECOND;
        time->tv_sec += 1;
    }
    time->tv_nsec = nanoseconds;
    return 0;
}

int timespec_get(struct timespec *time, int base)
{
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, time) == 0 ? base : 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);

    (void)zone;
    if (!result) {
        time->tv_sec = now.tv_sec;
        time->tv_usec = now.tv_nsec / 1000;
    }
    return result;
}

time_t time(time_t *result)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_REALTIME, &now);
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}
