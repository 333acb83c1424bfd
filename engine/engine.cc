#include "engine/engine.h"

#include <algorithm>
#include <exception>
#include <initializer_list>
#include <thread>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "engine/active_request.h"
#include "engine/backend/cpu/cpu_backend.h"
#include "engine/backend/cuda/cuda_plugin.h"
#include "engine/backend/reference/reference_backend.h"
#include "engine/base/annotate.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/out_of_memory.h"
#include "engine/base/status_macros.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/create_engine.h"
#include "engine/inbox.h"
#include "engine/model/model.h"
#include "engine/model_info.h"
#include "engine/request_check.h"
#include "engine/step_runner.h"

namespace bst {
namespace {

// Logits of so many rows at a time: 256, as long as they take no more than 64 MB.
int LogitRows(int vocab_size) {
  constexpr int64_t kMaxRows = 256, kMaxBytes = int64_t{64} << 20;
  return static_cast<int>(std::clamp<int64_t>(kMaxBytes / 4 / vocab_size, 1, kMaxRows));
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(ModelInfo info, std::unique_ptr<Backend> backend, const Clock& clock,
             const InboxLimits& limits)
      : info_(std::move(info)), backend_(std::move(backend)), clock_(clock), inbox_(limits) {}
  ~EngineImpl() override { EngineImpl::Shutdown(); }

  absl::Status Start(std::unique_ptr<Model> model, std::unique_ptr<StatePool> pool,
                     std::unique_ptr<StepSampler> sampler, const SchedulerLimits& limits,
                     absl::Duration target_step, EngineObserver* observer);
  void SetLoadTime(absl::Duration duration) {
    info_.load_seconds = absl::ToDoubleSeconds(duration);
  }

  absl::StatusOr<SequenceId> Submit(GenerateRequest request,
                                    std::shared_ptr<TokenSink> sink) override;
  absl::StatusOr<SequenceId> Submit(ScoreRequest request, std::shared_ptr<TokenSink> sink) override;
  absl::Status AppendPrompt(SequenceId id, std::vector<TokenId> tokens, PromptEnd end) override;
  void StopSequence(SequenceId id, int sequence_index) override {
    inbox_.StopSequence(id, sequence_index);
  }
  void Cancel(SequenceId id) override { inbox_.Cancel(id); }
  void Drain() override { inbox_.Drain(); }
  bool WaitIdle(absl::Time deadline) override { return inbox_.WaitIdle(deadline); }
  void Shutdown() override ABSL_LOCKS_EXCLUDED(join_mutex_);
  const ModelInfo& info() const override { return info_; }
  EngineLoad load() const override;
  std::optional<DeviceMemory> device_memory() const override { return backend_->device_memory(); }

 private:
  RequestLimits limits() const {
    return {.vocab_size = info_.vocab_size,
            .max_prompt_tokens = info_.max_prompt_tokens,
            .max_sequences = info_.max_sequences,
            .eos = info_.eos_token()};
  }
  void Loop();

  ModelInfo info_;
  const std::unique_ptr<Backend> backend_;  // Destroyed after all that lives on it.
  const Clock& clock_;
  Inbox inbox_;
  std::unique_ptr<StepRunner> runner_;
  absl::Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);  // runs Loop()
};

absl::Status EngineImpl::Start(std::unique_ptr<Model> model, std::unique_ptr<StatePool> pool,
                               std::unique_ptr<StepSampler> sampler, const SchedulerLimits& limits,
                               absl::Duration target_step, EngineObserver* observer) {
  runner_ =
      std::make_unique<StepRunner>(*backend_, std::move(model), std::move(pool), std::move(sampler),
                                   limits, target_step, clock_, inbox_, observer);
  BST_RETURN_IF_ERROR(runner_->WarmUp());
  absl::MutexLock lock(&join_mutex_);
  try {
    thread_ = std::thread(&EngineImpl::Loop, this);
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("engine thread: ", error.what()));
  }
  return absl::OkStatus();
}

void EngineImpl::Loop() {
  Inbox::Delivery delivery;
  while (!delivery.closed) {
    inbox_.Take(runner_->Patience(), delivery);
    for (std::unique_ptr<ActiveRequest>& request : delivery.requests)
      runner_->Accept(std::move(request));
    for (const Inbox::PromptPart& part : delivery.prompt_parts) runner_->AppendPrompt(part);
    for (const auto& [id, index] : delivery.stopped) runner_->StopSequence(id, index);
    for (const SequenceId id : delivery.cancelled) runner_->Cancel(id);
    if (!delivery.closed) runner_->Step();
  }
  runner_->EndAll(absl::UnavailableError("the engine is shutting down"));
  inbox_.Retire();
}

void EngineImpl::Shutdown() {
  inbox_.Close();
  absl::MutexLock lock(&join_mutex_);
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<SequenceId> EngineImpl::Submit(GenerateRequest request,
                                              std::shared_ptr<TokenSink> sink) {
  BST_RETURN_IF_ERROR(CheckRequest(request, limits()));
  auto active = std::make_unique<ActiveRequest>();
  active->request_id = std::move(request.request_id);
  active->kind = RequestStats::Kind::kGenerate;
  active->prompt_tokens = static_cast<int64_t>(request.prompt.size());
  active->prompt_open = request.prompt_open;
  // Whoever sends an open prompt must know how far it has been read.
  active->prompt_progress = request.prompt_progress || request.prompt_open;
  active->priority = request.priority;
  active->continuations.resize(static_cast<size_t>(request.num_sequences));
  active->top_logprobs = request.top_logprobs;
  active->arrived = clock_.Now() - request.age;
  active->start_by = active->arrived + request.queue_timeout;
  active->finish_by = active->arrived + request.time_limit;
  active->sink = std::move(sink);
  if (!request.stopping.ignore_eos) active->eos = info_.eos_token();
  active->ending = request.stopping.stop_token_ids;
  if (active->eos.has_value()) active->ending.push_back(*active->eos);
  active->stopping = std::move(request.stopping);
  // Made here, not on the engine thread: penalties take a look at the whole prompt.
  active->sampler =
      std::make_unique<Sampler>(Sampler::Options{.params = std::move(request.sampling),
                                                 .vocab_size = info_.vocab_size,
                                                 .top_logprobs = request.top_logprobs},
                                request.prompt);
  active->prompt = std::move(request.prompt);
  return inbox_.Submit(std::move(active));
}

absl::StatusOr<SequenceId> EngineImpl::Submit(ScoreRequest request,
                                              std::shared_ptr<TokenSink> sink) {
  BST_RETURN_IF_ERROR(CheckRequest(request, limits()));
  auto active = std::make_unique<ActiveRequest>();
  active->request_id = std::move(request.request_id);
  active->kind = RequestStats::Kind::kScore;
  active->prompt_progress = true;
  active->prompt_tokens = static_cast<int64_t>(request.tokens.size());
  active->priority = request.priority;
  active->top_logprobs = request.top_logprobs;
  active->arrived = clock_.Now() - request.age;
  active->sink = std::move(sink);
  active->prompt = std::move(request.tokens);
  return inbox_.Submit(std::move(active));
}

absl::Status EngineImpl::AppendPrompt(SequenceId id, std::vector<TokenId> tokens, PromptEnd end) {
  BST_RETURN_IF_ERROR(CheckPromptPart(tokens, info_.vocab_size));
  Inbox::PromptPart part = {.id = id, .tokens = std::move(tokens), .end = end};
  // Made here, not on the engine thread, as the sampler was: penalties look at all of the part.
  if (inbox_.SamplerLooksAtPrompt(id)) {
    part.for_sampler = DistinctTokens(part.tokens, info_.vocab_size);
  }
  return inbox_.AppendPrompt(std::move(part));
}

EngineLoad EngineImpl::load() const {
  EngineLoad load = runner_->load();
  load.waiting = inbox_.num_waiting();
  load.queue_tokens = inbox_.waiting_tokens();
  load.in_flight = inbox_.num_in_flight();
  load.draining = inbox_.draining();
  return load;
}

// Collects what is wrong with options, so that all of it is reported together.
class Problems {
 public:
  template <typename... Parts>
  void Require(bool condition, const Parts&... parts) {
    if (!condition) problems_.push_back(absl::StrCat(parts...));
  }
  void RequireOneOf(absl::string_view name, absl::string_view value,
                    std::initializer_list<absl::string_view> allowed) {
    Require(absl::c_linear_search(allowed, value), name, " is \"", value, "\", must be one of ",
            absl::StrJoin(allowed, ", "));
  }
  absl::Status ToStatus() const {
    return problems_.empty() ? absl::OkStatus()
                             : absl::InvalidArgumentError(absl::StrJoin(problems_, "; "));
  }

 private:
  std::vector<std::string> problems_;
};

// What can be said of the options alone.
absl::Status CheckOptions(const EngineOptions& options) {
  Problems problems;
  problems.Require(!options.model_directory.empty(), "model_directory is empty");
  problems.RequireOneOf("backend", options.backend, {"auto", "cpu", "cuda", "reference"});
  problems.RequireOneOf("weights", options.weights, {"auto", "f32", "bf16", "int8"});
  problems.RequireOneOf("kv", options.kv, {"auto", "f32", "bf16", "int8"});
  const auto require_at_least = [&problems](absl::string_view name, int64_t value, int64_t least) {
    problems.Require(value >= least, name, " is ", value, ", must be at least ", least);
  };
  require_at_least("threads", options.threads, 0);
  require_at_least("max_sequences", options.max_sequences, 1);
  problems.Require(options.max_sequences <= kMaxSequences, "max_sequences is ",
                   options.max_sequences, ", must be at most ", kMaxSequences);
  require_at_least("max_step_tokens", options.max_step_tokens, 0);
  require_at_least("chunk_tokens", options.chunk_tokens, 1);
  require_at_least("max_queue", options.max_queue, 0);
  require_at_least("max_queue_tokens", options.max_queue_tokens, 0);
  require_at_least("max_prompt_tokens", options.max_prompt_tokens, 1);
  require_at_least("reserved_sequences", options.reserved_sequences, -1);
  problems.Require(options.reserved_sequences < options.max_sequences, "reserved_sequences is ",
                   options.reserved_sequences, ", must be less than max_sequences, ",
                   options.max_sequences);
  require_at_least("long_prompt_tokens", options.long_prompt_tokens, 1);
  const auto require_positive = [&problems](absl::string_view name, absl::Duration value) {
    problems.Require(value > absl::ZeroDuration(), name, " is ", absl::FormatDuration(value),
                     ", must be positive");
  };
  require_positive("target_step", options.target_step);
  require_positive("upload_timeout", options.upload_timeout);
  problems.Require(options.priority_ageing >= absl::ZeroDuration(), "priority_ageing is ",
                   absl::FormatDuration(options.priority_ageing), ", must not be negative");
  return problems.ToStatus();
}

// What depends on the model: the tokens of a step, chosen where the options leave it open.
absl::StatusOr<int> StepTokens(const EngineOptions& options, int window) {
  constexpr int64_t kUsualStepTokens = 2048;
  const int64_t least = int64_t{window} + options.max_sequences - 1;
  if (options.max_step_tokens == 0) return static_cast<int>(std::max(kUsualStepTokens, least));
  if (options.max_step_tokens >= least) return options.max_step_tokens;
  return absl::InvalidArgumentError(
      absl::StrCat("max_step_tokens is ", options.max_step_tokens, ", must be at least ", least,
                   ": a block of this model (", window,
                   " tokens) and a token of each other sequence (max_sequences is ",
                   options.max_sequences, ")"));
}

// Slots that long prompts leave to others: as the options say or an eighth, and one if that is
// none; but a lone slot is everybody's.
int ReservedSequences(const EngineOptions& options) {
  if (options.reserved_sequences >= 0) return options.reserved_sequences;
  return options.max_sequences == 1 ? 0 : std::max(options.max_sequences / 8, 1);
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const EngineOptions& options) {
  if (options.backend == "reference") return MakeReferenceBackend();
  if (options.backend == "cuda") return OpenCudaBackend();
  if (options.backend == "auto") {
    absl::StatusOr<std::unique_ptr<Backend>> cuda = OpenCudaBackend();
    if (cuda.ok()) return cuda;
    Log(LogLevel::kInfo, "backend_cpu", {{"reason", std::string(cuda.status().message())}});
  }
  CpuOptions cpu;
  cpu.threads = options.threads;
  return MakeCpuBackend(cpu);
}

DType ParseType(absl::string_view name, DType otherwise) {
  if (name == "auto") return otherwise;
  if (name == "int8") return DType::kI8;
  return name == "f32" ? DType::kF32 : DType::kBF16;
}

std::string TypeName(DType type) {
  if (type == DType::kI8) return "int8";
  return type == DType::kF32 ? "f32" : "bf16";
}

// CreateEngine, but for memory that runs out.
absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const EngineOptions& options,
                                                   EngineObserver* observer, EngineParts parts) {
  const absl::Time begin = parts.clock->Now();
  BST_RETURN_IF_ERROR(CheckOptions(options));
  BST_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(options.model_directory));
  const int window = checkpoint.config().window;
  BST_ASSIGN_OR_RETURN(const int max_step_tokens, StepTokens(options, window));
  BST_ASSIGN_OR_RETURN(ModelInfo info, DescribeCheckpoint(checkpoint));
  if (parts.backend == nullptr) {
    BST_ASSIGN_OR_RETURN(parts.backend, MakeBackend(options));
  }

  const DType weights =
      ParseType(options.weights, checkpoint.has_f32_matrices() ? DType::kF32 : DType::kBF16);
  const DType kv = ParseType(options.kv, weights == DType::kI8 ? DType::kBF16 : weights);
  if ((weights == DType::kI8 || kv == DType::kI8) && !parts.backend->HasInt8()) {
    return absl::UnimplementedError(
        absl::StrCat("the backend ", parts.backend->name(), " has no int8; use f32 or bf16"));
  }
  const int chunk_tokens = std::max(options.chunk_tokens / window, 1) * window;
  const int max_logit_rows = std::min(LogitRows(checkpoint.config().vocab_size), max_step_tokens);
  BST_ASSIGN_OR_RETURN(
      std::unique_ptr<Model> model,
      Model::Create(checkpoint, *parts.backend,
                    {.weights = weights,
                     .kv = kv,
                     .max_step_tokens = max_step_tokens,
                     .max_logit_rows = max_logit_rows,
                     .max_rows = options.max_sequences,
                     .logits = parts.backend->HasSampling() ? LogitsPlace::kDevice
                                                            : LogitsPlace::kHostReadable}));
  absl::StatusOr<std::unique_ptr<StatePool>> created =
      StatePool::Create(*parts.backend, model->state_layout(), options.max_sequences);
  if (!created.ok()) {
    return Annotate(created.status(), absl::StrCat("max_sequences is ", options.max_sequences));
  }
  std::unique_ptr<StatePool> pool = *std::move(created);
  BST_ASSIGN_OR_RETURN(std::unique_ptr<StepSampler> sampler,
                       StepSampler::Create(*parts.backend, model->vocab_size(),
                                           options.max_sequences, max_logit_rows));

  info.backend = parts.backend->name();
  info.threads = parts.backend->num_threads();
  info.weights = TypeName(weights);
  info.kv = TypeName(kv);
  info.weight_bytes = static_cast<int64_t>(model->weight_bytes());
  info.state_bytes_per_sequence = static_cast<int64_t>(model->state_layout().bytes_per_slot());
  info.max_sequences = options.max_sequences;
  info.max_step_tokens = max_step_tokens;
  info.chunk_tokens = chunk_tokens;
  info.max_prompt_tokens = options.max_prompt_tokens;

  const InboxLimits inbox_limits = {
      .max_in_flight = int64_t{options.max_sequences} + options.max_queue,
      .max_waiting_tokens = options.max_queue_tokens,
      .max_prompt_tokens = options.max_prompt_tokens};
  const SchedulerLimits scheduler_limits = {
      .max_step_tokens = max_step_tokens,
      .chunk_tokens = chunk_tokens,
      .window = window,
      .long_prompt_tokens = options.long_prompt_tokens,
      .long_slots = options.max_sequences - ReservedSequences(options),
      .priority_ageing = options.priority_ageing,
      .upload_timeout = options.upload_timeout};
  auto engine = std::make_unique<EngineImpl>(std::move(info), std::move(parts.backend),
                                             *parts.clock, inbox_limits);
  BST_RETURN_IF_ERROR(engine->Start(std::move(model), std::move(pool), std::move(sampler),
                                    scheduler_limits, options.target_step, observer));
  engine->SetLoadTime(parts.clock->Now() - begin);
  return engine;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(const EngineOptions& options,
                                                     EngineObserver* observer, EngineParts parts) {
  return OrResourceExhausted("engine",
                             [&] { return LoadEngine(options, observer, std::move(parts)); });
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       EngineObserver* observer) {
  return CreateEngine(options, observer, {});
}

}  // namespace bst
