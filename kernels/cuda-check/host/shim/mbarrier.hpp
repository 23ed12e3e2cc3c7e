// The barrier in shared memory of sm_90, in its 8 bytes: a phase ends when its arrivals are there and all bytes
// announced. Who waits sees what was written before each arrival and each copy of the phase; nothing else is ordered.
#pragma once

namespace host {

void barrier_set(unsigned long long* barrier, int arrivals);
// So many arrivals more; so many bytes announced, or come if below 0.
void barrier_move(unsigned long long* barrier, int arrivals, int bytes);
// Returns when the phase of this parity is over.
void barrier_wait(const unsigned long long* barrier, unsigned parity);

}  // namespace host
