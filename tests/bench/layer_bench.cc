// One layer of each kind against sequence length, and token by token: the layers of the
// Block-State Transformer paper's speed comparison (arXiv 2306.09539, figure 4) at its setting:
// W = 128, N = 16, 16 heads, width 512, S = 128 recurrent states, filters of 4,096 taps.
//
// A one-layer model is driven through Model::Forward without logits; the embedding is a copy of 2
// KB per token. Every layer reads the same tokens in the same chunks.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/backend/cpu/cpu_backend.h"
#include "engine/backend/cuda/cuda_plugin.h"
#include "engine/backend/reference/reference_backend.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/model/model.h"
#include "nlohmann/json.hpp"
#include "tests/bench/bench.h"
#include "tests/bench/random_model.h"
#include "tests/support/statistics.h"

namespace bst {
namespace {

using Clock = std::chrono::steady_clock;

struct LayerKind {
  const char* name;
  const char* config;  // of the layer, in config.json
};

constexpr LayerKind kLayers[] = {
    {"transformer", R"({"type": "transformer"})"},
    {"bst_single_head",
     R"({"type": "bst", "context": "single_head", "ssm": {"kernel": "s4d", "state_size": 16}})"},
    {"bst_multi_head",
     R"({"type": "bst", "context": "multi_head", "ssm": {"kernel": "s4d", "state_size": 16}})"},
    {"bst_multi_filter",
     R"({"type": "bst", "context": "multi_filter", "num_states": 32,
         "ssm": {"kernel": "s4d", "state_size": 16}})"},
    {"brect", R"({"type": "brect", "num_states": 128, "gate": "fixed"})"},
    {"bst_single_head_s4",
     R"({"type": "bst", "context": "single_head",
         "ssm": {"kernel": "s4", "state_size": 16, "discretization": "bilinear"}})"},
    {"bst_single_head_s5",
     R"({"type": "bst", "context": "single_head", "ssm": {"kernel": "s5", "state_size": 128}})"},
    {"bst_single_head_dss",
     R"({"type": "bst", "context": "single_head", "ssm": {"kernel": "dss", "state_size": 16}})"},
    {"bst_single_head_explicit",
     R"({"type": "bst", "context": "single_head", "ssm": {"kernel": "explicit", "length": 4096}})"},
    {"bst_multi_filter_explicit",
     R"({"type": "bst", "context": "multi_filter", "num_states": 32,
         "ssm": {"kernel": "explicit", "length": 4096}})"},
    {"gss", R"({"type": "gss", "inner_size": 2048, "ssm_size": 128,
                "ssm": {"kernel": "dss", "state_size": 64}})"},
};
// The layers of the paper's figure.
constexpr int kFigureLayers = 5;

// A model of one layer with random weights.
class OneLayer {
 public:
  static absl::StatusOr<std::unique_ptr<OneLayer>> Create(const LayerKind& kind, Backend& backend,
                                                          DType type, int chunk) {
    BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenRandomModel({.vocab_size = 256,
                                                                       .hidden_size = 512,
                                                                       .num_heads = 16,
                                                                       .ffn_size = 2048,
                                                                       .window = 128,
                                                                       .layers = {kind.config},
                                                                       .dtype = type}));
    auto layer = std::unique_ptr<OneLayer>(new OneLayer());
    BST_ASSIGN_OR_RETURN(layer->model_, Model::Create(checkpoint, backend,
                                                      {.weights = type,
                                                       .kv = type,
                                                       .max_step_tokens = chunk,
                                                       .max_logit_rows = 1,
                                                       .max_rows = 1}));
    BST_ASSIGN_OR_RETURN(layer->pool_,
                         StatePool::Create(backend, layer->model_->state_layout(), 1));
    layer->chunk_ = chunk;
    layer->backend_ = &backend;
    return layer;
  }

  // Seconds for a document of `length` tokens from its start, in chunks.
  double Forward(int64_t length) {
    const SlotLease lease = *pool_->Acquire();
    const auto start = Clock::now();
    for (int64_t position = 0; position < length; position += chunk_) {
      Step(lease.id(), position, static_cast<int>(std::min<int64_t>(chunk_, length - position)));
    }
    Wait();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  // Seconds per token of each of `windows` runs of `tokens` single-token steps.
  std::vector<double> Decode(int windows, int tokens) {
    const SlotLease lease = *pool_->Acquire();
    std::vector<double> seconds;
    int64_t position = 0;
    for (int w = 0; w < windows; ++w) {
      const auto start = Clock::now();
      for (int i = 0; i < tokens; ++i) {
        Step(lease.id(), position++, 1);
        Wait();
      }
      seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() / tokens);
    }
    return seconds;
  }

  size_t state_bytes() const { return model_->state_layout().bytes_per_slot(); }

 private:
  OneLayer() = default;

  void Step(SlotId slot, int64_t position, int tokens) {
    ids_.clear();
    for (int i = 0; i < tokens; ++i) ids_.emplace_back(static_cast<int32_t>(random_() % 256));
    // All logits are wanted, lest the layer leave out what nobody reads of a last one.
    wanted_.resize(ids_.size());
    std::iota(wanted_.begin(), wanted_.end(), 0);
    model_->Forward(ids_, {Row{.slot = slot, .begin = 0, .end = tokens, .position = position}},
                    wanted_, *pool_);
  }

  void Wait() {
    const absl::Status status = backend_->Sync();
    BST_CHECK(status.ok(), status.ToString());
  }

  Backend* backend_ = nullptr;
  std::unique_ptr<Model> model_;
  std::unique_ptr<StatePool> pool_;
  int chunk_ = 0;
  std::mt19937 random_{1};
  std::vector<TokenId> ids_;
  std::vector<int> wanted_;
};

absl::StatusOr<std::vector<std::pair<const LayerKind*, std::unique_ptr<OneLayer>>>> MakeLayers(
    const LayerBenchOptions& options, Backend& backend) {
  const DType type = options.weights == "f32" ? DType::kF32 : DType::kBF16;
  std::vector<std::pair<const LayerKind*, std::unique_ptr<OneLayer>>> layers;
  const bool every_kind = options.all || options.decode_tokens > 0;
  for (int i = 0; i < static_cast<int>(std::size(kLayers)); ++i) {
    const std::string_view name = kLayers[i].name;
    const bool wanted =
        std::find(options.only.begin(), options.only.end(), name) != options.only.end();
    if (options.only.empty() ? !every_kind && i >= kFigureLayers : !wanted) continue;
    BST_ASSIGN_OR_RETURN(std::unique_ptr<OneLayer> layer,
                         OneLayer::Create(kLayers[i], backend, type, options.chunk_tokens));
    layers.emplace_back(&kLayers[i], std::move(layer));
  }
  return layers;
}

absl::Status WriteJson(const std::string& path, const nlohmann::json& json) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  file << json.dump(1) << "\n";
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

absl::Status RunForward(const LayerBenchOptions& options, Backend& backend) {
  BST_ASSIGN_OR_RETURN(auto layers, MakeLayers(options, backend));
  std::printf("forward time of one layer, milliseconds; %s, %s weights, chunks of %d\n\n%-26s",
              backend.name().c_str(), options.weights.c_str(), options.chunk_tokens, "layer");
  for (const int64_t length : options.lengths)
    std::printf(" %9lld", static_cast<long long>(length));
  std::printf("\n");
  for (auto& [kind, layer] : layers) layer->Forward(options.chunk_tokens);  // warms up
  // Round by round over all layers, so that a drift of the machine meets all alike.
  nlohmann::json rows = nlohmann::json::array();
  std::vector<std::vector<double>> medians(layers.size());
  for (const int64_t length : options.lengths) {
    std::vector<std::vector<double>> seconds(layers.size());
    for (int round = 0; round < options.rounds; ++round) {
      for (size_t i = 0; i < layers.size(); ++i)
        seconds[i].push_back(layers[i].second->Forward(length));
    }
    for (size_t i = 0; i < layers.size(); ++i) {
      medians[i].push_back(Median(seconds[i]));
      rows.push_back(
          {{"layer", layers[i].first->name}, {"tokens", length}, {"seconds", medians[i].back()}});
    }
    std::fprintf(stderr, "measured %lld tokens\n", static_cast<long long>(length));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    std::printf("%-26s", layers[i].first->name);
    for (const double s : medians[i]) std::printf(" %9.2f", s * 1e3);
    std::printf("\n");
  }
  BST_RETURN_IF_ERROR(WriteJson(options.json, {{"backend", backend.name()},
                                               {"weights", options.weights},
                                               {"chunk_tokens", options.chunk_tokens},
                                               {"forward", rows}}));
  const auto brect = std::find_if(layers.begin(), layers.end(), [](const auto& layer) {
    return std::string_view(layer.first->name) == "brect";
  });
  if (brect == layers.end()) return absl::OkStatus();
  const auto& base = medians[static_cast<size_t>(brect - layers.begin())];
  std::printf("\nbrect's time as a multiple of each\n");
  for (size_t i = 0; i < layers.size(); ++i) {
    std::printf("%-26s", layers[i].first->name);
    for (size_t j = 0; j < base.size(); ++j) std::printf(" %9.2f", base[j] / medians[i][j]);
    std::printf("\n");
  }
  return absl::OkStatus();
}

absl::Status RunDecode(const LayerBenchOptions& options, Backend& backend) {
  BST_ASSIGN_OR_RETURN(auto layers, MakeLayers(options, backend));
  constexpr int kWindows = 10;
  const int tokens = std::max(1, options.decode_tokens / kWindows);
  std::printf(
      "%d tokens, one by one; %s, %s weights; microseconds per token in ten stretches of %d\n\n",
      kWindows * tokens, backend.name().c_str(), options.weights.c_str(), tokens);
  std::printf("%-26s %10s %10s %10s %10s %12s %14s\n", "layer", "first", "median", "last",
              "slowest", "last/first", "state bytes");
  nlohmann::json rows = nlohmann::json::array();
  for (auto& [kind, layer] : layers) {
    layer->Decode(1, std::min(tokens, 200));  // warms up
    const std::vector<double> seconds = layer->Decode(kWindows, tokens);
    std::printf("%-26s %10.2f %10.2f %10.2f %10.2f %12.3f %14zu\n", kind->name,
                seconds.front() * 1e6, Median(seconds) * 1e6, seconds.back() * 1e6,
                *std::max_element(seconds.begin(), seconds.end()) * 1e6,
                seconds.back() / seconds.front(), layer->state_bytes());
    rows.push_back({{"layer", kind->name},
                    {"tokens_per_stretch", tokens},
                    {"seconds_per_token", seconds},
                    {"state_bytes", layer->state_bytes()}});
  }
  return WriteJson(options.json,
                   {{"backend", backend.name()}, {"weights", options.weights}, {"decode", rows}});
}

absl::Status Run(const LayerBenchOptions& options) {
  for (const std::string& name : options.only) {
    if (std::none_of(std::begin(kLayers), std::end(kLayers),
                     [&](const LayerKind& kind) { return kind.name == name; })) {
      return absl::InvalidArgumentError(absl::StrCat("--only: no layer is called ", name));
    }
  }
  std::unique_ptr<Backend> backend;
  if (options.backend == "reference") {
    backend = MakeReferenceBackend();
  } else if (options.backend == "cuda") {
    BST_ASSIGN_OR_RETURN(backend, OpenCudaBackend());
  } else {
    BST_ASSIGN_OR_RETURN(backend,
                         MakeCpuBackend({.threads = options.threads, .isa = std::nullopt}));
  }
  return options.decode_tokens > 0 ? RunDecode(options, *backend) : RunForward(options, *backend);
}

}  // namespace

int RunLayerBench(const LayerBenchOptions& options) {
  if (options.lengths.empty() || options.rounds < 1 || options.chunk_tokens < 1 ||
      *std::min_element(options.lengths.begin(), options.lengths.end()) < 1) {
    std::fprintf(stderr, "lengths, rounds and chunk tokens must be at least 1\n");
    return 2;
  }
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace bst
