#include "engine/state/state_pool.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/annotate.h"
#include "engine/base/check.h"

namespace bst {

SlotLease::SlotLease(SlotLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}

SlotLease& SlotLease::operator=(SlotLease&& other) noexcept {
  if (this != &other) {
    if (pool_ != nullptr) pool_->Return(id_);
    pool_ = std::exchange(other.pool_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

SlotLease::~SlotLease() {
  if (pool_ != nullptr) pool_->Return(id_);
}

SlotId SlotLease::id() const {
  BST_CHECK(pool_ != nullptr, "lease was moved from");
  return id_;
}

absl::StatusOr<std::unique_ptr<StatePool>> StatePool::Create(Backend& backend,
                                                             const StateLayout& layout,
                                                             int num_slots) {
  BST_CHECK(num_slots >= 1, "num_slots is ", num_slots);
  const auto slots = static_cast<size_t>(num_slots);
  size_t all_bytes = 0;  // of a slot
  for (const StateRegion& region : layout.regions()) {
    const size_t slot_bytes = region.padded_bytes();
    all_bytes += slot_bytes;
    if (slot_bytes < region.slot_bytes || all_bytes < slot_bytes ||
        all_bytes > std::numeric_limits<size_t>::max() / slots) {
      return absl::ResourceExhaustedError(absl::StrCat("state ", region.name, ": ", num_slots,
                                                       " slots of ", region.slot_bytes,
                                                       " bytes exceed the address space"));
    }
  }
  // All of it is asked for at once: a region at a time, memory would be touched for nothing.
  const size_t available = backend.AvailableBytes();
  if (slots * all_bytes > available) {
    return absl::ResourceExhaustedError(
        absl::StrCat("state: ", num_slots, " slots of ", all_bytes, " bytes, but ", available,
                     " bytes of memory are available: enough for ", available / all_bytes));
  }
  std::unique_ptr<StatePool> pool(new StatePool(backend, num_slots));
  // A min-heap. It never grows again, so that returning a slot cannot fail.
  pool->free_.reserve(slots);
  for (int id = 0; id < num_slots; ++id) pool->free_.push_back(SlotId(id));
  for (const StateRegion& region : layout.regions()) {
    const size_t slot_bytes = region.padded_bytes();
    absl::StatusOr<Buffer> buffer = backend.Allocate(slot_bytes * slots);
    if (!buffer.ok()) {
      return Annotate(buffer.status(), absl::StrCat("state ", region.name, ", ", num_slots,
                                                    " slots of ", slot_bytes, " bytes"));
    }
    pool->regions_.push_back({static_cast<std::byte*>(buffer->data()), slot_bytes});
    pool->buffers_.push_back(*std::move(buffer));
  }
  return pool;
}

StatePool::~StatePool() {
  BST_CHECK(num_free() == num_slots_, num_slots_ - num_free(), " slots are still leased");
}

std::optional<SlotLease> StatePool::Acquire() {
  if (free_.empty()) return std::nullopt;
  std::pop_heap(free_.begin(), free_.end(), std::greater<>());
  const SlotId id = free_.back();
  free_.pop_back();
  // Cleared here rather than on return: that is off the path of the sequence that ends, and holds
  // for the first lease too.
  for (const PoolView& region : regions_) backend_.ClearSlot(region, id);
  return SlotLease(this, id);
}

void StatePool::Copy(SlotId from, SlotId to) {
  BST_DCHECK(IsLeased(from) && IsLeased(to) && from != to, "copy of slot ", from.value(), " to ",
             to.value());
  for (const PoolView& region : regions_) backend_.CopySlot(region, from, region, to);
}

bool StatePool::IsLeased(SlotId id) const {
  return 0 <= id.value() && id.value() < num_slots_ &&
         std::find(free_.begin(), free_.end(), id) == free_.end();
}

PoolView StatePool::region(int index) const {
  BST_CHECK(0 <= index && static_cast<size_t>(index) < regions_.size(), "region ", index, " of ",
            regions_.size());
  return regions_[static_cast<size_t>(index)];
}

void StatePool::Return(SlotId id) {
  BST_DCHECK(IsLeased(id), "slot ", id.value(), " is free already");
  free_.push_back(id);
  std::push_heap(free_.begin(), free_.end(), std::greater<>());
}

}  // namespace bst
