// One model of 100M parameters against the machine it runs on: 12 layers, D = 768, 12 heads of 64,
// relu FFN 3072, W = 512, sliding scope, 32,000 tied tokens, single-head S4D context (N = 16) in
// layers 3, 7 and 11; random weights.
//
// Every figure stands beside its limit, measured in the same run on the same threads: operations of
// the weights' matrix products over the rate of the kernel's own multiply instruction, or bytes of
// weights and state over the bandwidth of reading memory. A fraction of 1 is the machine's.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/backend/cpu/cpu_backend.h"
#include "engine/base/status_macros.h"
#include "engine/model/model.h"
#include "nlohmann/json.hpp"
#include "tests/bench/bench.h"
#include "tests/bench/machine_limits.h"
#include "tests/bench/random_model.h"

namespace bst {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLayers = 12, kWidth = 768, kHeads = 12, kFfn = 3072, kWindow = 512, kVocab = 32'000;
constexpr char kTransformer[] = R"({"type": "transformer"})";
constexpr char kBst[] =
    R"({"type": "bst", "context": "single_head", "ssm": {"kernel": "s4d", "state_size": 16}})";

bool IsBst(int layer) { return layer % 4 == 3; }

// Multiplications and additions of the weight matrices for one token, without the output layer.
double TokenOperations() {
  double products = 0;
  for (int n = 0; n < kLayers; ++n) {
    const double heads = IsBst(n) ? 4 : 3, attended = IsBst(n) ? 2 : 1, context = IsBst(n) ? 2 : 0;
    products += (heads + attended + context) * kWidth * kWidth + 2.0 * kWidth * kFfn;
  }
  return 2 * products;
}

struct Types {
  const char* name;
  DType weights, kv;
};
constexpr Types kTypes[] = {{"f32", DType::kF32, DType::kF32},
                            {"bf16", DType::kBF16, DType::kBF16},
                            {"int8", DType::kI8, DType::kBF16},
                            {"int8+kv", DType::kI8, DType::kI8}};

class TargetModel {
 public:
  TargetModel(const Checkpoint& checkpoint, Backend& backend, const Types& types, int chunk,
              int streams, absl::Status& status)
      : chunk_(chunk) {
    auto model = Model::Create(checkpoint, backend,
                               {.weights = types.weights,
                                .kv = types.kv,
                                .max_step_tokens = std::max(chunk, streams),
                                .max_logit_rows = streams,
                                .max_rows = streams});
    if (!model.ok()) {
      status = model.status();
      return;
    }
    model_ = *std::move(model);
    auto pool = StatePool::Create(backend, model_->state_layout(), streams);
    if (!pool.ok()) {
      status = pool.status();
      return;
    }
    pool_ = *std::move(pool);
  }

  // Seconds for a document of `length` tokens and the logits after its last.
  double Prefill(int64_t length) {
    const SlotLease lease = *pool_->Acquire();
    const auto start = Clock::now();
    for (int64_t position = 0; position < length; position += chunk_) {
      const int n = static_cast<int>(std::min<int64_t>(chunk_, length - position));
      Forward({{.slot = lease.id(), .begin = 0, .end = n, .position = position}});
    }
    model_->Logits({static_cast<int>((length - 1) % chunk_)});
    return Seconds(start);
  }

  // Seconds per step in which each of `streams` sequences, `depth` tokens long, takes one token.
  double Decode(int streams, int depth, int steps) {
    std::vector<SlotLease> leases;
    std::vector<Row> rows;
    std::vector<int> indices;
    for (int i = 0; i < streams; ++i) {
      leases.push_back(*pool_->Acquire());
      for (int position = 0; position < depth; position += chunk_) {
        const int n = std::min(chunk_, depth - position);
        Forward({{.slot = leases.back().id(), .begin = 0, .end = n, .position = position}});
      }
      rows.push_back({.slot = leases.back().id(), .begin = i, .end = i + 1, .position = depth});
      indices.push_back(i);
    }
    std::vector<double> seconds;
    for (int step = 0; step < steps; ++step) {
      const auto start = Clock::now();
      Forward(rows);
      model_->Logits(indices);
      seconds.push_back(Seconds(start));
      for (Row& row : rows) ++row.position;
    }
    std::nth_element(seconds.begin(), seconds.begin() + steps / 2, seconds.end());
    return seconds[static_cast<size_t>(steps / 2)];
  }

  size_t weight_bytes() const { return model_->weight_bytes(); }
  size_t state_bytes() const { return model_->state_layout().bytes_per_slot(); }

 private:
  static double Seconds(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  void Forward(const std::vector<Row>& rows) {
    ids_.clear();
    for (int i = 0; i < rows.back().end; ++i)
      ids_.emplace_back(static_cast<int32_t>(random_() % kVocab));
    model_->Forward(ids_, rows, *pool_);
  }

  int chunk_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<StatePool> pool_;
  std::mt19937 random_{1};
  std::vector<TokenId> ids_;
};

RandomModel TheModel() {
  RandomModel model = {.vocab_size = kVocab,
                       .hidden_size = kWidth,
                       .num_heads = kHeads,
                       .ffn_size = kFfn,
                       .window = kWindow,
                       .layers = {},
                       .dtype = DType::kBF16};
  for (int n = 0; n < kLayers; ++n) model.layers.push_back(IsBst(n) ? kBst : kTransformer);
  return model;
}

absl::Status Measure(const TargetBenchOptions& options, const Checkpoint& checkpoint,
                     Backend& backend, const Types& types, const MachineLimits& limits,
                     nlohmann::json& rows) {
  absl::Status status;
  TargetModel model(checkpoint, backend, types, options.chunk_tokens, options.streams, status);
  BST_RETURN_IF_ERROR(status);
  const double rate = types.weights == DType::kF32    ? limits.f32_operations
                      : types.weights == DType::kBF16 ? limits.bf16_operations
                                                      : limits.int8_operations;
  const auto report = [&](const std::string& what, int64_t length, double tokens_per_second,
                          double limit) {
    std::printf("%-9s %-14s %9lld %12.1f %12.1f %8.2f\n", types.name, what.c_str(),
                static_cast<long long>(length), tokens_per_second, limit,
                tokens_per_second / limit);
    std::fflush(stdout);
    rows.push_back({{"types", types.name},
                    {"what", what},
                    {"tokens", length},
                    {"tokens_per_second", tokens_per_second},
                    {"limit", limit}});
  };
  model.Prefill(options.chunk_tokens);  // warms up
  for (const int64_t length : options.lengths) {
    if (types.weights == DType::kF32 && length > options.max_f32_length) continue;
    std::vector<double> seconds;
    for (int round = 0; round < options.rounds; ++round) seconds.push_back(model.Prefill(length));
    std::nth_element(seconds.begin(), seconds.begin() + options.rounds / 2, seconds.end());
    report("prefill", length,
           static_cast<double>(length) / seconds[static_cast<size_t>(options.rounds / 2)],
           rate / TokenOperations());
  }
  // A step reads every weight once (of the embedding table a row per token) and every window.
  const double embedding = static_cast<double>(kVocab) * kWidth *
                           static_cast<double>(types.weights == DType::kF32 ? 4 : 2);
  const double weights = static_cast<double>(model.weight_bytes()) - embedding;
  const auto state = static_cast<double>(model.state_bytes());
  for (const int streams : {1, options.streams}) {
    const double step = model.Decode(streams, kWindow, options.decode_steps);
    report(absl::StrCat("decode of ", streams), kWindow, streams / step,
           streams * limits.read_bytes / (weights + streams * state));
    if (options.streams == 1) break;
  }
  std::printf("%-9s %-14s %9s %12.0f bytes; weights %.1f MB\n", types.name, "state", "", state,
              static_cast<double>(model.weight_bytes()) / 1e6);
  rows.push_back({{"types", types.name},
                  {"what", "state"},
                  {"bytes", model.state_bytes()},
                  {"weight_bytes", model.weight_bytes()}});
  return absl::OkStatus();
}

absl::Status Run(const TargetBenchOptions& options) {
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                       MakeCpuBackend({.threads = options.threads, .isa = std::nullopt}));
  BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenRandomModel(TheModel()));
  const MachineLimits limits = MeasureMachineLimits(backend->num_threads());
  std::printf(
      "%s; limits measured now: %.2f TFLOP/s F32, %.2f BF16, %.2f TOP/s INT8, reads %.1f GB/s\n\n",
      backend->name().c_str(), limits.f32_operations / 1e12, limits.bf16_operations / 1e12,
      limits.int8_operations / 1e12, limits.read_bytes / 1e9);
  std::printf("%-9s %-14s %9s %12s %12s %8s\n", "types", "what", "context", "tokens/s", "limit",
              "fraction");
  nlohmann::json rows = nlohmann::json::array();
  for (const Types& types : kTypes) {
    if (!options.types.empty() &&
        std::find(options.types.begin(), options.types.end(), types.name) == options.types.end())
      continue;
    BST_RETURN_IF_ERROR(Measure(options, checkpoint, *backend, types, limits, rows));
  }
  if (options.json.empty()) return absl::OkStatus();
  std::ofstream file(options.json);
  file << nlohmann::json({{"backend", backend->name()},
                          {"f32_operations", limits.f32_operations},
                          {"bf16_operations", limits.bf16_operations},
                          {"int8_operations", limits.int8_operations},
                          {"read_bytes", limits.read_bytes},
                          {"rows", rows}})
              .dump(1)
       << "\n";
  return file ? absl::OkStatus()
              : absl::UnavailableError(absl::StrCat("cannot write ", options.json));
}

}  // namespace

int RunTargetBench(const TargetBenchOptions& options) {
  if (options.rounds < 1 || options.chunk_tokens < 1 || options.streams < 1 ||
      options.decode_steps < 1 ||
      std::any_of(options.lengths.begin(), options.lengths.end(),
                  [](int64_t n) { return n < 1; })) {
    std::fprintf(stderr, "lengths, rounds, streams, steps and chunk tokens must be at least 1\n");
    return 2;
  }
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace bst
