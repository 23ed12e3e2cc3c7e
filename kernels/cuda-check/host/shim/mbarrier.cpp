// See mbarrier.hpp. Compiled without a sanitizer, as threads.cpp is.
#include "mbarrier.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "threads.hpp"

namespace host {

namespace {

struct State {
    unsigned arrivals : 12, missing : 12, parity : 1;
    int bytes;
};
static_assert(sizeof(State) == 8);

Queue queue;  // for all barriers: who is woken looks again

State state_of(const unsigned long long* barrier) {
    State state;
    std::memcpy(&state, barrier, sizeof(state));
    return state;
}

// An address for each of two phases in turn.
const void* phase(const unsigned long long* barrier, unsigned parity) {
    return reinterpret_cast<const char*>(barrier) + parity;
}

}  // namespace

void barrier_set(unsigned long long* barrier, int arrivals) {
    const State state{unsigned(arrivals), unsigned(arrivals), 0, 0};
    std::memcpy(barrier, &state, sizeof(state));
}

void barrier_move(unsigned long long* barrier, int arrivals, int bytes) {
    State state = state_of(barrier);
    if (int(state.missing) < arrivals) {
        std::fprintf(stderr, "mbarrier: more arrivals than a phase has\n");
        std::_Exit(1);
    }
    publish(phase(barrier, state.parity));
    state.missing -= arrivals;
    state.bytes += bytes;
    const bool over = state.missing == 0 && state.bytes == 0;
    if (over) {
        state.missing = state.arrivals;
        state.parity ^= 1;
    }
    std::memcpy(barrier, &state, sizeof(state));
    if (over) queue.wake();
}

void barrier_wait(const unsigned long long* barrier, unsigned parity) {
    while (state_of(barrier).parity == parity) queue.wait("mbarrier");
    see(phase(barrier, parity));
}

}  // namespace host
