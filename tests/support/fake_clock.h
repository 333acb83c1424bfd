// FakeClock: time passes when the test says so.
//
// Threads   Thread-safe: the engine thread reads what the test advances.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "engine/base/clock.h"

namespace bst {

class FakeClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixNanos(unix_nanos_); }
  void Advance(absl::Duration duration) { unix_nanos_ += absl::ToInt64Nanoseconds(duration); }

 private:
  std::atomic<int64_t> unix_nanos_ = 1'000'000'000;
};

}  // namespace bst
