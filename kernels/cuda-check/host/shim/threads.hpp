// The threads of a block and where they wait for each other.
//
// A CUDA thread is a fiber (ucontext) that runs until it waits: a block needs no help from the kernel's scheduler,
// and runs the same way each time. ThreadSanitizer is told of each fiber as of a thread, and finds races by what is
// ordered, not by what happened to run first. threads.cpp is compiled without a sanitizer: waiting orders memory only
// where it says so, as CUDA promises none for shuffles, votes, ldmatrix and mma.sync.
#pragma once
#include <vector_types.h>

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
// The blocks of a cluster run at once, one behind the other along x. The rank of the running thread's.
inline unsigned blockRank;

namespace host {

struct Thread;

// Runs `body(with)` as each of `count` threads. Ends the program where they wait for each other for ever.
void run_threads(unsigned count, void (*body)(void*), void* with);

// Threads that wait until others wake them.
class Queue {
  public:
    void wait(const char* what);
    void wake();

  private:
    Thread* waiting = nullptr;
};

// What a thread wrote before it published an address is seen by who sees that afterwards.
void publish(const void* address);
void see(const void* address);

class Meeting {
  public:
    // Returns when `parties` threads are here; they resume in the opposite order. Ends the program when they came for
    // different things, as diverged threads do. `ordered`: what each wrote before is seen by all after.
    void wait(unsigned parties, const char* what, bool ordered);
    // How often the threads met.
    unsigned count() const { return met; }

  private:
    const char* purpose = nullptr;
    Queue queue;
    unsigned arrived = 0, met = 0;
    // Two addresses in turn: who is already at the next meeting publishes nothing to who still leaves this one.
    char published[2];
};

}  // namespace host
