// FaultyBackend: another backend that breaks when told to.
//
//   FailAllocation(n)     the n-th Allocate or Pack call from now on answers kResourceExhausted
//   SetAvailableBytes(n)  so much memory is left, it says
//   FailOperator(n)       the n-th operator from now on is lost, and so are all after it: Sync
//                         answers kInternal for ever, as a device does that has fallen off its bus
//   Poison(token)         the token's embedding is NaN
//
// It does not draw tokens: HasSampling is false, so the host does.
// Threads   Those of Backend; these may be called from another thread at any time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/backend/backend.h"

namespace bst {

class FaultyBackend final : public Backend {
 public:
  explicit FaultyBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  void FailAllocation(int64_t n) { allocations_left_ = n; }
  void SetAvailableBytes(size_t n) { available_bytes_ = n; }
  void FailOperator(int64_t n) { operators_left_ = n; }
  void Poison(TokenId token) { poison_ = token.value(); }
  bool broken() const { return operators_left_ <= 0; }

  std::string name() const override { return "faulty " + inner_->name(); }
  int num_threads() const override { return inner_->num_threads(); }
  bool HasInt8() const override { return inner_->HasInt8(); }

  size_t AvailableBytes() const override {
    const size_t said = available_bytes_;
    return said == kAsItIs ? inner_->AvailableBytes() : said;
  }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override {
    if (MustFail()) return OutOfMemory();
    return inner_->Allocate(bytes);
  }
  absl::StatusOr<Buffer> AllocateHostReadable(size_t bytes) override {
    if (MustFail()) return OutOfMemory();
    return inner_->AllocateHostReadable(bytes);
  }
  absl::StatusOr<std::unique_ptr<EmbeddingWeights>> PackEmbedding(TensorView table,
                                                                  DType type) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackEmbedding(table, type);
  }
  absl::StatusOr<std::unique_ptr<LinearWeights>> PackLinear(absl::Span<const TensorView> parts,
                                                            DType type) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackLinear(parts, type);
  }
  absl::StatusOr<std::unique_ptr<AttentionWeights>> PackAttention(
      const AttentionParameters& parameters) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackAttention(parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsm(const SsmParameters& parameters) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackSsm(parameters);
  }
  absl::StatusOr<std::unique_ptr<ContextWeights>> PackContextAttention(
      const ContextParameters& parameters) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackContextAttention(parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackDplr(const DplrParameters& parameters) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackDplr(parameters);
  }
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackConvolution(
      const ConvolutionParameters& parameters) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackConvolution(parameters);
  }
  absl::StatusOr<std::unique_ptr<ScanWeights>> PackScan(TensorView a_minus_one) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackScan(a_minus_one);
  }
  absl::StatusOr<Buffer> PackVector(TensorView vector) override {
    if (MustFail()) return OutOfMemory();
    return inner_->PackVector(vector);
  }
  size_t RingBytes(const AttentionSpec& spec) const override { return inner_->RingBytes(spec); }
  size_t SsmStateBytes(const SsmWeights& weights) const override {
    return inner_->SsmStateBytes(weights);
  }
  size_t ScanStateBytes(const ScanWeights& weights) const override {
    return inner_->ScanStateBytes(weights);
  }
  size_t ContextBytes(const ContextSpec& spec) const override { return inner_->ContextBytes(spec); }
  void CopySlot(PoolView from, SlotId from_slot, PoolView to, SlotId to_slot) override {
    if (Works()) inner_->CopySlot(from, from_slot, to, to_slot);
  }
  void ClearSlot(PoolView pool, SlotId slot) override { inner_->ClearSlot(pool, slot); }

  void Embed(const EmbeddingWeights& table, absl::Span<const TokenId> tokens,
             TensorView out) override {
    if (!Works()) return;
    inner_->Embed(table, tokens, out);
    for (size_t t = 0; t < tokens.size(); ++t) {
      if (tokens[t].value() == poison_) FillNan(out, static_cast<int64_t>(t));
    }
  }
  void RmsNorm(TensorView x, TensorView gain, float epsilon, TensorView out) override {
    if (Works()) inner_->RmsNorm(x, gain, epsilon, out);
  }
  void Linear(TensorView x, const LinearWeights& weights, const LinearOptions& options,
              TensorView out) override {
    if (Works()) inner_->Linear(x, weights, options, out);
  }
  void Gate(TensorView x, GateActivation activation, TensorView out) override {
    if (Works()) inner_->Gate(x, activation, out);
  }
  void NormalizeHeads(TensorView x, int head_dim, TensorView rotary) override {
    if (Works()) inner_->NormalizeHeads(x, head_dim, rotary);
  }
  void RotaryTable(absl::Span<const Row> rows, double theta, TensorView table) override {
    if (Works()) inner_->RotaryTable(rows, theta, table);
  }
  void Rotate(TensorView x, int head_dim, TensorView table) override {
    if (Works()) inner_->Rotate(x, head_dim, table);
  }
  void Attention(const AttentionWeights& weights, TensorView q, TensorView k, TensorView v,
                 absl::Span<const Row> rows, PoolView ring, TensorView out) override {
    if (Works()) inner_->Attention(weights, q, k, v, rows, ring, out);
  }
  void Ssm(const SsmWeights& weights, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) override {
    if (Works()) inner_->Ssm(weights, u, rows, state, y);
  }
  void Scan(const ScanWeights& weights, TensorView v, absl::Span<const Row> rows,
            PoolView state) override {
    if (Works()) inner_->Scan(weights, v, rows, state);
  }
  void StoreContext(const ContextWeights& weights, TensorView k, TensorView v,
                    absl::Span<const ContextRows> rows, PoolView contexts) override {
    if (Works()) inner_->StoreContext(weights, k, v, rows, contexts);
  }
  void ContextAttention(const ContextWeights& weights, TensorView q,
                        absl::Span<const ContextUse> uses, TensorView out) override {
    if (Works()) inner_->ContextAttention(weights, q, uses, out);
  }
  void AddScaled(TensorView x, TensorView gain, TensorView y) override {
    if (Works()) inner_->AddScaled(x, gain, y);
  }
  void Multiply(TensorView x, TensorView y) override {
    if (Works()) inner_->Multiply(x, y);
  }
  void AddTable(TensorView table, TensorView x) override {
    if (Works()) inner_->AddTable(table, x);
  }
  void Interpolate(TensorView s, TensorView gate, TensorView z) override {
    if (Works()) inner_->Interpolate(s, gate, z);
  }
  void GatherRows(TensorView x, absl::Span<const int> indices, TensorView out) override {
    if (Works()) inner_->GatherRows(x, indices, out);
  }
  void TargetLogprobs(TensorView logits, absl::Span<const TokenId> targets,
                      absl::Span<float> logprobs) override {
    if (Works()) inner_->TargetLogprobs(logits, targets, logprobs);
  }
  absl::Status Sync() override {
    if (broken()) return absl::InternalError("the device has fallen off the bus");
    return inner_->Sync();
  }

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max() / 2;
  static constexpr size_t kAsItIs = std::numeric_limits<size_t>::max();

  static absl::Status OutOfMemory() {
    return absl::ResourceExhaustedError("no memory left on this device");
  }
  static void FillNan(TensorView x, int64_t row) {
    for (int64_t i = 0; i < x.dim(1); ++i) {
      if (x.dtype() == DType::kF32) {
        x.row<float>(row)[i] = std::numeric_limits<float>::quiet_NaN();
      } else {
        x.row<BFloat16>(row)[i] = {0x7fc0};
      }
    }
  }
  bool MustFail() { return --allocations_left_ == 0; }
  bool Works() { return --operators_left_ > 0; }

  std::unique_ptr<Backend> inner_;
  std::atomic<int64_t> allocations_left_ = kNever;
  std::atomic<size_t> available_bytes_ = kAsItIs;
  std::atomic<int64_t> operators_left_ = kNever;
  std::atomic<int32_t> poison_ = -1;
};

}  // namespace bst
