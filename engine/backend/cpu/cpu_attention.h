// Attention of the CPU backend.
//
// A query at offset i of its block sees ring index j in its own block up to i and in the block
// before beyond: decode reads the ring in place, a prompt block reads two copies (own block, block
// before; cpu_key_values.h), or what a long row's projection wrote (cpu_packed_heads.h), and picks
// by index. So all do the same arithmetic in the same order.
// A task takes several blocks of a row in turn where there are tasks enough: the copy of a block
// then serves the next block too. Of a single token a task likewise takes several heads, and knows
// what it reads next.
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/agreement_test.cc, projected_attention_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"
#include "engine/backend/cpu/cpu_packed_heads.h"

namespace bst {

class CpuAttention : public AttentionWeights {
 public:
  // See Backend::PackAttention.
  static absl::StatusOr<std::unique_ptr<CpuAttention>> Pack(CpuContext& context,
                                                            const AttentionParameters& parameters);
  static size_t RingBytes(const CpuContext& context, const AttentionSpec& spec);

  // See Backend::Attention. `segments` is scratch that keeps its capacity between calls.
  struct Segment;
  void Run(CpuContext& context, TensorView q, TensorView k, TensorView v,
           absl::Span<const Row> rows, PoolView ring, TensorView out,
           std::vector<Segment>& segments) const;

  // ---- Of a row whose heads are packed. REQUIRES: PackedHeads::Fits(layout) ----

  KeyValueLayout Layout(const CpuContext& context) const;
  // Before its keys and values are written: those of its first block that the ring has, and what
  // completes each block.
  void StartPacked(CpuContext& context, const PackedHeads& heads, PoolView ring) const;
  // Keys and values [n][dh] of one head, of the row's tokens from `token` on. Any thread.
  void WritePacked(const CpuContext& context, const PackedHeads& heads, int head, int64_t token,
                   int64_t n, const float* k, const float* v) const;
  // As Run. out [T, H * dh]: of all rows.
  void RunPacked(CpuContext& context, const PackedHeads& heads, PoolView ring,
                 TensorView out) const;

  size_t bytes() const override { return tables_.bytes(); }

 private:
  explicit CpuAttention(const AttentionSpec& spec) : AttentionWeights(spec) {}

  // Head: HeadKeyValues, HeadPairs or HeadQuads.
  template <typename Head>
  void RunTyped(CpuContext& context, TensorView q, TensorView k, TensorView v,
                absl::Span<const Row> rows, PoolView ring, TensorView out,
                absl::Span<const Segment> segments) const;
  // Of one head. A single token's own key and value come to the ring outside: before, if it sees
  // itself, else afterwards.
  template <typename Head>
  void RunSegments(CpuContext& context, int thread, const KeyValueLayout& layout,
                   absl::Span<const Segment> segments, int head, bool next_head, TensorView q,
                   TensorView k, TensorView v, PoolView ring, TensorView out) const;
  template <typename Head>
  void StartPackedTyped(CpuContext& context, const PackedHeads& heads, PoolView ring) const;
  template <typename Head>
  void RunPackedTyped(CpuContext& context, const PackedHeads& heads, PoolView ring,
                      TensorView out) const;
  AttendTask HeadTask(int head, float* scores) const;
  bool PreviousVisible(int64_t block) const;

  const float* scale() const { return static_cast<const float*>(tables_.data()); }
  const float* bias(int head) const;

  bool has_bias_ = false;
  Buffer tables_;  // scale [H]; then, with a bias, [H][2 W]: the biases by window position, twice
                   // in a row
};

// The tokens of one row that lie in one block and whose outputs are read. A row's follow one
// another.
struct CpuAttention::Segment {
  Row row;
  int64_t block;
  int begin;   // first packed token
  int offset;  // its offset in the block
  int count;
  bool begins_task;
};

}  // namespace bst
