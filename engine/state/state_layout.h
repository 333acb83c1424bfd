// StateLayout: which state a sequence of a given model keeps, region by region.
//
// A region is one kind of state of one layer: its ring, its context ring, its SSM state. All sizes
// are fixed by the checkpoint, so a sequence's memory is known before it starts.
//
// Threads   A value.
// Tested by tests/engine/state/state_pool_test.cc
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace bst {

struct StateRegion {
  std::string name;       // "layers.3.ring"
  size_t slot_bytes = 0;  // as the backend asks

  // Of a slot in the pool: whole cache lines, so that two sequences never share one; worker threads
  // write them at the same time. Less than slot_bytes where that overflows.
  size_t padded_bytes() const { return (slot_bytes + 63) / 64 * 64; }
};

class StateLayout {
 public:
  // Returns the region's index.
  int Add(StateRegion region) {
    regions_.push_back(std::move(region));
    return static_cast<int>(regions_.size()) - 1;
  }
  const std::vector<StateRegion>& regions() const { return regions_; }
  size_t bytes_per_slot() const {
    size_t bytes = 0;
    for (const StateRegion& region : regions_) bytes += region.padded_bytes();
    return bytes;
  }

 private:
  std::vector<StateRegion> regions_;
};

}  // namespace bst
