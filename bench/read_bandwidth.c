/* The yardstick of bench/memory_bandwidth.py: every thread sums its own 256 MiB of 64-bit words.
 * Prints bytes per second, the best of twelve passes.   cc -O3 -march=native -pthread
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 256, PASSES = 12 };
static const size_t SIZE = (size_t)256 << 20;
static pthread_barrier_t barrier;
static volatile uint64_t sums[MOST];
static double best = 1e9;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *reader(void *argument) {
    size_t me = (size_t)argument;
    uint64_t *words = aligned_alloc(4096, SIZE);
    if (!words) abort();
    memset(words, 1, SIZE);
    for (int pass = 0; pass < PASSES; pass++) {
        pthread_barrier_wait(&barrier);
        double start = now();
        uint64_t sum = 0;
        for (size_t i = 0; i < SIZE / sizeof *words; i++) sum += words[i];
        sums[me] = sum;
        pthread_barrier_wait(&barrier);
        if (!me && now() - start < best) best = now() - start;
    }
    return NULL;
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 1;
    pthread_t ids[MOST];
    if (threads < 1 || threads > MOST) return 2;
    pthread_barrier_init(&barrier, NULL, threads);
    for (size_t i = 0; i < (size_t)threads; i++) pthread_create(&ids[i], NULL, reader, (void *)i);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    printf("%.0f\n", threads * (double)SIZE / best);
    return 0;
}
