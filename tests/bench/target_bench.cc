// One model of 100M parameters against the machine it runs on: 12 layers, D = 768, 12 heads of 64,
// relu FFN 3072, W = 512, sliding scope, 32,000 tied tokens, single-head S4D context (N = 16) in
// layers 3, 7 and 11; random weights.
//
// Every figure stands beside its limit, measured in the same run on the same threads; a fraction of
// 1 is the machine's.
//   prefill   operations of the weights' products and of attention over the rate of the multiply
//             instruction for their types
//   decode    the slower of that and of reading weights and states once, at the bandwidth of
//             reading a buffer of their size
// Elementwise operators, softmax and the state-space layers count as nothing. Of a prompt the last
// layer counts for its heads and contexts alone: the rest it does for one token, whose logits are
// asked for (model.h).
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
#include "tests/bench/metered_backend.h"
#include "tests/bench/random_model.h"
#include "tests/support/statistics.h"

namespace bst {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLayers = 12, kWidth = 768, kHeads = 12, kFfn = 3072, kWindow = 512, kVocab = 32'000;
constexpr int kBstLayers = 3;
// Rounds after the first, and fewer threads than the most, stop here: a token takes as long at any
// length.
constexpr int64_t kRepeatedLength = 65'536;
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
// Of a prompt's token: without what follows the last layer's attention.
double PromptTokenOperations() {
  const double attended = IsBst(kLayers - 1) ? 2 : 1;
  return TokenOperations() - 2 * (attended * kWidth * kWidth + 2.0 * kWidth * kFfn);
}
constexpr double kOutputOperations = 2.0 * kVocab * kWidth;  // of one token's logits

// How many keys a token attends to in each window and in each context.
struct Visible {
  double window, context;
};
// The mean token of a document of `length`.
Visible MeanVisible(int64_t length) {
  const auto n = static_cast<double>(length), w = static_cast<double>(kWindow);
  return {n <= w ? (n + 1) / 2 : w - w * (w - 1) / (2 * n), (std::min(n, w) + 1) / 2};
}
// The token at `position`.
Visible VisibleAt(int64_t position) {
  return {static_cast<double>(std::min<int64_t>(position + 1, kWindow)),
          static_cast<double>(position % kWindow + 1)};
}
double AttentionOperations(Visible visible) {
  return 4.0 * kWidth * (kLayers * visible.window + kBstLayers * visible.context);
}
// Of a prompt's token: without the last layer's.
double PromptAttentionOperations(Visible visible) {
  const double last = visible.window + (IsBst(kLayers - 1) ? visible.context : 0);
  return AttentionOperations(visible) - 4.0 * kWidth * last;
}

struct Types {
  const char* name;
  DType weights, kv;
};
constexpr Types kTypes[] = {{"f32", DType::kF32, DType::kF32},
                            {"bf16", DType::kBF16, DType::kBF16},
                            {"int8", DType::kI8, DType::kBF16},
                            {"int8+kv", DType::kI8, DType::kI8}};

bool IsChosen(const TargetBenchOptions& options, const Types& types) {
  return options.types.empty() ||
         std::find(options.types.begin(), options.types.end(), types.name) != options.types.end();
}

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
    auto pool = StatePool::Create(backend, model_->state_layout(), streams + 1);
    if (!pool.ok()) {
      status = pool.status();
      return;
    }
    pool_ = *std::move(pool);
  }

  // Reads one document as long as the longest of `lengths`, which ascend. after(i, seconds, slot)
  // is called at each: the seconds that its tokens so far and the logits after them have taken.
  template <typename After>
  void Prefill(absl::Span<const int64_t> lengths, const After& after) {
    const SlotLease lease = *pool_->Acquire();
    double seconds = 0;
    int64_t position = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      auto start = Clock::now();
      int n = 0;
      for (; position < lengths[i]; position += n) {
        n = static_cast<int>(std::min<int64_t>(chunk_, lengths[i] - position));
        const int last = n - 1;
        Forward({{.slot = lease.id(), .begin = 0, .end = n, .position = position}},
                absl::MakeConstSpan(&last, position + n == lengths[i] ? 1 : 0));
      }
      seconds += Seconds(start);
      start = Clock::now();
      model_->Logits({n - 1});
      after(i, seconds + Seconds(start), lease.id());
    }
  }

  // Seconds per step in which each of `streams` copies of a sequence, `depth` tokens long, takes
  // one token.
  double Decode(SlotId sequence, int64_t depth, int streams, int steps) {
    std::vector<SlotLease> leases;
    std::vector<Row> rows;
    std::vector<int> indices;
    for (int i = 0; i < streams; ++i) {
      leases.push_back(*pool_->Acquire());
      pool_->Copy(sequence, leases.back().id());
      rows.push_back({.slot = leases.back().id(), .begin = i, .end = i + 1, .position = depth});
      indices.push_back(i);
    }
    std::vector<double> seconds;
    for (int step = 0; step < steps; ++step) {
      const auto start = Clock::now();
      Forward(rows, indices);
      model_->Logits(indices);
      seconds.push_back(Seconds(start));
      for (Row& row : rows) ++row.position;
    }
    return Median(seconds);
  }

  size_t weight_bytes() const { return model_->weight_bytes(); }
  size_t state_bytes() const { return model_->state_layout().bytes_per_slot(); }

 private:
  static double Seconds(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  void Forward(const std::vector<Row>& rows, absl::Span<const int> wanted) {
    ids_.clear();
    for (int i = 0; i < rows.back().end; ++i)
      ids_.emplace_back(static_cast<int32_t>(random_() % kVocab));
    model_->Forward(ids_, rows, wanted, *pool_);
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

MachineLimits Best(const MachineLimits& a, const MachineLimits& b) {
  return {.f32_operations = std::max(a.f32_operations, b.f32_operations),
          .bf16_operations = std::max(a.bf16_operations, b.bf16_operations),
          .int8_operations = std::max(a.int8_operations, b.int8_operations),
          .read_bytes = std::max(a.read_bytes, b.read_bytes),
          .loaded_tile_operations = b.loaded_tile_operations,  // medians: the latest
          .freed_tile_operations = b.freed_tile_operations};
}

void PrintLimits(const Backend& backend, const MachineLimits& limits) {
  std::printf("%s; limits: %.2f TFLOP/s F32, %.2f BF16, %.2f TOP/s INT8, reads %.1f GB/s",
              backend.name().c_str(), limits.f32_operations / 1e12, limits.bf16_operations / 1e12,
              limits.int8_operations / 1e12, limits.read_bytes / 1e9);
  if (limits.loaded_tile_operations > 0) {
    std::printf("; BF16 with tiles from the first-level cache: %.2f, set to zero after use: %.2f",
                limits.loaded_tile_operations / 1e12, limits.freed_tile_operations / 1e12);
  }
  std::printf("\n\n");
}

double RateOf(const MachineLimits& limits, DType type) {
  return type == DType::kF32    ? limits.f32_operations
         : type == DType::kBF16 ? limits.bf16_operations
                                : limits.int8_operations;
}

absl::Status Measure(const TargetBenchOptions& options, const Checkpoint& checkpoint,
                     Backend& backend, int most_threads, const Types& types,
                     const MachineLimits& limits, nlohmann::json& rows) {
  const int most_streams = *std::max_element(options.streams.begin(), options.streams.end());
  absl::Status status;
  TargetModel model(checkpoint, backend, types, options.chunk_tokens, most_streams, status);
  BST_RETURN_IF_ERROR(status);
  const int threads = backend.num_threads();
  const auto report = [&](const char* what, int streams, int64_t length, double tokens_per_second,
                          double limit) {
    std::printf("%-8s %7d %-8s %7d %9lld %11.1f %11.1f %8.2f\n", types.name, threads, what, streams,
                static_cast<long long>(length), tokens_per_second, limit,
                tokens_per_second / limit);
    std::fflush(stdout);
    rows.push_back({{"types", types.name},
                    {"threads", threads},
                    {"what", what},
                    {"streams", streams},
                    {"tokens", length},
                    {"tokens_per_second", tokens_per_second},
                    {"limit", limit}});
  };
  const auto seconds_of_operations = [&](double products, double attention) {
    return products / RateOf(limits, types.weights) + attention / RateOf(limits, types.kv);
  };
  // A step reads every weight once (of the embedding table a row per token) and every state.
  const double embedding = static_cast<double>(kVocab) * kWidth *
                           static_cast<double>(types.weights == DType::kF32 ? 4 : 2);
  const double weights = static_cast<double>(model.weight_bytes()) - embedding;
  const auto state = static_cast<double>(model.state_bytes());
  const auto report_decode = [&](SlotId sequence, int64_t depth, int streams) {
    const double step = model.Decode(sequence, depth, streams, options.decode_steps);
    const double bytes = weights + streams * state;
    const double limit =
        std::max(bytes / MeasureReadRate(threads, std::min(bytes, 1e9)),
                 streams * seconds_of_operations(TokenOperations() + kOutputOperations,
                                                 AttentionOperations(VisibleAt(depth))));
    report("decode", streams, depth, streams / step, streams / limit);
  };

  std::vector<int64_t> lengths = options.lengths;
  std::sort(lengths.begin(), lengths.end());
  int64_t longest = lengths.back();
  if (types.weights == DType::kF32) longest = std::min(longest, options.max_f32_length);
  if (threads < most_threads) longest = std::min(longest, kRepeatedLength);
  lengths.erase(std::upper_bound(lengths.begin(), lengths.end(), longest), lengths.end());
  model.Prefill({options.chunk_tokens}, [](size_t, double, SlotId) {});  // warms up
  std::vector<std::vector<double>> seconds(lengths.size());
  const auto repeated = static_cast<size_t>(
      std::upper_bound(lengths.begin(), lengths.end(), kRepeatedLength) - lengths.begin());
  for (int round = 1; round < options.rounds; ++round) {
    model.Prefill(absl::MakeConstSpan(lengths).first(repeated),
                  [&](size_t i, double s, SlotId) { seconds[i].push_back(s); });
  }
  model.Prefill(lengths, [&](size_t i, double s, SlotId sequence) {
    seconds[i].push_back(s);
    const int64_t n = lengths[i];
    report("prefill", 1, n, static_cast<double>(n) / Median(seconds[i]),
           1 / seconds_of_operations(PromptTokenOperations(),
                                     PromptAttentionOperations(MeanVisible(n))));
    report_decode(sequence, n, 1);
  });
  model.Prefill({kWindow}, [&](size_t, double, SlotId sequence) {
    for (const int streams : options.streams) {
      const bool done = streams == 1 && std::binary_search(lengths.begin(), lengths.end(), kWindow);
      if (!done) report_decode(sequence, kWindow, streams);
    }
  });
  std::printf("%-8s state of a stream %.0f bytes at every length; weights %.1f MB\n", types.name,
              state, static_cast<double>(model.weight_bytes()) / 1e6);
  rows.push_back({{"types", types.name},
                  {"threads", threads},
                  {"what", "state"},
                  {"bytes", model.state_bytes()},
                  {"weight_bytes", model.weight_bytes()}});
  return absl::OkStatus();
}

// Where the time of a kind of step goes: `tokens` of them at once, `times` times.
void PrintProfile(const std::string& title, int times, double tokens,
                  const std::vector<OperatorUse>& uses) {
  double total = 0;
  for (const OperatorUse& use : uses) total += use.seconds;
  std::printf("\n%s: %.2f ms in operators, %.1f tokens/s\n\n", title.c_str(), total / times * 1e3,
              tokens * times / total);
  std::printf("| operator | calls | ms | share | GB/s | 10^9 operations/s |\n");
  std::printf("|---|---:|---:|---:|---:|---:|\n");
  for (const OperatorUse& use : uses) {
    std::printf("| %s | %.4g | %.3f | %.1f %% | %.1f | %.0f |\n", use.name.c_str(),
                static_cast<double>(use.calls) / times, use.seconds / times * 1e3,
                100 * use.seconds / total, use.cost.bytes / use.seconds / 1e9,
                use.cost.operations / use.seconds / 1e9);
  }
  std::fflush(stdout);
}

// What the loop did between its steps is none of theirs.
std::vector<OperatorUse> WithoutCopies(std::vector<OperatorUse> uses) {
  uses.erase(std::remove_if(uses.begin(), uses.end(),
                            [](const OperatorUse& use) { return use.name == "copy slot"; }),
             uses.end());
  return uses;
}

absl::Status Profile(const TargetBenchOptions& options) {
  constexpr int kDepth = 8'192;  // tokens that a sequence has read before
  BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenRandomModel(TheModel()));
  const int most_streams = *std::max_element(options.streams.begin(), options.streams.end());
  for (const int threads : options.threads) {
    BST_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                         MakeCpuBackend({.threads = threads, .isa = std::nullopt}));
    const MachineLimits limits = MeasureMachineLimits(backend->num_threads());
    PrintLimits(*backend, limits);
    for (const Types& types : kTypes) {
      if (!IsChosen(options, types)) continue;
      MeteredBackend metered(backend.get(), /*repeats=*/1, CountedBackend::kCpu);
      absl::Status status;
      TargetModel model(checkpoint, metered, types, options.chunk_tokens, most_streams, status);
      BST_RETURN_IF_ERROR(status);
      const int chunks = std::max(1, kDepth / options.chunk_tokens);
      const int64_t length = int64_t{chunks} * options.chunk_tokens;
      model.Prefill({length}, [](size_t, double, SlotId) {});  // warms up
      metered.Start();
      model.Prefill({length}, [&](size_t, double, SlotId sequence) {
        PrintProfile(absl::StrCat(types.name, ", a prompt's chunk of ", options.chunk_tokens),
                     chunks, options.chunk_tokens, metered.Stop());
        for (const int streams : options.streams) {
          metered.Start();
          model.Decode(sequence, length, streams, options.decode_steps);
          PrintProfile(absl::StrCat(types.name, ", a token of each of ", streams, " streams"),
                       options.decode_steps, streams, WithoutCopies(metered.Stop()));
        }
      });
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const TargetBenchOptions& options) {
  BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, OpenRandomModel(TheModel()));
  nlohmann::json machine = nlohmann::json::array(), rows = nlohmann::json::array();
  std::vector<std::unique_ptr<Backend>> backends;
  int most_threads = 0;
  for (const int threads : options.threads) {
    BST_ASSIGN_OR_RETURN(backends.emplace_back(),
                         MakeCpuBackend({.threads = threads, .isa = std::nullopt}));
    most_threads = std::max(most_threads, backends.back()->num_threads());
  }
  for (const std::unique_ptr<Backend>& backend : backends) {
    std::printf("%-8s %7s %-8s %7s %9s %11s %11s %8s\n", "types", "threads", "what", "streams",
                "context", "tokens/s", "limit", "fraction");
    MachineLimits limits = {};
    for (const Types& types : kTypes) {
      if (!IsChosen(options, types)) continue;
      // Again for each type, and the best so far: a busy neighbour must not lower a limit.
      limits = Best(limits, MeasureMachineLimits(backend->num_threads()));
      BST_RETURN_IF_ERROR(
          Measure(options, checkpoint, *backend, most_threads, types, limits, rows));
    }
    PrintLimits(*backend, limits);
    machine.push_back({{"backend", backend->name()},
                       {"threads", backend->num_threads()},
                       {"f32_operations", limits.f32_operations},
                       {"bf16_operations", limits.bf16_operations},
                       {"int8_operations", limits.int8_operations},
                       {"read_bytes", limits.read_bytes},
                       {"loaded_tile_operations", limits.loaded_tile_operations},
                       {"freed_tile_operations", limits.freed_tile_operations}});
  }
  if (options.json.empty()) return absl::OkStatus();
  std::ofstream file(options.json);
  file << nlohmann::json({{"machine", machine}, {"rows", rows}}).dump(1) << "\n";
  return file ? absl::OkStatus()
              : absl::UnavailableError(absl::StrCat("cannot write ", options.json));
}

}  // namespace

int RunTargetBench(const TargetBenchOptions& options) {
  const auto positive = [](const auto& values) {
    return !values.empty() &&
           std::all_of(values.begin(), values.end(), [](auto n) { return n >= 1; });
  };
  if (options.rounds < 1 || options.chunk_tokens < 1 || options.decode_steps < 1 ||
      !positive(options.streams) || !positive(options.lengths)) {
    std::fprintf(stderr, "lengths, rounds, streams, steps and chunk tokens must be at least 1\n");
    return 2;
  }
  const absl::Status status = options.profile ? Profile(options) : Run(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace bst
