// ArrivalProcess: the gaps between the sends of an open loop.
//
//   constant   every gap is 1 / rate
//   poisson    exponential gaps: independent users
//   gamma      gamma-distributed gaps with shape `burstiness`: below 1 burstier than poisson, 1 is
//              poisson, above 1 more even. Variance 1 / (burstiness * rate^2).
//
// Deterministic by seed.
//
// Threads     Thread-compatible.
// Tested by   tests/clients/stress/arrival_process_test.cc
#pragma once

#include <cstdint>

#include "clients/stress/random.h"

namespace bst::stress {

enum class Arrivals { kConstant, kPoisson, kGamma };

class ArrivalProcess {
 public:
  // rate (requests per second) and burstiness are above 0; burstiness matters to kGamma alone.
  ArrivalProcess(Arrivals kind, double rate, double burstiness, uint64_t seed);

  // Seconds from one send to the next.
  double NextGap();

 private:
  const Arrivals kind_;
  const double rate_, burstiness_;
  Random random_;
};

}  // namespace bst::stress
