// The process's clock goes forward only, at the pace of std::chrono::steady_clock.
#include "engine/base/clock.h"

#include <chrono>

#include "gtest/gtest.h"

namespace bst {
namespace {

TEST(MonotonicClockTest, NeverGoesBack) {
  const Clock& clock = MonotonicClock();
  const absl::Time begin = clock.Now();
  absl::Time last = begin;
  for (int i = 0; i < 100'000; ++i) {
    const absl::Time now = clock.Now();
    ASSERT_GE(now, last);
    last = now;
  }
  EXPECT_GT(last, begin);
}

TEST(MonotonicClockTest, MeasuresWhatTheSteadyClockMeasures) {
  // An interval of ours, taken inside one of the steady clock, is no longer than that.
  const auto outer_begin = std::chrono::steady_clock::now();
  const absl::Time begin = MonotonicClock().Now();
  const absl::Time end = MonotonicClock().Now();
  const auto outer_end = std::chrono::steady_clock::now();
  EXPECT_LE(end - begin, absl::FromChrono(outer_end - outer_begin));
}

}  // namespace
}  // namespace bst
