#include "clients/stress/timeline.h"

#include <algorithm>
#include <utility>

namespace bst::stress {

Timeline::Bin& Timeline::At(double seconds) {
  seconds = std::max(seconds, 0.0);
  while (seconds >= bin_seconds_ * static_cast<double>(kMaxBins)) {
    for (size_t i = 0; 2 * i < bins_.size(); ++i) {
      Bin merged = std::move(bins_[2 * i]);
      if (2 * i + 1 < bins_.size()) {
        const Bin& second = bins_[2 * i + 1];
        merged.sent += second.sent;
        merged.ended += second.ended;
        merged.failed += second.failed;
        merged.output_tokens += second.output_tokens;
        merged.ttft.Merge(second.ttft);
        merged.itl.Merge(second.itl);
      }
      bins_[i] = std::move(merged);
    }
    bins_.resize((bins_.size() + 1) / 2);
    bin_seconds_ *= 2;
  }
  const auto index = std::min(static_cast<size_t>(seconds / bin_seconds_), kMaxBins - 1);
  if (index >= bins_.size()) bins_.resize(index + 1);
  return bins_[index];
}

}  // namespace bst::stress
