// PackedHeads: the queries, keys and values of one long row as attention on pairs or on bytes takes
// them: head by head, keys and values in blocks that are laid out like a ring. So the projection
// writes what attention would otherwise gather from rows that lie far apart, round and transpose.
//
// Memory    [H] x { queries [n][dh], of BF16 on pairs, float32 on bytes; blocks, each the bytes of
//           a ring's head }, the blocks those that the row's tokens lie in
// Threads   Values; tasks write tokens of their own. REQUIRES of those of one row and head: they
//           part at positions that are multiples of kApart.
// Tested by tests/engine/backend/projected_attention_test.cc, tests/engine/model/model_test.cc
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/backend/attention.h"
#include "engine/backend/cpu/cpu_key_values.h"
#include "engine/backend/row.h"

namespace bst {

class PackedHeads {
 public:
  // Values of so many neighbouring indices share a word.
  static constexpr int kApart = 4;

  // `memory` best begins with a cache line.
  PackedHeads(const KeyValueLayout& layout, const Row& row, void* memory)
      : layout_(layout),
        row_(row),
        first_block_(row.position / layout.rows),
        num_blocks_((row.position + row.num_tokens() - 1) / layout.rows - first_block_ + 1),
        memory_(static_cast<std::byte*>(memory)) {}

  // Whether such heads can be packed.
  static bool Fits(const KeyValueLayout& layout) {
    return layout.group > 1 && layout.head_dim % kPanelOutputs == 0 && layout.rows % kApart == 0;
  }
  size_t bytes(int num_heads) const { return static_cast<size_t>(num_heads) * HeadBytes(); }

  const Row& row() const { return row_; }
  int64_t first_block() const { return first_block_; }
  int64_t num_blocks() const { return num_blocks_; }

  // Of the row's token `token`, and those behind it.
  std::byte* queries(int head, int64_t token) const {
    return Head(head) + static_cast<size_t>(token * layout_.head_dim) * QuerySize();
  }
  // Of the document.
  std::byte* block(int head, int64_t block) const {
    return Head(head) + QueryBytes() +
           static_cast<size_t>(block - first_block_) * layout_.HeadBytes();
  }

 private:
  size_t QuerySize() const { return layout_.group == 2 ? sizeof(BFloat16) : sizeof(float); }
  // A kernel may read queries of as many rows as it multiplies.
  size_t QueryBytes() const {
    return static_cast<size_t>((row_.num_tokens() + kProductRows) * layout_.head_dim) * QuerySize();
  }
  size_t HeadBytes() const {
    return QueryBytes() + static_cast<size_t>(num_blocks_) * layout_.HeadBytes();
  }
  std::byte* Head(int head) const { return memory_ + static_cast<size_t>(head) * HeadBytes(); }

  KeyValueLayout layout_;
  Row row_;
  int64_t first_block_, num_blocks_;
  std::byte* memory_;
};

// run(block, begin, end, token) for the tokens of a row that lie in each of its blocks: at ring
// indices [begin, end), from the row's token `token` on.
template <typename Run>
void ForEachBlock(const Row& row, int64_t window, const Run& run) {
  for (int64_t token = 0; token < row.num_tokens();) {
    const int64_t position = row.position + token, begin = position % window;
    const int64_t end = std::min<int64_t>(window, begin + row.num_tokens() - token);
    run(position / window, begin, end, token);
    token += end - begin;
  }
}

}  // namespace bst
