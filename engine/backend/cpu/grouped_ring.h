// GroupedRing: where the keys and values of one head lie where attention multiplies groups of four
// bytes, two BF16 (a pair ring) or four INT8 (a byte ring).
//
//   head    [chunks], each of kChunkIndices ring indices, the last one of what is left
//   chunk   { keys [tiles][dh / group][16][group], dh padded to a step, of pairs with zeros, of
//           bytes with anything; of bytes then scales [tiles]; values
//           [dh / 16][indices / group][16][group], dh padded to 16 }
//   scales  [16] { BF16 of the key, BF16 of the value }
//
// A byte of a value is the integer itself, of a key 128 more: the instructions multiply signed by
// unsigned bytes, and weights have no sign where queries do (attention_bytes.inl).
//
// Attention takes a chunk's keys, scales and values, then the next chunk's, in the order of memory,
// and a single query on dot products one line at a time: a head, and the heads behind it, are one
// stream that the processor sees coming. README.md has what a decoding query gained by it.
//
// Ring indices are padded to whole tiles, of values to whole steps, of kStepGroups groups. Offsets
// are in bytes from the head's first.
//
// Threads   A value.
// Tested by tests/engine/backend/grouped_ring_test.cc, agreement_test.cc
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/backend/cpu/kernels.h"

namespace bst {

// Of the keys or values of sixteen indices or columns, a group each.
inline constexpr int64_t kVectorBytes = 4 * kLanes;

template <int kNumberBytes>
struct GroupedRing {
  static constexpr int64_t kGroupBytes = 4;
  static constexpr int64_t kGroup = kGroupBytes / kNumberBytes;  // numbers side by side
  static constexpr int64_t kStep = kGroup * kStepGroups;         // ring indices
  static constexpr int64_t kScaleBytes = kNumberBytes == 1 ? kVectorBytes : 0;  // of a tile

  static_assert(kChunkIndices % kStep == 0 && kStep % kLanes == 0);

  // REQUIRES: num_rows >= 1.
  GroupedRing(int64_t num_rows, int64_t head_dim)
      : key_rows(RoundUp(num_rows, kLanes)),
        value_rows(RoundUp(num_rows, kStep)),
        dims(RoundUp(head_dim, kStep)),
        columns(RoundUp(head_dim, kLanes)),
        tile_bytes(kLanes * dims * kNumberBytes) {}

  // Keys 16 `tile` and behind; the next tile of the chunk follows.
  int64_t Tile(int64_t tile) const {
    return ChunkOf(tile * kLanes) + tile * kLanes % kChunkIndices / kLanes * tile_bytes;
  }
  // Of a byte ring; those of the chunk's next tile follow.
  int64_t Scales(int64_t tile) const {
    const int64_t index = tile * kLanes;
    return ScalesOf(index) + index % kChunkIndices / kLanes * kScaleBytes;
  }
  // Sixteen columns of values kStep `step` and behind; the chunk's next step follows, and the next
  // columns lie ValueStride behind.
  int64_t Step(int64_t step) const {
    return ValuesOf(step * kStep) + step * kStep % kChunkIndices / kGroup * kVectorBytes;
  }
  int64_t ValueStride(int64_t step) const {
    return ChunkRows(value_rows, step * kStep) / kGroup * kVectorBytes;
  }

  // Group 0 of key `index`; the others lie kVectorBytes apart.
  int64_t Key(int64_t index) const { return Tile(index / kLanes) + index % kLanes * kGroupBytes; }
  // The groups of value `index`, of sixteen columns.
  int64_t Value(int64_t index) const {
    return Step(index / kStep) + index % kStep / kGroup * kVectorBytes;
  }

  int64_t bytes() const { return KeyBytes(key_rows) + ValueBytes(value_rows); }

  int64_t key_rows;    // the ring's indices, padded
  int64_t value_rows;  // likewise
  int64_t dims;        // of a key, padded
  int64_t columns;     // of a value, padded
  int64_t tile_bytes;  // of keys

 private:
  // With scales.
  int64_t KeyBytes(int64_t indices) const { return indices / kLanes * (tile_bytes + kScaleBytes); }
  int64_t ValueBytes(int64_t indices) const { return indices * columns * kNumberBytes; }
  // Of all `rows`, those in the chunk of an index.
  static int64_t ChunkRows(int64_t rows, int64_t index) {
    return std::min<int64_t>(kChunkIndices, rows - index / kChunkIndices * kChunkIndices);
  }
  // Where the chunk of an index begins, its scales and its values.
  int64_t ChunkOf(int64_t index) const {
    const int64_t before = index / kChunkIndices * kChunkIndices;
    return KeyBytes(before) + ValueBytes(before);
  }
  int64_t ScalesOf(int64_t index) const {
    return ChunkOf(index) + ChunkRows(key_rows, index) / kLanes * tile_bytes;
  }
  int64_t ValuesOf(int64_t index) const {
    return ChunkOf(index) + KeyBytes(ChunkRows(key_rows, index));
  }
};

using PairRing = GroupedRing<2>;
using ByteRing = GroupedRing<1>;

}  // namespace bst
