/* Threads that work on one thing together. Work is cut into phases, and phases into pieces that whoever is there takes.
   Nobody waits for a thread that holds no piece, so a busy machine slows the work down but can't stop it. Idle threads
   look for work for a short while (the next layer's comes within microseconds) and then sleep. */

#define _POSIX_C_SOURCE 200809L
#include "qkv.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum { MOST_THREADS = 64, LOOKS = 20000, SPINS = 4000 }; /* a look takes about 40 cycles on x86 */

static struct {
    void (*work)(void *, int);
    void *with;
    int helpers;
} job;
static atomic_int open_, inside, sleeping;
static atomic_uint ticket;
static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER, door = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
static int started;

static void rest(int turn) { /* let whoever is to be waited for have this processor, if it has no other */
    if (turn % SPINS == SPINS - 1) sched_yield();
    else PAUSE();
}

/* Runs of neighbouring pieces, the first ones long and the last ones short: memory is read fastest in a row, and nobody
   is left with much at the end. */
void qkv_share(Phase *phase, long pieces, int threads, void (*piece)(void *, int, long), void *with, int thread) {
    long at = __atomic_load_n(&phase->next, __ATOMIC_RELAXED);
    while (at < pieces) {
        long run = (pieces - at) / (2 * (threads < 1 ? 1 : threads)), end = at + (run < 1 ? 1 : run);
        if (!__atomic_compare_exchange_n(&phase->next, &at, end, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
        for (long i = at; i < end; i++) piece(with, thread, i);
        __atomic_fetch_add(&phase->done, end - at, __ATOMIC_RELEASE);
        at = __atomic_load_n(&phase->next, __ATOMIC_RELAXED);
    }
    for (int i = 0; __atomic_load_n(&phase->done, __ATOMIC_ACQUIRE) < pieces; i++) rest(i);
}

static void *help(void *number) { /* `number` of this thread, from 1 */
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < LOOKS && atomic_load_explicit(&ticket, memory_order_relaxed) == seen; i++) PAUSE();
        if (atomic_load(&ticket) == seen) {
            pthread_mutex_lock(&door);
            atomic_fetch_add(&sleeping, 1);
            while (atomic_load(&ticket) == seen) pthread_cond_wait(&bell, &door);
            atomic_fetch_sub(&sleeping, 1);
            pthread_mutex_unlock(&door);
        }
        seen = atomic_load(&ticket);
        atomic_fetch_add(&inside, 1);
        if (atomic_load(&open_) && (intptr_t)number <= job.helpers) job.work(job.with, (int)(intptr_t)number);
        atomic_fetch_sub(&inside, 1);
    }
    return NULL;
}

static void forked(void) { /* a child has none of its parent's threads */
    started = 0;
    atomic_store(&inside, 0), atomic_store(&sleeping, 0), atomic_store(&open_, 0), atomic_store(&ticket, 0);
    pthread_mutex_init(&running, NULL), pthread_mutex_init(&door, NULL), pthread_cond_init(&bell, NULL);
}

static void start(int helpers) {
    static int registered;
    if (!registered) registered = pthread_atfork(NULL, NULL, forked) == 0;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (started < helpers && pthread_create(&thread, &detached, help, (void *)(intptr_t)(started + 1)) == 0) started++;
    pthread_attr_destroy(&detached);
}

/* `work` in this thread (number 0), and in as many others as are free at once. */
void qkv_together(void (*work)(void *, int), void *with, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads < 2 || pthread_mutex_trylock(&running)) { /* somebody else's job is on: go alone */
        work(with, 0);
        return;
    }
    start(threads - 1);
    job.work = work, job.with = with, job.helpers = threads - 1;
    atomic_store(&open_, 1);
    atomic_fetch_add(&ticket, 1);
    if (atomic_load(&sleeping)) {
        pthread_mutex_lock(&door);
        pthread_cond_broadcast(&bell);
        pthread_mutex_unlock(&door);
    }
    work(with, 0);
    atomic_store(&open_, 0);
    for (int i = 0; atomic_load(&inside); i++) rest(i);
    pthread_mutex_unlock(&running);
}
