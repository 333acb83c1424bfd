// WaitUntil: waits for what nothing tells a test of, by asking again and again, up to a limit.
//
// For states that one can only look at. Where there is an event, a hook or a fake clock, use that.
//
// Threads   Free function, thread-safe.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace bst {

// The limit is for tests that fail: far above what a sanitizer on a busy machine needs.
inline ::testing::AssertionResult WaitUntil(absl::FunctionRef<bool()> holds,
                                            absl::Duration limit = absl::Minutes(1)) {
  const absl::Time deadline = absl::Now() + limit;
  while (!holds()) {
    if (absl::Now() > deadline) {
      return ::testing::AssertionFailure() << "still not after " << absl::FormatDuration(limit);
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
  return ::testing::AssertionSuccess();
}

}  // namespace bst
