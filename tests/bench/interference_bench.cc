// One long prompt is read while streams decode and short requests come one after the other: what
// does each of them feel of the others? The engine runs in this process, without a network.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/engine.h"
#include "tests/bench/bench.h"
#include "tests/support/statistics.h"

namespace bst {
namespace {

// Keeps what the engine tells while it is asked to; read when the engine is shut down.
class Recorder final : public EngineObserver {
 public:
  void OnStep(const StepStats& step) override {
    if (!on_) return;
    step_ms.push_back(absl::ToDoubleMilliseconds(step.duration));
    step_end.push_back(absl::Now());
    step_tokens.push_back(step.tokens);
  }
  void OnToken(SequenceId, std::optional<absl::Duration> since_previous) override {
    if (on_ && since_previous.has_value()) {
      gap_ms.push_back(absl::ToDoubleMilliseconds(*since_previous));
    }
  }
  void OnFirstToken(SequenceId, absl::Duration) override {}
  void OnFinished(const std::string&, const RequestStats&) override {}

  void Turn(bool on) { on_ = on; }

  // Milliseconds of the longest step that ran at some moment between the two; 0: none did.
  double LongestStepBetween(absl::Time begin, absl::Time end) const {
    double longest = 0;
    for (size_t i = 0; i < step_ms.size(); ++i) {
      if (step_end[i] >= begin && step_end[i] - absl::Milliseconds(step_ms[i]) <= end) {
        longest = std::max(longest, step_ms[i]);
      }
    }
    return longest;
  }

  std::vector<double> step_ms, step_tokens, gap_ms;
  std::vector<absl::Time> step_end;

 private:
  std::atomic<bool> on_ = false;
};

// Waits for a request's first token and its end.
class Waiter final : public TokenSink {
 public:
  void Push(SequenceEvent event) override {
    const bool is_end = std::holds_alternative<FinishedEvent>(event);
    if (is_end) status_ = std::get<FinishedEvent>(event).status;
    if ((is_end || std::holds_alternative<GeneratedEvent>(event)) &&
        !first_token_.HasBeenNotified()) {
      first_token_.Notify();
    }
    if (is_end) finished_.Notify();
  }
  void WaitFirstToken() { first_token_.WaitForNotification(); }
  bool has_first_token() const { return first_token_.HasBeenNotified(); }
  absl::Status WaitFinished() {
    finished_.WaitForNotification();
    return status_;
  }

 private:
  absl::Notification first_token_, finished_;
  absl::Status status_;
};

class Traffic {
 public:
  explicit Traffic(Engine& engine) : engine_(engine) {}

  GenerateRequest Random(int64_t prompt_tokens, int new_tokens) {
    GenerateRequest request;
    request.prompt.reserve(static_cast<size_t>(prompt_tokens));
    const auto vocab_size = static_cast<uint32_t>(engine_.info().vocab_size);
    for (int64_t i = 0; i < prompt_tokens; ++i)
      request.prompt.push_back(TokenId(static_cast<int32_t>(random_() % vocab_size)));
    request.stopping.max_new_tokens = new_tokens;
    request.stopping.ignore_eos = true;
    return request;
  }
  // Milliseconds to the first token of a request that asks for one.
  absl::StatusOr<double> TimeToFirstToken(int prompt_tokens) {
    GenerateRequest request = Random(prompt_tokens, 1);
    const auto sink = std::make_shared<Waiter>();
    const absl::Time begin = absl::Now();
    BST_RETURN_IF_ERROR(engine_.Submit(std::move(request), sink).status());
    sink->WaitFirstToken();
    const absl::Time end = absl::Now();
    BST_RETURN_IF_ERROR(sink->WaitFinished());
    return absl::ToDoubleMilliseconds(end - begin);
  }

 private:
  Engine& engine_;
  std::mt19937 random_{1};
};

absl::Status Run(const InterferenceBenchOptions& options) {
  EngineOptions engine_options;
  engine_options.model_directory = options.model;
  engine_options.threads = options.threads;
  if (options.target_step_ms > 0)
    engine_options.target_step = absl::Milliseconds(options.target_step_ms);
  if (options.chunk_tokens > 0) engine_options.chunk_tokens = options.chunk_tokens;
  engine_options.max_prompt_tokens =
      std::max(engine_options.max_prompt_tokens, options.long_tokens);
  Recorder recorder;
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                       Engine::Create(engine_options, &recorder));
  Traffic traffic(*engine);

  std::vector<double> idle_ms;
  for (int i = -3; i < 20; ++i) {
    BST_ASSIGN_OR_RETURN(const double ms, traffic.TimeToFirstToken(options.short_tokens));
    if (i >= 0) idle_ms.push_back(ms);
  }

  std::vector<std::shared_ptr<Waiter>> streams;
  std::vector<SequenceId> ids;
  const auto start = [&](GenerateRequest request) {
    const auto sink = std::make_shared<Waiter>();
    const absl::StatusOr<SequenceId> id = engine->Submit(std::move(request), sink);
    if (!id.ok()) return id.status();
    streams.push_back(sink);
    ids.push_back(*id);
    return absl::OkStatus();
  };
  for (int i = 0; i < options.streams; ++i) {
    BST_RETURN_IF_ERROR(start(traffic.Random(16, 100'000'000)));
    streams.back()->WaitFirstToken();
  }
  GenerateRequest long_request = traffic.Random(options.long_tokens, 1);
  const absl::Time begin = absl::Now();
  BST_RETURN_IF_ERROR(start(std::move(long_request)));
  const Waiter& long_prompt = *streams.back();
  absl::SleepFor(absl::Milliseconds(300));  // Its chunks have found their size.

  recorder.Turn(true);
  std::vector<double> short_ms;
  std::vector<absl::Time> short_begin;
  std::mt19937 random(1);
  while (!long_prompt.has_first_token() && absl::Now() - begin < absl::Seconds(options.seconds)) {
    short_begin.push_back(absl::Now());
    BST_ASSIGN_OR_RETURN(const double ms, traffic.TimeToFirstToken(options.short_tokens));
    short_ms.push_back(ms);
    // Not the same: it would come at the same moment of every step.
    absl::SleepFor(absl::Milliseconds(2 * options.interval_ms) *
                   std::uniform_real_distribution<double>()(random));
  }
  recorder.Turn(false);
  const absl::Duration observed = absl::Now() - begin;
  const bool is_read = long_prompt.has_first_token();
  for (const SequenceId id : ids) engine->Cancel(id);
  for (const auto& stream : streams) {
    const absl::Status status = stream->WaitFinished();
    if (!status.ok() && !absl::IsCancelled(status)) return status;
  }
  engine->Shutdown();
  if (short_ms.empty() || recorder.step_ms.empty() || recorder.gap_ms.empty()) {
    return absl::FailedPreconditionError("the long prompt was read before anything was measured");
  }

  const double idle = Percentile(idle_ms, 50);
  size_t num_in_time = 0;
  for (size_t i = 0; i < short_ms.size(); ++i) {
    const absl::Time first_token = short_begin[i] + absl::Milliseconds(short_ms[i]);
    num_in_time +=
        short_ms[i] <= 3 * idle + recorder.LongestStepBetween(short_begin[i], first_token);
  }
  const auto row = [](const char* name, const std::vector<double>& values) {
    std::printf("%-34s %9.1f %9.1f %9.1f %9.1f %7zu\n", name, Percentile(values, 50),
                Percentile(values, 90), Percentile(values, 99), Percentile(values, 100),
                values.size());
  };
  std::printf("%s, %s; a prompt of %lld tokens %s in %.1f s, beside %d streams\n\n",
              engine->info().name.c_str(), engine->info().backend.c_str(),
              static_cast<long long>(options.long_tokens),
              is_read ? "was read" : "was not read to its end", absl::ToDoubleSeconds(observed),
              options.streams);
  std::printf("%-34s %9s %9s %9s %9s %7s\n", "milliseconds", "p50", "p90", "p99", "max", "n");
  row("first token of a short one, idle", idle_ms);
  row("first token of a short one, beside", short_ms);
  row("between the tokens of a stream", recorder.gap_ms);
  row("step", recorder.step_ms);
  row("step, tokens", recorder.step_tokens);
  std::printf(
      "\n%.1f %% of the first tokens came within 3 x %.1f ms and the longest step they met\n",
      100.0 * static_cast<double>(num_in_time) / static_cast<double>(short_ms.size()), idle);
  return absl::OkStatus();
}

}  // namespace

int RunInterferenceBench(const InterferenceBenchOptions& options) {
  if (options.long_tokens < 1 || options.short_tokens < 1 || options.streams < 0 ||
      options.interval_ms < 0) {
    std::fprintf(stderr, "token counts must be at least 1, streams and intervals at least 0\n");
    return 2;
  }
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace bst
