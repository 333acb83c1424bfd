// ModelRunner: a checkpoint on a backend, run in process, without scheduler or server. For tests
// and the bst-logits tool.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/model/model.h"
#include "engine/state/state_pool.h"

namespace bst {

class ModelRunner {
 public:
  // `backend` outlives the runner. Steps of up to max_step_tokens; unless `kv` says otherwise,
  // rings have the type of the weights, BF16 with I8.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(
      const std::string& directory, Backend& backend, DType weights, int max_step_tokens,
      int num_slots = 1, std::optional<DType> kv = std::nullopt);

  // Logits after every token, [tokens.size(), V], of one document fed in rows of the given lengths
  // (which sum to tokens.size()), one row per step.
  std::vector<float> Logits(absl::Span<const TokenId> tokens, absl::Span<const int> row_lengths);

  // One step of a raw forward pass; the logits after every token of it, or after those wanted, are
  // appended to `logits`.
  void Step(absl::Span<const TokenId> tokens, absl::Span<const Row> rows,
            std::vector<float>& logits);
  void Step(absl::Span<const TokenId> tokens, absl::Span<const Row> rows,
            absl::Span<const int> wanted, std::vector<float>& logits);

  Model& model() { return *model_; }
  StatePool& pool() { return *pool_; }
  const ModelConfig& config() const { return config_; }

 private:
  ModelRunner() = default;

  ModelConfig config_;
  Backend* backend_ = nullptr;
  std::unique_ptr<Model> model_;
  std::unique_ptr<StatePool> pool_;
};

// sqrt(sum (x - y)^2 / sum y^2); infinite if the sizes differ or anything is NaN.
double RelativeRms(absl::Span<const float> x, absl::Span<const float> y);

// Reads a JSON list of token ids, at least one, which need not be in a vocabulary.
absl::StatusOr<std::vector<TokenId>> ReadTokens(const std::string& path);

// "cuda", on the emulated device (support/cuda_on_cpu), or "cuda:blocking" (CudaOptions::blocking);
// "gpu", the real plugin; "reference"; or "cpu" with an optional instruction set and thread count:
// "cpu", "cpu:avx2", "cpu:avx512:3", "cpu:amx-emulated" (CpuOptions::emulate_amx), and "cpu:amx",
// whose tile instructions are trapped where the processor lacks them (trapped_tiles.h).
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const std::string& name);

// Names for MakeBackend of the backends whose operators are tested against the reference's: all CPU
// backends, and the CUDA one.
std::vector<std::string> OperatorBackendNames();

// "cuda". Nothing in a build for a sanitizer, where the emulated device is slow and
// cuda_orders_test runs every kernel.
std::vector<std::string> EmulatedBackendNames();

// "gpu" if there is one here; else nothing.
std::vector<std::string> GpuBackendNames();

// Names for MakeBackend: the CPU backend with every instruction set that this machine can run, in
// varying numbers of threads; and AMX on any machine with AVX-512. Without AMX its instructions are
// trapped if `traps` and there is VNNI; else its tiles are plain code, ten times as fast. Two of
// them under ThreadSanitizer.
std::vector<std::string> CpuBackendNames(bool traps = true);

}  // namespace bst
