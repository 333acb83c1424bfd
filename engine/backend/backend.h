// Backend: the operator contract. The forward pass (engine/model) is written in these operators
// alone; each implementation (reference, cpu, cuda) gives them a machine.
//
// Symbols   T packed tokens of a step, R rows (sequences), D model width, H heads, dh head size,
//           W window, V vocabulary.
// Tensors   Activations are float32 matrices [T, columns] on the device, their rows possibly
//           strided. Weights are packed once, at load, as the backend likes them. State lies in
//           pools indexed by slot; nothing is gathered or scattered.
//
// Invariants
//   (1) Batch law: a token's result depends on its own row alone, bit for bit: neither on the other
//       rows of the step, nor on the slot, nor on where the row was cut into steps. Every operator
//       therefore computes each token with one fixed sequence of operations, whatever T is; in
//       particular a linear layer sums along its inputs in one order for every number of rows.
//   (2) Operators never fail on valid shapes (shapes are checked; a mismatch is our bug). A device
//       failure sticks and is reported by Sync().
//   (3) No operator allocates once it has seen its largest step (the reference may).
// Ownership Packed weights are owned by the caller and die before the backend.
// Threads   Engine thread only, but for device_memory(): one call at a time. The backend may use
//           threads of its own.
// Errors    Allocate, Pack..: kResourceExhausted; PackSsm, PackDplr: kFailedPrecondition (float32).
// Tested by tests/engine/backend (every backend against the reference over awkward shapes; each
//           operator's bits under cuts and neighbours), tests/engine/model/model_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/attention.h"
#include "engine/backend/convolution.h"
#include "engine/backend/row.h"
#include "engine/backend/sampling.h"
#include "engine/backend/ssm.h"
#include "engine/base/check.h"
#include "engine/base/device_memory.h"
#include "engine/base/ids.h"
#include "engine/tensor/buffer.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

// Packed forms; each backend derives its own and accepts only those it made.
class PackedWeights {
 public:
  virtual ~PackedWeights() = default;
  virtual size_t bytes() const = 0;
};
class EmbeddingWeights : public PackedWeights {};
class LinearWeights : public PackedWeights {
 public:
  LinearWeights(int in_features, int out_features)
      : in_features_(in_features), out_features_(out_features) {}
  int in_features() const { return in_features_; }
  int out_features() const { return out_features_; }

 private:
  int in_features_;
  int out_features_;
};
class AttentionWeights : public PackedWeights {
 public:
  explicit AttentionWeights(const AttentionSpec& spec) : spec_(spec) {}
  const AttentionSpec& spec() const { return spec_; }

 private:
  AttentionSpec spec_;
};
class ContextWeights : public PackedWeights {
 public:
  explicit ContextWeights(const ContextSpec& spec) : spec_(spec) {}
  const ContextSpec& spec() const { return spec_; }

 private:
  ContextSpec spec_;
};
class SsmWeights : public PackedWeights {
 public:
  explicit SsmWeights(const SsmSpec& spec) : spec_(spec) {}
  const SsmSpec& spec() const { return spec_; }

 private:
  SsmSpec spec_;
};
class ScanWeights : public PackedWeights {};

// What a linear layer does with its sums before they are stored.
enum class LinearEpilogue {
  kStore,  // out  = scale * sum
  kRelu,   // out  = max(0, sum)
  kGelu,   // out  = gelu(sum), exact erf form
  kAdd,    // out += sum
};
struct LinearOptions {
  LinearEpilogue epilogue = LinearEpilogue::kStore;
  float scale = 1.0f;  // kStore only
};

// What ProjectHeads does with its first columns.
struct HeadOptions {
  int64_t normalized = 0;  // so many columns are heads to normalise; 0: none
  int head_dim = 0;        // where there are some
  TensorView rotary = {};  // as for NormalizeHeads
};

// What ProjectAttention gives to ProjectedAttention.
struct ProjectedHeads {
  TensorView q, k, v;  // [T, H * dh]; of rows that are not packed
  TensorView others;   // [T, out - 3 H * dh]: the columns behind them
  // By row: whether the backend keeps q, k and v in a form of its own; empty: none. Until its next
  // ProjectAttention.
  absl::Span<const uint8_t> packed;
};

enum class GateActivation { kGelu, kSilu };

// A matrix as a pool that Backend::CopySlot takes: so many rows of it are a slot each.
// REQUIRES: float32, row after row.
inline PoolView PoolOf(const TensorView& matrix, int64_t rows_of_slot = 1) {
  BST_CHECK(matrix.dtype() == DType::kF32 && matrix.row_stride() == matrix.dim(1), "rows of ",
            matrix.dim(1), " ", matrix.row_stride(), " apart");
  return {static_cast<std::byte*>(matrix.data()),
          static_cast<size_t>(rows_of_slot * matrix.dim(1)) * sizeof(float)};
}

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;  // "cpu (avx512, 2 threads)"
  virtual int num_threads() const = 0;
  // Of a device with memory of its own; nullopt: it is the host's, or the driver does not say. Any
  // thread may ask.
  virtual std::optional<DeviceMemory> device_memory() const { return std::nullopt; }
  // What Allocate can give just now, all buffers together; SIZE_MAX: that is found out at no cost,
  // by asking for it.
  virtual size_t AvailableBytes() const = 0;
  // Whether I8 is among the types of PackLinear and of keys and values. Without, nobody asks for
  // it.
  virtual bool HasInt8() const { return false; }
  // Whether ProjectAttention may give attention a form of the backend's own. Without, it takes no
  // `others`.
  virtual bool PacksHeads() const { return false; }

  // ---- Memory and weights: at load ----

  // Zeroed memory of this device. Errors: kResourceExhausted.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) = 0;
  // The same, and the host may read it once Sync() has returned: for results such as logits.
  virtual absl::StatusOr<Buffer> AllocateHostReadable(size_t bytes) { return Allocate(bytes); }

  // table [V, D] of any floating type, kept as `type` (F32 or BF16).
  virtual absl::StatusOr<std::unique_ptr<EmbeddingWeights>> PackEmbedding(TensorView table,
                                                                          DType type) = 0;
  // parts: [out_i, in] each, of any floating type, stacked along `out`, kept as `type`: F32, BF16
  // or I8. With BF16 the inputs of Linear are rounded to BF16 as well; sums are float32. With I8
  // weights and inputs are quantised as int8.h says; more than kMaxInt8Inputs inputs make it BF16.
  virtual absl::StatusOr<std::unique_ptr<LinearWeights>> PackLinear(
      absl::Span<const TensorView> parts, DType type) = 0;
  virtual absl::StatusOr<std::unique_ptr<AttentionWeights>> PackAttention(
      const AttentionParameters& parameters) = 0;
  virtual absl::StatusOr<std::unique_ptr<ContextWeights>> PackContextAttention(
      const ContextParameters& parameters) = 0;
  virtual absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsm(const SsmParameters& parameters) = 0;
  virtual absl::StatusOr<std::unique_ptr<SsmWeights>> PackDplr(
      const DplrParameters& parameters) = 0;
  virtual absl::StatusOr<std::unique_ptr<SsmWeights>> PackConvolution(
      const ConvolutionParameters& parameters) = 0;
  // a_minus_one [P, 2] F32.
  virtual absl::StatusOr<std::unique_ptr<ScanWeights>> PackScan(TensorView a_minus_one) = 0;
  // A float32 vector on the device, from a host vector of any floating type.
  virtual absl::StatusOr<Buffer> PackVector(TensorView vector) = 0;

  // Bytes of one slot of the pools that Attention, ContextAttention, Ssm and Scan take.
  virtual size_t RingBytes(const AttentionSpec& spec) const = 0;
  virtual size_t ContextBytes(const ContextSpec& spec) const = 0;
  virtual size_t SsmStateBytes(const SsmWeights& weights) const = 0;
  virtual size_t ScanStateBytes(const ScanWeights& weights) const = 0;
  // Back to all zeros: the state before the first token.
  virtual void ClearSlot(PoolView pool, SlotId slot) = 0;
  // One slot of `to` becomes a copy of one of `from`, byte by byte; of slots of two sizes the
  // smaller's worth. Matrices may be seen as pools (PoolOf).
  virtual void CopySlot(PoolView from, SlotId from_slot, PoolView to, SlotId to_slot) = 0;

  // ---- Operators: every step ----

  // out[t] = table[tokens[t]].  out [T, D]. REQUIRES: 0 <= token < V.
  virtual void Embed(const EmbeddingWeights& table, absl::Span<const TokenId> tokens,
                     TensorView out) = 0;

  // out[t] = gain * x[t] / sqrt(mean(x[t]^2) + epsilon).  x, out [T, D], may be the same; gain [D]
  // F32.
  virtual void RmsNorm(TensorView x, TensorView gain, float epsilon, TensorView out) = 0;

  // out = epilogue(x W^T).  x [T, in], out [T, out]; must not overlap.
  virtual void Linear(TensorView x, const LinearWeights& weights, const LinearOptions& options,
                      TensorView out) = 0;

  // x += act(RmsNorm(x) up^T) down^T: the operators above one after the other, bit for bit. `act`
  // is no kAdd. x [T, D]; normed [T, D] and hidden [T, F] are theirs, of any value afterwards; a
  // backend may keep rows in its caches instead.
  virtual void FeedForward(TensorView x, TensorView gain, float epsilon, const LinearWeights& up,
                           LinearEpilogue act, const LinearWeights& down, TensorView normed,
                           TensorView hidden) {
    RmsNorm(x, gain, epsilon, normed);
    Linear(normed, up, {.epilogue = act}, hidden);
    Linear(hidden, down, {.epilogue = LinearEpilogue::kAdd}, x);
  }

  // out[t, f] = act(x[t, f]) * x[t, F + f].  x [T, 2F], out [T, F]; must not overlap.
  virtual void Gate(TensorView x, GateActivation activation, TensorView out) = 0;

  // Each head's vector becomes v / sqrt(sum v^2 + 1e-6), in place.  x [T, heads * head_dim].
  // Where `rotary` is not empty it is then rotated: as by Rotate, bit for bit, in one pass.
  // REQUIRES there: head_dim is even.
  virtual void NormalizeHeads(TensorView x, int head_dim, TensorView rotary) = 0;

  // heads = RmsNorm(x) W^T, its first columns then by NormalizeHeads: the operators above one after
  // the other, bit for bit. x [T, D]; heads [T, out]; must not overlap. normed [T, D] is theirs, of
  // any value afterwards; a backend may keep rows in its caches instead.
  virtual void ProjectHeads(TensorView x, TensorView gain, float epsilon,
                            const LinearWeights& weights, const HeadOptions& options,
                            TensorView normed, TensorView heads) {
    RmsNorm(x, gain, epsilon, normed);
    Linear(normed, weights, {}, heads);
    if (options.normalized == 0) return;
    NormalizeHeads(heads.Columns(0, options.normalized), options.head_dim, options.rotary);
  }

  // heads = ProjectHeads, whose columns are q, k and v of `attention`, then others; q and k are
  // normalised, or none. A backend may put the q, k and v of rows into the memory of `heads`
  // [T, out] in whatever form ProjectedAttention takes them, and their others into `others`
  // [T, out - 3 H * dh], which is empty where there are none. The bits are the same. It may read
  // the ring; that, `heads` and `others` stay as they are until ProjectedAttention.
  virtual ProjectedHeads ProjectAttention(TensorView x, TensorView gain, float epsilon,
                                          const LinearWeights& weights, const HeadOptions& options,
                                          const AttentionWeights& attention,
                                          absl::Span<const Row> /*rows*/, PoolView /*ring*/,
                                          TensorView normed, TensorView heads,
                                          TensorView /*others*/) {
    ProjectHeads(x, gain, epsilon, weights, options, normed, heads);
    const int64_t a = int64_t{attention.spec().num_heads} * attention.spec().head_dim;
    return {.q = heads.Columns(0, a),
            .k = heads.Columns(a, 2 * a),
            .v = heads.Columns(2 * a, 3 * a),
            .others = heads.Columns(3 * a, heads.dim(1)),
            .packed = {}};
  }

  // cosines and sines of the angles position * theta^(-2j / dh), computed in float64.
  // table [T, dh]: first the dh / 2 cosines, then the sines.
  virtual void RotaryTable(absl::Span<const Row> rows, double theta, TensorView table) = 0;
  // (a, b) = (x[j], x[j + dh/2]) becomes (a cos - b sin, b cos + a sin) in each head, in place.
  virtual void Rotate(TensorView x, int head_dim, TensorView table) = 0;

  // Attention of each row's queries over its ring and its own new keys (attention.h), which then
  // replace the oldest in the ring.  q, k, v, out [T, H * dh]; out overlaps none of them. Before a
  // row's outputs_from `out` may be anything: but for the reference, backends leave those tokens
  // out, if the row has more than one.
  virtual void Attention(const AttentionWeights& weights, TensorView q, TensorView k, TensorView v,
                         absl::Span<const Row> rows, PoolView ring, TensorView out) = 0;

  // Attention of what ProjectAttention gave, of the same rows and the same ring, which takes the
  // new keys.
  virtual void ProjectedAttention(const AttentionWeights& weights, const ProjectedHeads& heads,
                                  absl::Span<const Row> rows, PoolView ring, TensorView out) {
    Attention(weights, heads.q, heads.k, heads.v, rows, ring, out);
  }

  // Writes rows of k, v [n, H * dh] to contexts (attention.h). No two of `rows` share a row; they
  // may be neighbours in one context.
  virtual void StoreContext(const ContextWeights& weights, TensorView k, TensorView v,
                            absl::Span<const ContextRows> rows, PoolView contexts) = 0;
  // Attention of q [n, H * dh] to contexts. No query is in two of `uses`; for one in none `out` may
  // be anything.  out [n, H * dh]; must not overlap.
  virtual void ContextAttention(const ContextWeights& weights, TensorView q,
                                absl::Span<const ContextUse> uses, TensorView out) = 0;

  // Advances each row's state by its tokens (ssm.h, convolution.h).  u [T, D]; y [T, C D], or
  // [E, C D] with outputs at block ends only; must not overlap.
  virtual void Ssm(const SsmWeights& weights, TensorView u, absl::Span<const Row> rows,
                   PoolView state, TensorView y) = 0;
  // x_t = A x_{t-1} + v_t over each row, in place (ssm.h).  v [T, 2 P]: the real parts, then the
  // imaginary ones; becomes x.
  virtual void Scan(const ScanWeights& weights, TensorView v, absl::Span<const Row> rows,
                    PoolView state) = 0;

  // y[t, c D + i] += gain[c D + i] * x[t, i].  x [n, D], gain [C D] F32, y [n, C D]; must not
  // overlap.
  virtual void AddScaled(TensorView x, TensorView gain, TensorView y) = 0;
  // y *= x.  x, y [n, columns]; must not overlap.
  virtual void Multiply(TensorView x, TensorView y) = 0;
  // x[i] += table[i mod S].  x [n S, D], table [S, D] F32.
  virtual void AddTable(TensorView table, TensorView x) = 0;
  // The gated update of recurrent states: z = s g + z (1 - g).  s, z [n, D], g [D] F32; must not
  // overlap.
  virtual void Interpolate(TensorView s, TensorView gate, TensorView z) = 0;

  // out[i] = x[indices[i]].  x [T, D], out [n, D]; must not overlap.
  virtual void GatherRows(TensorView x, absl::Span<const int> indices, TensorView out) = 0;

  // logprobs[i] = log softmax(logits[i])[targets[i]], natural logarithm, into host memory, complete
  // on return.  logits [n, V].
  virtual void TargetLogprobs(TensorView logits, absl::Span<const TokenId> targets,
                              absl::Span<float> logprobs) = 0;

  // ---- Sampling (sampling.h): the last operator of a step, where the backend has it ----
  // Without it the host draws (engine/sampling), from logits in memory that it can read, and calls
  // none of these.

  virtual bool HasSampling() const { return false; }
  // Of one slot of the pool that SetSamplingState and SampleTokens take.
  virtual size_t SamplingStateBytes(int /*vocab_size*/) const { return 0; }
  // At load: memory for calls of SampleTokens with up to so many draws.
  // Errors: kResourceExhausted.
  virtual absl::Status ReserveSampling(int /*vocab_size*/, int /*max_draws*/) {
    return absl::OkStatus();
  }
  // What a sequence begins with: tokens of its prompt, and its biases. No token twice in either.
  // REQUIRES: the slot is clear.
  virtual void SetSamplingState(PoolView /*state*/, SlotId /*slot*/,
                                absl::Span<const TokenId> /*prompt*/,
                                absl::Span<const TokenBias> /*biases*/) {
    BST_CHECK(false, name(), " does not sample");
  }
  // Draws one token each, into host memory, complete on return; `top` takes the likeliest of the
  // draws that want them, one draw's after the other's, most likely first; ties: lower id first.
  // Where a row's logits are no distribution its `top` means nothing, and nothing is counted.
  // logits [n, V].
  virtual void SampleTokens(TensorView /*logits*/, absl::Span<const TokenDraw> /*draws*/,
                            PoolView /*state*/, absl::Span<DrawResult> /*results*/,
                            absl::Span<TokenLogit> /*top*/) {
    BST_CHECK(false, name(), " does not sample");
  }

  // Waits for everything enqueued. Errors: the first failure since the backend was made; it sticks.
  virtual absl::Status Sync() = 0;
};

}  // namespace bst
