#include "engine/backend/cuda/step_graphs.h"

namespace bst {

void StepGraphs::Clear() {
  while (!known_.empty()) Forget(known_.begin());
}

void StepGraphs::Run(cuda::Stream& stream, const cuda::CallList& calls) {
  const uint64_t hash = calls.hash();
  const auto [begin, end] = by_hash_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    Known& known = *it->second;
    if (!(known.calls == calls)) continue;
    known_.splice(known_.begin(), known_, it->second);
    if (known.graph == nullptr && known.can_be_graph) {
      if (cuda::BeginCapture(stream)) {
        calls.RunAll(stream);
        known.graph = cuda::EndCapture(stream);
      }
      known.can_be_graph = known.graph != nullptr;
    }
    if (known.graph != nullptr) {
      cuda::LaunchGraph(stream, *known.graph);
    } else {
      calls.RunAll(stream);
    }
    return;
  }
  calls.RunAll(stream);
  if (known_.size() >= capacity_) Forget(std::prev(known_.end()));
  known_.push_front({.calls = calls});
  by_hash_.emplace(hash, known_.begin());
}

void StepGraphs::Forget(std::list<Known>::iterator known) {
  const auto [begin, end] = by_hash_.equal_range(known->calls.hash());
  for (auto it = begin; it != end; ++it) {
    if (it->second != known) continue;
    by_hash_.erase(it);
    break;
  }
  if (known->graph != nullptr) cuda::DestroyGraph(known->graph);
  known_.erase(known);
}

}  // namespace bst
