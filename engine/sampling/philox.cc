#include "engine/sampling/philox.h"

#include "engine/backend/sampling_arithmetic.h"

namespace bst {

std::array<uint32_t, 4> Philox4x32(PhiloxCounter counter, PhiloxKey key) {
  uint32_t words[4] = {counter[0], counter[1], counter[2], counter[3]};
  PhiloxInPlace(words, key[0], key[1]);
  return std::to_array(words);
}

double TokenUniform(uint64_t seed, uint32_t sequence_index, uint64_t token_index) {
  return UniformOfToken(seed, sequence_index, token_index);
}

}  // namespace bst
