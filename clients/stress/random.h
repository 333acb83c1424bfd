// Random: a small generator of random bits (SplitMix64) that is cheap to seed per request.
//
// The same seed and stream give the same bits. It satisfies UniformRandomBitGenerator.
//
// Threads     Thread-compatible.
// Tested by   tests/clients/stress/arrival_process_test.cc, tests/clients/stress/traffic_test.cc
#pragma once

#include <cstdint>
#include <limits>

namespace bst::stress {

class Random {
 public:
  using result_type = uint64_t;
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return std::numeric_limits<uint64_t>::max(); }

  // Different streams of one seed are independent.
  Random(uint64_t seed, uint64_t stream) : state_(Mix(seed) ^ Mix(~stream)) {}

  uint64_t operator()() { return Mix(state_ += 0x9e3779b97f4a7c15); }

  // Uniform in [0, 1).
  double Uniform() { return static_cast<double>((*this)() >> 11) * 0x1p-53; }

  // Uniform in [low, high]. The bias is below (high - low) / 2^32.
  uint32_t Between(uint32_t low, uint32_t high) {
    const uint64_t range = uint64_t{high} - low + 1;
    return low + static_cast<uint32_t>((((*this)() >> 32) * range) >> 32);
  }

 private:
  static constexpr uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  uint64_t state_;
};

}  // namespace bst::stress
