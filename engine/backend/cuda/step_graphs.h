// StepGraphs: steps that enqueue the very calls of an earlier step run as one CUDA graph.
//
// All that differs between two steps of the same decoding sequences (tokens, positions, places)
// lies in the arena that the host fills, and so does the number of rows beyond the next of a few
// sizes (CudaDevice::Count): so their calls are the same, byte for byte. There is a graph for each
// size, and others for steps in which something ends a block.
// Calls are kept while the step is put together and made by Run: the first time one by one, the
// second time they are captured, from then on they are a graph.
//
// Ownership   Owns its graphs; what their calls point to outlives it.
// Threads     One.
// Errors      A graph that cannot be made costs only its advantage: the calls are made one by one.
// Tested by   tests/engine/backend/cuda/step_graph_test.cc
#pragma once

#include <cstddef>
#include <list>
#include <unordered_map>

#include "engine/backend/cuda/call_list.h"
#include "engine/backend/cuda/runtime.h"

namespace bst {

class StepGraphs {
 public:
  // At most `capacity` kinds of steps are remembered, those last used.
  explicit StepGraphs(size_t capacity) : capacity_(capacity) {}
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs() { Clear(); }

  void Run(cuda::Stream& stream, const cuda::CallList& calls);
  // For when what calls name by its address may have gone and others have come to its place.
  void Clear();

 private:
  struct Known {
    cuda::CallList calls;
    cuda::Graph* graph = nullptr;  // none yet
    bool can_be_graph = true;
  };
  void Forget(std::list<Known>::iterator known);

  size_t capacity_;
  std::list<Known> known_;  // the last used first
  std::unordered_multimap<uint64_t, std::list<Known>::iterator> by_hash_;
};

}  // namespace bst
