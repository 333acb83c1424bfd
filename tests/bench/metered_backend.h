// MeteredBackend: counts what each operator of a forward pass must at least do, and, around a
// backend that computes, how long it took. On paper (without one) nothing is computed or allocated,
// so that a model of any size can be counted on any machine.
//
// Bytes       What must cross the memory's bus once: weights, activations in and out, state read
//             and written. A cache that holds less moves more.
// Operations  Multiplications and additions. Sums of squares and softmax exponentials are small
//             beside them and count as one each.
// Chain       Operations that follow one after the other whatever the machine: the sums of a
//             recurrence, whose order is fixed, and its state along the chunks; sums over a
//             vocabulary, whose order the host's sampler gives.
// Ownership   The inner backend outlives this one. Packed weights die before both.
// Threads     As Backend.
// Tested by   tests/bench/roofline_test.cc
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/backend/backend.h"
#include "engine/tensor/dtype.h"

namespace bst {

// Whose way of computing is counted: where the two differ (attention on BF16, recurrences).
enum class CountedBackend { kCuda, kCpu };

// What multiplies: the float32 units, or the tensor cores.
enum class RooflineUnit { kFloat32, kTensorBf16 };

struct OperatorCost {
  double bytes = 0;
  double operations = 0;
  RooflineUnit unit = RooflineUnit::kFloat32;
  double chain = 0;

  OperatorCost& operator+=(const OperatorCost& other);
};

// All calls of one operator at one shape.
struct OperatorUse {
  std::string name;  // "linear 1024 x 4096"
  int calls = 0;
  OperatorCost cost;   // of all calls
  double seconds = 0;  // likewise, as measured; 0 on paper
};

class MeteredBackend final : public Backend {
 public:
  // `inner` may be null: on paper. While it meters, every operator runs `repeats` times in a row,
  // which is timed: results are wrong then.
  explicit MeteredBackend(Backend* inner, int repeats = 1,
                          CountedBackend counted = CountedBackend::kCuda)
      : inner_(inner), repeats_(repeats), counted_(counted) {}

  // Operators are counted from here to Stop, which returns them in the order of their first calls.
  void Start();
  std::vector<OperatorUse> Stop();
  // Of the packed weights, and of everything that was allocated besides.
  size_t weight_bytes() const { return weight_bytes_; }
  size_t allocated_bytes() const { return allocated_bytes_; }

  std::string name() const override { return inner_ == nullptr ? "paper" : inner_->name(); }
  int num_threads() const override { return inner_ == nullptr ? 1 : inner_->num_threads(); }
  bool HasInt8() const override { return inner_ != nullptr && inner_->HasInt8(); }
  bool PacksHeads() const override { return inner_ != nullptr && inner_->PacksHeads(); }
  size_t AvailableBytes() const override {
    return inner_ == nullptr ? SIZE_MAX : inner_->AvailableBytes();
  }
  absl::StatusOr<Buffer> Allocate(size_t bytes) override;
  absl::StatusOr<Buffer> AllocateHostReadable(size_t bytes) override;
  absl::StatusOr<std::unique_ptr<EmbeddingWeights>> PackEmbedding(TensorView table,
                                                                  DType type) override;
  absl::StatusOr<std::unique_ptr<LinearWeights>> PackLinear(absl::Span<const TensorView> parts,
                                                            DType type) override;
  absl::StatusOr<std::unique_ptr<AttentionWeights>> PackAttention(
      const AttentionParameters& parameters) override;
  absl::StatusOr<std::unique_ptr<ContextWeights>> PackContextAttention(
      const ContextParameters& parameters) override;
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackSsm(const SsmParameters& parameters) override;
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackDplr(const DplrParameters& parameters) override;
  absl::StatusOr<std::unique_ptr<SsmWeights>> PackConvolution(
      const ConvolutionParameters& parameters) override;
  absl::StatusOr<std::unique_ptr<ScanWeights>> PackScan(TensorView a_minus_one) override;
  absl::StatusOr<Buffer> PackVector(TensorView vector) override;
  size_t RingBytes(const AttentionSpec& spec) const override;
  size_t ContextBytes(const ContextSpec& spec) const override;
  size_t SsmStateBytes(const SsmWeights& weights) const override;
  size_t ScanStateBytes(const ScanWeights& weights) const override;
  void ClearSlot(PoolView pool, SlotId slot) override;
  void CopySlot(PoolView from, SlotId from_slot, PoolView to, SlotId to_slot) override;

  void Embed(const EmbeddingWeights& table, absl::Span<const TokenId> tokens,
             TensorView out) override;
  void RmsNorm(TensorView x, TensorView gain, float epsilon, TensorView out) override;
  void Linear(TensorView x, const LinearWeights& weights, const LinearOptions& options,
              TensorView out) override;
  // One operator of the CPU backend, three of CUDA's.
  void FeedForward(TensorView x, TensorView gain, float epsilon, const LinearWeights& up,
                   LinearEpilogue act, const LinearWeights& down, TensorView normed,
                   TensorView hidden) override;
  void Gate(TensorView x, GateActivation activation, TensorView out) override;
  void NormalizeHeads(TensorView x, int head_dim, TensorView rotary) override;
  // One operator of the CPU backend, three of CUDA's.
  void ProjectHeads(TensorView x, TensorView gain, float epsilon, const LinearWeights& weights,
                    const HeadOptions& options, TensorView normed, TensorView heads) override;
  ProjectedHeads ProjectAttention(TensorView x, TensorView gain, float epsilon,
                                  const LinearWeights& weights, const HeadOptions& options,
                                  const AttentionWeights& attention, absl::Span<const Row> rows,
                                  PoolView ring, TensorView normed, TensorView heads,
                                  TensorView others) override;
  void ProjectedAttention(const AttentionWeights& weights, const ProjectedHeads& heads,
                          absl::Span<const Row> rows, PoolView ring, TensorView out) override;
  void RotaryTable(absl::Span<const Row> rows, double theta, TensorView table) override;
  void Rotate(TensorView x, int head_dim, TensorView table) override;
  void Attention(const AttentionWeights& weights, TensorView q, TensorView k, TensorView v,
                 absl::Span<const Row> rows, PoolView ring, TensorView out) override;
  void StoreContext(const ContextWeights& weights, TensorView k, TensorView v,
                    absl::Span<const ContextRows> rows, PoolView contexts) override;
  void ContextAttention(const ContextWeights& weights, TensorView q,
                        absl::Span<const ContextUse> uses, TensorView out) override;
  void Ssm(const SsmWeights& weights, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) override;
  void Scan(const ScanWeights& weights, TensorView v, absl::Span<const Row> rows,
            PoolView state) override;
  void AddScaled(TensorView x, TensorView gain, TensorView y) override;
  void Multiply(TensorView x, TensorView y) override;
  void AddTable(TensorView table, TensorView x) override;
  void Interpolate(TensorView s, TensorView gate, TensorView z) override;
  void GatherRows(TensorView x, absl::Span<const int> indices, TensorView out) override;
  void TargetLogprobs(TensorView logits, absl::Span<const TokenId> targets,
                      absl::Span<float> logprobs) override;
  bool HasSampling() const override { return inner_ == nullptr || inner_->HasSampling(); }
  size_t SamplingStateBytes(int vocab_size) const override;
  absl::Status ReserveSampling(int vocab_size, int max_draws) override;
  void SetSamplingState(PoolView state, SlotId slot, absl::Span<const TokenId> prompt,
                        absl::Span<const TokenBias> biases) override;
  void SampleTokens(TensorView logits, absl::Span<const TokenDraw> draws, PoolView state,
                    absl::Span<DrawResult> results, absl::Span<TokenLogit> top) override;
  absl::Status Sync() override { return inner_ == nullptr ? absl::OkStatus() : inner_->Sync(); }

 private:
  // Of one row of keys and values of all heads, scales and sums of the backend's own with them.
  double KeyValueBytesOf(const AttentionSpec& spec) const;
  double KeyValueBytesOf(const ContextSpec& spec) const;
  void Run(const std::string& name, const OperatorCost& cost,
           absl::FunctionRef<void(Backend&)> run);
  void RunProjection(TensorView x, const LinearWeights& weights, const HeadOptions& options,
                     TensorView heads,
                     absl::FunctionRef<void(Backend& inner, const LinearWeights& weights)> run);
  void RunAttention(const AttentionWeights& weights, TensorView q, absl::Span<const Row> rows,
                    absl::FunctionRef<void(Backend& inner, const AttentionWeights& weights)> run);
  // A host tensor of that shape with random numbers: how fast a multiplier may run depends on
  // them, for its current does. Valid until the next call.
  TensorView Random(const TensorView& like);

  Backend* inner_;
  int repeats_;
  CountedBackend counted_;
  bool metering_ = false;
  size_t weight_bytes_ = 0, allocated_bytes_ = 0;
  std::vector<OperatorUse> uses_;
  std::map<std::string, size_t> places_;  // in uses_
  std::minstd_rand generator_{1};
  std::vector<BFloat16> random_;
};

}  // namespace bst
