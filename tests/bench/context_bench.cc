// All sequences live at once, one slot each, with their prompts already read; then rounds of
// generation are timed for one sequence at a time. A sequence that waits costs nothing: the engine
// is driven here below its thread, on Model and StatePool, so that prompts need not be read again.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/backend/cpu/cpu_backend.h"
#include "engine/backend/reference/reference_backend.h"
#include "engine/base/status_macros.h"
#include "engine/model/model.h"
#include "nlohmann/json.hpp"
#include "tests/bench/bench.h"
#include "tests/support/statistics.h"

namespace bst {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Resident memory of this process, from /proc.
int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

struct Sequence {
  int64_t prompt_tokens = 0;
  std::optional<SlotLease> lease;
  TokenId last{0};
  int64_t position = 0;
  double prefill_seconds = 0;
  int64_t resident_after_prefill = 0;
  std::vector<double> token_seconds;  // mean of each round
};

class Runner {
 public:
  Runner(Model& model, StatePool& pool, int vocab_size)
      : model_(model), pool_(pool), vocab_size_(vocab_size) {}

  void Prefill(Sequence& sequence, int chunk) {
    std::mt19937 random(1);
    std::vector<TokenId> tokens;
    const auto start = Clock::now();
    for (int64_t done = 0; done < sequence.prompt_tokens;
         done += static_cast<int64_t>(tokens.size())) {
      tokens.clear();
      const int64_t n = std::min<int64_t>(chunk, sequence.prompt_tokens - done);
      for (int64_t i = 0; i < n; ++i)
        tokens.emplace_back(static_cast<int32_t>(random() % static_cast<unsigned>(vocab_size_)));
      Step(sequence, tokens, /*wants_logits=*/done + n == sequence.prompt_tokens);
      if (::isatty(STDERR_FILENO) != 0) {
        std::fprintf(stderr, "\rprompt of %lld: %lld tokens read ",
                     static_cast<long long>(sequence.prompt_tokens),
                     static_cast<long long>(done + n));
      }
    }
    if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\033[K");
    sequence.prefill_seconds = Seconds(start, Clock::now());
    sequence.last = Argmax(static_cast<int>(tokens.size()) - 1);
    sequence.resident_after_prefill = ResidentBytes();
  }

  void Generate(Sequence& sequence, int count) {
    const auto start = Clock::now();
    for (int i = 0; i < count; ++i) {
      Step(sequence, {sequence.last}, /*wants_logits=*/true);
      sequence.last = Argmax(0);
    }
    sequence.token_seconds.push_back(Seconds(start, Clock::now()) / count);
  }

 private:
  // wants_logits: after the last of `tokens`.
  void Step(Sequence& sequence, absl::Span<const TokenId> tokens, bool wants_logits) {
    const Row row = {.slot = sequence.lease->id(),
                     .begin = 0,
                     .end = static_cast<int>(tokens.size()),
                     .position = sequence.position};
    const int last = row.num_tokens() - 1;
    model_.Forward(tokens, {row}, absl::MakeConstSpan(&last, wants_logits ? 1 : 0), pool_);
    sequence.position += row.num_tokens();
  }
  TokenId Argmax(int index) {
    const TensorView logits = model_.Logits({index});
    const float* row = logits.row<float>(0);
    return TokenId(static_cast<int32_t>(std::max_element(row, row + vocab_size_) - row));
  }

  Model& model_;
  StatePool& pool_;
  int vocab_size_;
};

absl::Status Run(const ContextBenchOptions& options) {
  std::unique_ptr<Backend> backend;
  if (options.backend == "reference") {
    backend = MakeReferenceBackend();
  } else {
    BST_ASSIGN_OR_RETURN(backend,
                         MakeCpuBackend({.threads = options.threads, .isa = std::nullopt}));
  }
  BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(options.model));
  const bool f32 =
      options.weights == "f32" || (options.weights == "auto" && checkpoint.has_f32_matrices());
  const DType weights = options.weights == "int8" ? DType::kI8 : f32 ? DType::kF32 : DType::kBF16;
  const DType kv = options.kv == "int8"                             ? DType::kI8
                   : options.kv == "f32"                            ? DType::kF32
                   : options.kv == "auto" && weights == DType::kF32 ? DType::kF32
                                                                    : DType::kBF16;
  const int window = checkpoint.config().window;
  const int chunk = std::max(options.chunk_tokens / window, 1) * window;
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Create(checkpoint, *backend,
                                                                         {.weights = weights,
                                                                          .kv = kv,
                                                                          .max_step_tokens = chunk,
                                                                          .max_logit_rows = 1,
                                                                          .max_rows = 1}));
  BST_ASSIGN_OR_RETURN(
      const std::unique_ptr<StatePool> pool,
      StatePool::Create(*backend, model->state_layout(), static_cast<int>(options.lengths.size())));
  const size_t slot_bytes = model->state_layout().bytes_per_slot();
  std::printf("%s, %s weights, %s rings, %s; state per sequence %.3f MB\n\n",
              checkpoint.name().c_str(), std::string(Name(weights)).c_str(),
              std::string(Name(kv)).c_str(), backend->name().c_str(),
              static_cast<double>(slot_bytes) / 1e6);

  Runner runner(*model, *pool, checkpoint.config().vocab_size);
  std::vector<Sequence> sequences(options.lengths.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].prompt_tokens = options.lengths[i];
    sequences[i].lease = pool->Acquire();
    runner.Prefill(sequences[i], chunk);
  }
  for (Sequence& sequence : sequences)
    runner.Generate(sequence, std::min(options.new_tokens, 20));  // warm
  for (Sequence& sequence : sequences) sequence.token_seconds.clear();
  for (int round = 0; round < options.rounds; ++round) {
    for (Sequence& sequence : sequences) runner.Generate(sequence, options.new_tokens);
  }

  // Ratios pair by pair, within a round: the machine's drift cancels.
  const std::vector<double>& base = sequences.front().token_seconds;
  nlohmann::json rows = nlohmann::json::array();
  std::printf("%12s %14s %12s %14s %10s %14s\n", "context", "prefill tok/s", "prefill s",
              "ms per token", "ratio", "resident MB");
  for (const Sequence& sequence : sequences) {
    std::vector<double> ratios;
    for (size_t i = 0; i < base.size(); ++i) ratios.push_back(sequence.token_seconds[i] / base[i]);
    const double token = Median(sequence.token_seconds), ratio = Median(ratios);
    std::printf("%12lld %14.0f %12.2f %14.4f %10.3f %14.1f\n",
                static_cast<long long>(sequence.prompt_tokens),
                static_cast<double>(sequence.prompt_tokens) / sequence.prefill_seconds,
                sequence.prefill_seconds, token * 1e3, ratio,
                static_cast<double>(sequence.resident_after_prefill) / 1e6);
    rows.push_back({{"context_tokens", sequence.prompt_tokens},
                    {"prefill_seconds", sequence.prefill_seconds},
                    {"token_seconds", token},
                    {"ratio", ratio},
                    {"resident_bytes", sequence.resident_after_prefill},
                    {"state_bytes", slot_bytes}});
  }
  std::printf(
      "\nratio: median over %d rounds of time per token against that at %lld tokens, in the same "
      "round.\n",
      options.rounds, static_cast<long long>(sequences.front().prompt_tokens));
  if (!options.json.empty()) {
    std::ofstream file(options.json);
    file << nlohmann::json{{"model", checkpoint.name()},
                           {"backend", backend->name()},
                           {"rows", rows}}
                .dump(1)
         << "\n";
    if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", options.json));
  }
  return absl::OkStatus();
}

}  // namespace

int RunContextBench(const ContextBenchOptions& options) {
  if (options.lengths.empty() || options.new_tokens < 1 || options.rounds < 1 ||
      *std::min_element(options.lengths.begin(), options.lengths.end()) < 1) {
    std::fprintf(stderr, "lengths, new tokens and rounds must be at least 1\n");
    return 2;
  }
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace bst
