// Philox4x32-10: random numbers as a pure function of (key, counter), so that the number for the
// t-th token of a sequence needs no state and no order.
//
// From J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//
// Threads   Pure functions.
// Tested by tests/engine/sampling/philox_test.cc (the authors' known-answer vectors)
#pragma once

#include <array>
#include <cstdint>

namespace bst {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

std::array<uint32_t, 4> Philox4x32(PhiloxCounter counter, PhiloxKey key);

// The uniform number in [0, 1), a multiple of 2^-53, that draws one token:
//   key     = (low, high 32 bits of seed)
//   counter = (low, high 32 bits of token_index, sequence_index, 0)
//   number  = (word 1 of the result : word 0, as 64 bits) >> 11, times 2^-53
// Distinct (sequence, token) pairs of one seed have distinct counters, hence independent numbers.
double TokenUniform(uint64_t seed, uint32_t sequence_index, uint64_t token_index);

}  // namespace bst
