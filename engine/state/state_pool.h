// StatePool: the fixed set of slots that hold the recurrent state of every live sequence.
//
// A BST sequence needs constant memory, so all of it is allocated once, at start-up. "Out of
// memory" can then only mean "no free slot": an ordinary answer that the scheduler plans around,
// never a failure in the middle of a step.
//
// Invariants  (1) A slot is free, or held by exactly one SlotLease.
//             (2) A new lease sees only zeros: no sequence ever reads another's state.
//             (3) num_free() + live leases == num_slots().
// Ownership   The pool owns the memory and must outlive every lease (checked in ~StatePool).
// Threads     Thread-compatible. In the server only the engine thread touches it.
// Tested by   tests/engine/state/state_pool_test.cc
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/backend.h"
#include "engine/base/ids.h"
#include "engine/state/state_layout.h"

namespace bst {

class StatePool;

// The right to use one slot. Move-only; returns the slot when destroyed.
class SlotLease {
 public:
  SlotLease(SlotLease&& other) noexcept;
  SlotLease& operator=(SlotLease&& other) noexcept;
  ~SlotLease();

  SlotId id() const;  // REQUIRES: not moved from.

 private:
  friend class StatePool;
  SlotLease(StatePool* pool, SlotId id) : pool_(pool), id_(id) {}

  StatePool* pool_;
  SlotId id_;
};

class StatePool {
 public:
  // Allocates `num_slots` slots on `backend`, which must outlive the pool.
  // Errors: kResourceExhausted if the device cannot hold num_slots * layout.bytes_per_slot().
  static absl::StatusOr<std::unique_ptr<StatePool>> Create(Backend& backend,
                                                           const StateLayout& layout,
                                                           int num_slots);
  StatePool(const StatePool&) = delete;
  StatePool& operator=(const StatePool&) = delete;
  ~StatePool();

  // A slot, zeroed, or nullopt when every slot is leased.
  std::optional<SlotLease> Acquire();

  // Slot `to` becomes a copy of slot `from`: the sequence goes on in both. REQUIRES: both are
  // leased and not the same.
  void Copy(SlotId from, SlotId to);

  // The state of all slots for one region of the layout.
  PoolView region(int index) const;

  int num_slots() const { return num_slots_; }
  int num_free() const { return static_cast<int>(free_.size()); }

 private:
  friend class SlotLease;
  StatePool(Backend& backend, int num_slots) : backend_(backend), num_slots_(num_slots) {}
  void Return(SlotId id);
  bool IsLeased(SlotId id) const;

  Backend& backend_;
  int num_slots_;
  std::vector<Buffer> buffers_;  // one per region
  std::vector<PoolView> regions_;
  std::vector<SlotId> free_;  // lowest ids are handed out first
};

}  // namespace bst
