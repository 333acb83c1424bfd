#include "engine/backend/cuda/step_graphs.h"

#include <algorithm>
#include <iterator>

namespace bst {

void StepGraphs::Clear() {
  while (!known_.empty()) Forget(known_.begin());
  std::fill(seen_.begin(), seen_.end(), 0);
}

void StepGraphs::Run(cuda::Stream& stream, const cuda::CallList& calls) {
  const auto run = [&](Known& known) {
    if (known.graph != nullptr) {
      if (cuda::LaunchGraph(stream, *known.graph)) return;
      known.graph.reset();  // it is not tried again
    }
    calls.RunAll(stream);
  };
  const uint64_t hash = calls.hash();
  const auto [begin, end] = by_hash_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    if (!(it->second->calls == calls)) continue;
    known_.splice(known_.begin(), known_, it->second);
    run(known_.front());
    return;
  }
  if (!WasSeen(hash)) {
    calls.RunAll(stream);
    return;
  }
  if (known_.size() >= capacity_) Forget(std::prev(known_.end()));
  known_.push_front({.calls = calls});
  by_hash_.emplace(hash, known_.begin());
  if (cuda::BeginCapture(stream)) {
    calls.RunAll(stream);
    known_.front().graph = cuda::EndCapture(stream);
  }
  run(known_.front());
}

bool StepGraphs::WasSeen(uint64_t hash) {
  const auto seen = std::find(seen_.begin(), seen_.end(), hash);
  if (seen != seen_.end()) {
    *seen = 0;  // it becomes known, and begins anew when it is forgotten
    return true;
  }
  seen_[next_seen_] = hash;
  next_seen_ = (next_seen_ + 1) % seen_.size();
  return false;
}

void StepGraphs::Forget(std::list<Known>::iterator known) {
  const auto [begin, end] = by_hash_.equal_range(known->calls.hash());
  for (auto it = begin; it != end; ++it) {
    if (it->second != known) continue;
    by_hash_.erase(it);
    break;
  }
  known_.erase(known);
}

}  // namespace bst
