#include "tests/support/model_runner.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/backend/cpu/cpu_backend.h"
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/cuda_plugin.h"
#include "engine/backend/reference/reference_backend.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "tests/support/sanitized.h"
#include "tests/support/trapped_tiles.h"

namespace bst {
namespace {

// Whether AMX runs here by traps: all else that its kernels need is there.
bool TrapsTiles(CpuIsa best) {
  return !Supports(best, CpuIsa::kAmx) && Supports(best, CpuIsa::kAvx512Vnni);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const std::string& directory,
                                                                 Backend& backend, DType weights,
                                                                 int max_step_tokens, int num_slots,
                                                                 std::optional<DType> kv) {
  auto runner = std::unique_ptr<ModelRunner>(new ModelRunner());
  BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(directory));
  runner->config_ = checkpoint.config();
  runner->backend_ = &backend;
  BST_ASSIGN_OR_RETURN(
      runner->model_,
      Model::Create(checkpoint, backend,
                    {.weights = weights,
                     .kv = kv.value_or(weights == DType::kI8 ? DType::kBF16 : weights),
                     .max_step_tokens = max_step_tokens,
                     .max_logit_rows = std::min(max_step_tokens, 256)}));
  BST_ASSIGN_OR_RETURN(runner->pool_,
                       StatePool::Create(backend, runner->model_->state_layout(), num_slots));
  return runner;
}

void ModelRunner::Step(absl::Span<const TokenId> tokens, absl::Span<const Row> rows,
                       std::vector<float>& logits) {
  std::vector<int> all(tokens.size());
  std::iota(all.begin(), all.end(), 0);
  Step(tokens, rows, all, logits);
}

void ModelRunner::Step(absl::Span<const TokenId> tokens, absl::Span<const Row> rows,
                       absl::Span<const int> wanted, std::vector<float>& logits) {
  model_->Forward(tokens, rows, wanted, *pool_);
  const auto most = static_cast<size_t>(model_->max_logit_rows());
  for (size_t first = 0; first < wanted.size(); first += most) {
    const TensorView out = model_->Logits(wanted.subspan(first, most));
    const absl::Status status = backend_->Sync();
    BST_CHECK(status.ok(), status.ToString());
    logits.insert(logits.end(), out.as<float>(), out.as<float>() + out.shape().num_elements());
  }
}

std::vector<float> ModelRunner::Logits(absl::Span<const TokenId> tokens,
                                       absl::Span<const int> row_lengths) {
  const std::optional<SlotLease> lease = pool_->Acquire();
  std::vector<float> logits;
  size_t position = 0;
  for (const int length : row_lengths) {
    const Row row = {
        .slot = lease->id(), .begin = 0, .end = length, .position = static_cast<int64_t>(position)};
    Step(tokens.subspan(position, static_cast<size_t>(length)), {row}, logits);
    position += static_cast<size_t>(length);
  }
  return logits;
}

double RelativeRms(absl::Span<const float> x, absl::Span<const float> y) {
  if (x.size() != y.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    size += double{y[i]} * y[i];
  }
  if (difference == 0) return 0;  // also where both are all zeros
  const double ratio = std::sqrt(difference / size);
  return std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
}

absl::StatusOr<std::vector<TokenId>> ReadTokens(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, " cannot be opened"));
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array())
    return absl::InvalidArgumentError(absl::StrCat(path, " holds no JSON list of token ids"));
  std::vector<TokenId> tokens;
  for (const auto& id : json) {
    const auto value = id.is_number_integer() ? id.get<int64_t>() : -1;
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": token ", tokens.size(), " is ", id.dump(), ", no token id"));
    }
    tokens.emplace_back(static_cast<int32_t>(value));
  }
  if (tokens.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " holds no tokens"));
  return tokens;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const std::string& name) {
  const std::vector<int> small_panels = {24};  // that small models' steps fill
  const std::vector<std::string> parts = absl::StrSplit(name, ':');
  if (parts[0] == "reference") return MakeReferenceBackend();
  if (parts[0] == "gpu")
    return OpenCudaBackend(
        {.panel_rows = small_panels, .product_seconds = CudaOptions::kUnlimited});
  if (parts[0] == "cuda") {
    return MakeCudaBackend({.blocking = parts.size() > 1 && parts[1] == "blocking",
                            .panel_rows = small_panels,
                            .product_seconds = CudaOptions::kUnlimited});
  }
  if (parts[0] != "cpu") return absl::InvalidArgumentError(absl::StrCat("unknown backend ", name));
  CpuOptions options;
  if (parts.size() > 1) {
    if (parts[1] == "avx2") options.isa = CpuIsa::kAvx2;
    if (parts[1] == "avx512") options.isa = CpuIsa::kAvx512;
    if (parts[1] == "avx512vnni") options.isa = CpuIsa::kAvx512Vnni;
    if (parts[1] == "avx512bf16") options.isa = CpuIsa::kAvx512Bf16;
    if (parts[1] == "amx") {
      options.isa = CpuIsa::kAmx;
      options.self_check = false;  // self_check_test has it: trapped it takes a third of a second
      options.assume_isa = TrapsTiles(DetectCpuIsa());
      if (options.assume_isa) TrapTileInstructions();
    }
    options.emulate_amx = parts[1] == "amx-emulated";
    if (!options.isa && !options.emulate_amx)
      return absl::InvalidArgumentError(absl::StrCat("unknown instruction set in ", name));
  }
  if (parts.size() > 2 && !absl::SimpleAtoi(parts[2], &options.threads)) {
    return absl::InvalidArgumentError(absl::StrCat("bad thread count in ", name));
  }
  return MakeCpuBackend(options);
}

std::vector<std::string> OperatorBackendNames() {
  std::vector<std::string> names = CpuBackendNames();
  // Blocking: operands die after each operator.
  if (!EmulatedBackendNames().empty()) names.push_back("cuda:blocking");
  return names;
}

std::vector<std::string> EmulatedBackendNames() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return {};
#else
  return {"cuda"};
#endif
}

std::vector<std::string> GpuBackendNames() {
  return OpenCudaBackend().ok() ? std::vector<std::string>{"gpu"} : std::vector<std::string>();
}

std::vector<std::string> CpuBackendNames(bool traps) {
  const CpuIsa best = DetectCpuIsa();
  // For races: more threads than processors, and inputs, keys and values that are packed. Pairs
  // and bytes without tiles are shared out as these.
  if (kSanitizedForRaces && best >= CpuIsa::kAvx512) return {"cpu:avx512:3", "cpu:amx-emulated:2"};
  std::vector<std::string> names = {"cpu:avx2:2"};
  if (best >= CpuIsa::kAvx512) names.insert(names.end(), {"cpu:avx512:1", "cpu:avx512:3"});
  if (Supports(best, CpuIsa::kAvx512Vnni)) names.push_back("cpu:avx512vnni:2");
  if (Supports(best, CpuIsa::kAvx512Bf16)) names.push_back("cpu:avx512bf16:2");
  if (Supports(best, CpuIsa::kAmx) || (traps && TrapsTiles(best)))
    names.push_back("cpu:amx:2");
  else if (best >= CpuIsa::kAvx512)
    names.push_back("cpu:amx-emulated:2");
  return names;
}

}  // namespace bst
