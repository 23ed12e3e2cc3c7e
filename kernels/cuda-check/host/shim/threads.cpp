// See threads.hpp.
#include "threads.hpp"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

// What a sanitizer wants to know, if one is linked.
#define SANITIZER extern "C" __attribute__((weak))
SANITIZER void __tsan_acquire(void*);
SANITIZER void __tsan_release(void*);
SANITIZER void* __tsan_create_fiber(unsigned);
SANITIZER void* __tsan_get_current_fiber();
SANITIZER void __tsan_switch_to_fiber(void*, unsigned);
SANITIZER void __sanitizer_start_switch_fiber(void**, const void*, size_t);
SANITIZER void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);

namespace host {

void publish(const void* address) {
    if (__tsan_release) __tsan_release(const_cast<void*>(address));
}

void see(const void* address) {
    if (__tsan_acquire) __tsan_acquire(const_cast<void*>(address));
}

struct Thread {
    Thread* behind = nullptr;  // in the list that it is in
    ucontext_t context;
    const void* stack = nullptr;
    size_t stack_size = 0;
    void* tsan = nullptr;
    unsigned index = 0;
    const char* waits_for = nullptr;
};

namespace {

constexpr size_t STACK = 256 << 10;
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned NO_SYNC = 1;  // a switch orders no memory

// No containers: ThreadSanitizer would see them allocate and copy.
Thread *threads[MAX_THREADS], *first_ready, **last_ready = &first_ready;
unsigned created;
Thread root, *current = &root;
unsigned alive;
void (*body)(void*);
void* body_with;
char started, ended;

// The first thing in a fiber that was switched to. Who came from the root tells how large that one's stack is.
void arrive(void* fake_stack) {
    const void* stack;
    size_t size;
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack, &stack, &size);
    if (__sanitizer_finish_switch_fiber && !root.stack) root.stack = stack, root.stack_size = size;
}

void switch_to(Thread* next) {
    Thread* from = current;
    if (next == from) return;
    current = next;
    threadIdx = {next->index % blockDim.x, 0, 0};
    blockIdx.x += next->index / blockDim.x - blockRank;
    blockRank = next->index / blockDim.x;
    void* fake_stack = nullptr;
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake_stack, next->stack, next->stack_size);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(next->tsan, NO_SYNC);
    swapcontext(&from->context, &next->context);
    arrive(fake_stack);
}

void make_ready(Thread* thread) {
    thread->behind = nullptr;
    *last_ready = thread;
    last_ready = &thread->behind;
}

// Runs whoever can.
void switch_to_next() {
    Thread* next = first_ready;
    if (next) {
        first_ready = next->behind;
        if (!first_ready) last_ready = &first_ready;
    } else if (alive > 0) {
        for (unsigned i = 0; i < created; ++i)
            if (threads[i]->waits_for) std::fprintf(stderr, "thread %u waits at %s\n", i, threads[i]->waits_for);
        std::fprintf(stderr, "diverged threads: they wait for each other for ever\n");
        std::_Exit(1);
    }
    switch_to(next ? next : &root);
}

void live() {
    arrive(nullptr);
    for (;;) {
        see(&started);
        body(body_with);
        publish(&ended);
        --alive;
        switch_to_next();
    }
}

void create_thread() {
    Thread* thread = threads[created] = new Thread;
    thread->index = created++;
    thread->stack = new char[STACK];
    thread->stack_size = STACK;
    if (__tsan_create_fiber) thread->tsan = __tsan_create_fiber(0);
    getcontext(&thread->context);
    thread->context.uc_stack = {const_cast<void*>(thread->stack), 0, STACK};
    makecontext(&thread->context, live, 0);
    thread->context.uc_stack = {};  // or AddressSanitizer forgets all about the stack at each switch
}

}  // namespace

void run_threads(unsigned count, void (*run)(void*), void* with) {
    if (__tsan_get_current_fiber) root.tsan = __tsan_get_current_fiber();
    while (created < count) create_thread();
    body = run;
    body_with = with;
    alive = count;
    for (unsigned i = 0; i < count; ++i) make_ready(threads[i]);
    publish(&started);
    switch_to_next();
    see(&ended);
}

void Queue::wait(const char* what) {
    current->waits_for = what;
    current->behind = waiting;
    waiting = current;
    switch_to_next();
    current->waits_for = nullptr;
}

void Queue::wake() {
    while (Thread* thread = waiting) {
        waiting = thread->behind;
        make_ready(thread);
    }
}

void Meeting::wait(unsigned parties, const char* what, bool ordered) {
    if (arrived == 0) purpose = what;
    if (std::strcmp(purpose, what) != 0) {
        std::fprintf(stderr, "diverged threads: one is at %s, another at %s\n", purpose, what);
        std::_Exit(1);
    }
    char* address = &published[met % 2];
    if (ordered) publish(address);
    if (++arrived < parties) {
        queue.wait(what);
    } else {
        ++met;
        arrived = 0;
        queue.wake();
    }
    if (ordered) see(address);
}

}  // namespace host
