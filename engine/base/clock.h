// Clock: the one source of intervals (timings, deadlines, durations of steps).
//
// The wall clock may be set back or forward at any moment; intervals taken from it would then be
// negative or hours long. This one only goes forward. Its times are comparable among themselves and
// mean nothing as dates.
//
// Threads   Thread-safe.
// Tested by tests/engine/base/clock_test.cc; tests use FakeClock of tests/support instead.
#pragma once

#include "absl/time/time.h"

namespace bst {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;  // never less than what an earlier call returned
};

// The process's own: std::chrono::steady_clock.
const Clock& MonotonicClock();

}  // namespace bst
