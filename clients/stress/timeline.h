// Timeline: what happened when, in at most kMaxBins bins; when a run outlasts them, the bins become
// twice as wide.
//
// Threads     Thread-compatible.
// Tested by   tests/clients/stress/recorder_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "clients/stress/histogram.h"

namespace bst::stress {

class Timeline {
 public:
  static constexpr size_t kMaxBins = 512;

  struct Bin {
    uint64_t sent = 0, ended = 0, failed = 0, output_tokens = 0;  // failed: of the ended ones
    Histogram ttft{5}, itl{5};                                    // percentiles within 1.6 %
  };

  // The bin at `seconds` (clamped to 0) since the start of the run.
  Bin& At(double seconds);

  double bin_seconds() const { return bin_seconds_; }
  const std::vector<Bin>& bins() const { return bins_; }

 private:
  double bin_seconds_ = 0.25;
  std::vector<Bin> bins_;
};

}  // namespace bst::stress
