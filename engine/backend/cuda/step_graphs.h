// StepGraphs: steps that enqueue the very calls of an earlier step run as one CUDA graph.
//
// All that differs between two steps of the same decoding sequences (tokens, positions, places)
// lies in the arena that the host fills, and so does the number of rows beyond the next of a few
// sizes (CudaDevice::Count): so their calls are the same, byte for byte. There is a graph for each
// size, and others for steps in which something ends a block.
// Calls are kept while the step is put together and made by Run: the first time one by one, the
// second time they are captured, from then on they are a graph. Of a step that was seen once a hash
// alone is kept, so that those that never come again (prompts, first draws) take no graph's place;
// if two have the same hash, one is captured a step earlier, no more.
//
// Ownership   Owns its graphs; what their calls point to outlives it.
// Threads     One.
// Errors      A graph that cannot be made, or not be launched, costs only its advantage: the calls
//             are made one by one.
// Tested by   tests/engine/backend/cuda/step_graph_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "engine/backend/cuda/call_list.h"
#include "engine/backend/cuda/runtime.h"

namespace bst {

class StepGraphs {
 public:
  // At most `capacity` graphs are kept, those last used.
  explicit StepGraphs(size_t capacity) : capacity_(capacity), seen_(kSeenOfAGraph * capacity) {}
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  void Run(cuda::Stream& stream, const cuda::CallList& calls);
  // For when what calls name by its address may have gone and others have come to its place.
  void Clear();

 private:
  static constexpr size_t kSeenOfAGraph = 16;

  struct Known {
    cuda::CallList calls;
    cuda::GraphPtr graph = nullptr;  // where it could be made
  };
  // Whether a step of that hash was seen, of which nothing else is known. From now on it was.
  bool WasSeen(uint64_t hash);
  void Forget(std::list<Known>::iterator known);

  size_t capacity_;
  std::vector<uint64_t> seen_;  // hashes, a ring; 0: none
  size_t next_seen_ = 0;
  std::list<Known> known_;  // the last used first
  std::unordered_multimap<uint64_t, std::list<Known>::iterator> by_hash_;
};

}  // namespace bst
