// See warp.hpp. Compiled without a sanitizer, as threads.cpp is.
#include "cuda.hpp"

namespace host {

const Slots& exchange(const char* what, const Slot& mine) {
    static Slots slots[MAX_WARPS][2];  // who is in the next exchange writes to the other half: one meeting is enough
    Meeting& meeting = warp_meetings[warp()];
    Slots& half = slots[warp()][meeting.count() % 2];
    half[lane()] = mine;
    meeting.wait(LANES, what, false);
    return half;
}

}  // namespace host
