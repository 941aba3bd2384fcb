/* Who computes what of a phase: each thread has a stretch of its units and takes one after the other;
 * who is done with their own helps the others. So nobody waits long for a thread that the system has
 * put aside. No bit depends on who computes a unit.
 */
#pragma once

#include "model.h"

/* How much of a thread's stretch is taken, by itself or others: in this phase, and in the next, which
 * is set back meanwhile. A cache line of its own. */
typedef struct {
    int64_t taken[2], filler[6];
} Stretch;

typedef struct {
    Stretch *stretches; /* by thread */
    int64_t units, helped;
    Thread thread;
} Turns;

/* Once in a phase. */
static Turns turns_of(Stretch *stretches, Thread thread, int64_t units) {
    return (Turns){stretches, units, 0, thread};
}

/* The next unit for this thread; -1 if all are taken. */
static int64_t next_unit(Turns *turns) {
    Thread thread = turns->thread;
    for (; turns->helped < thread.count; turns->helped++) {
        Thread whose = {(thread.number + turns->helped) % thread.count, thread.count, 0};
        Range part = share(whose, turns->units);
        int64_t *taken = turns->stretches[whose.number].taken + thread.phase % 2;
        int64_t unit = part.from + __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
        if (unit < part.to)
            return unit;
    }
    return -1;
}

/* Before each phase: nobody looks at the next one's any more, or yet. */
static void set_back(Stretch *stretches, Thread thread) {
    __atomic_store_n(&stretches[thread.number].taken[(thread.phase + 1) % 2], 0, __ATOMIC_RELAXED);
}
