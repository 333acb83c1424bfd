// Row: one sequence's share of a step. PoolView: one kind of state of all slots.
//
// A step is ragged: its tokens are packed one after the other, decode rows (one token) beside
// prompt chunks, and each row says which of them are its own and where in its document they stand.
//
// Threads   Values.
// Tested by tests/engine/backend (every operator that takes rows)
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/ids.h"

namespace bst {

struct Row {
  SlotId slot;    // no two rows of a step share one
  int begin = 0;  // packed tokens [begin, end), never empty
  int end = 0;
  int64_t position = 0;  // of token `begin`, from the start of its document
  // Nobody reads the outputs of tokens before this one, packed: operators that say so may give
  // anything. The tokens change the state as ever.
  int outputs_from = 0;

  int num_tokens() const { return end - begin; }
};

// Memory of `slot_bytes` per slot, slot after slot. Its layout within a slot belongs to the backend
// that allocated it; all bytes zero is the state before the first token.
struct PoolView {
  std::byte* base = nullptr;
  size_t slot_bytes = 0;

  template <typename T>
  T* slot(SlotId id) const {
    return reinterpret_cast<T*>(base + static_cast<size_t>(id.value()) * slot_bytes);
  }
};

}  // namespace bst
