// The warp's collectives, emulated; a part of cuda.hpp. They order no memory; see threads.hpp.
#pragma once

namespace host {

// What a lane gives to a collective.
struct Slot {
    unsigned words[6];
};
using Slots = Slot[LANES];

// What every lane gave. It stays until the exchange after the next.
const Slots& exchange(const char* what, const Slot& mine);

template <class V> Slot slot_of(const V& value) {
    static_assert(sizeof(V) <= sizeof(Slot));
    Slot slot{};
    std::memcpy(&slot, &value, sizeof(V));
    return slot;
}

template <class V> V value_of(const Slot& slot) {
    V value;
    std::memcpy(&value, &slot, sizeof(V));
    return value;
}

template <class V> V shuffle(const char* what, unsigned mask, const V& value, int from) {
    require(mask == 0xffffffffu, "a collective of some lanes");
    return value_of<V>(exchange(what, slot_of(value))[from]);
}

}  // namespace host

template <class V> V __shfl_sync(unsigned mask, V value, int from) {
    return host::shuffle("__shfl_sync", mask, value, from % host::LANES);
}

template <class V> V __shfl_xor_sync(unsigned mask, V value, int lanes) {
    return host::shuffle("__shfl_xor_sync", mask, value, host::lane() ^ lanes);
}

template <class V> V __shfl_down_sync(unsigned mask, V value, int offset) {
    const int from = host::lane() + offset;
    return host::shuffle("__shfl_down_sync", mask, value, from < host::LANES ? from : host::lane());
}

inline bool __any_sync(unsigned mask, bool value) {
    host::require(mask == 0xffffffffu, "a collective of some lanes");
    bool any = false;
    for (const host::Slot& slot : host::exchange("__any_sync", host::slot_of(value))) any |= host::value_of<bool>(slot);
    return any;
}
