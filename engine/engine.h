// Engine: a loaded model that generates for many requests at once; the face of this library.
//
// One engine thread owns all mutable model state (scheduler, state pool, model, sampler). Callers
// meet it at a bounded inbox, their sinks, and atomic counters.
//
//   Submit -> inbox -> [Scheduler::Plan -> Model::Forward -> Sampler -> Scheduler::Commit ->
//   sinks]*
//
// Invariants  (1) Every accepted request gets exactly one FinishedEvent, last.
//             (2) A request's tokens and log-probabilities depend on the request alone: bit for bit
//                 the same whatever else runs, and wherever its prompt was cut.
//             (3) Memory for sequences is allocated in Create and never grows.
// Ownership   Owns checkpoint, backend, model and the engine thread; the destructor ends running
//             requests with kUnavailable.
// Threads     Thread-safe.
// Tested by   tests/engine/engine_test.cc, tests/engine/engine_concurrency_test.cc
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/device_memory.h"
#include "engine/base/ids.h"
#include "engine/generate_request.h"
#include "engine/scheduler/prompt_end.h"
#include "engine/token_sink.h"

namespace bst {

// Slots. More is a slip of the keyboard; sums of tokens stay far inside an int.
inline constexpr int kMaxSequences = 1'000'000;

struct EngineOptions {
  std::string model_directory;
  std::string backend = "auto";  // auto (cuda where it can be, else cpu), cpu, cuda or reference
  // auto, f32, bf16 or int8; auto: f32 if any matrix in the file is F32, else bf16
  std::string weights = "auto";
  // Rings and context rows: auto, f32, bf16 or int8; auto: as weights, bf16 with int8 weights.
  std::string kv = "auto";
  int threads = 0;         // 0: all cores this process may use
  int max_sequences = 32;  // slots, at most kMaxSequences
  // Tokens of one step, decode rows and prompt chunks together; at least W + max_sequences - 1: a
  // block of a prompt and a token of every other slot. 0: 2048, or that many if they are more.
  int max_step_tokens = 0;
  int chunk_tokens = 1024;  // largest prompt chunk; rounded down to a multiple of W, at least W
  // Sequences in flight beyond max_sequences from which on requests are refused.
  int max_queue = 1024;
  // Prompt tokens that may wait, of all requests, what has come of open prompts included; a prompt
  // that waits alone may have any number.
  int64_t max_queue_tokens = 16'000'000;
  int64_t max_prompt_tokens = 4'000'000;
  // Prompts of more tokens than long_prompt_tokens are long: together they hold at most
  // max_sequences - reserved_sequences slots; where that is one, its continuations may have a
  // second. reserved_sequences is less than max_sequences; -1: an eighth of them, at least one of
  // several.
  int reserved_sequences = -1;
  int64_t long_prompt_tokens = 16'384;
  // How long a step should take that decodes or ends a prompt: prompt chunks are cut to fit, but a
  // block per step always runs. Infinite: no limit.
  absl::Duration target_step = absl::Milliseconds(50);
  // So much longer must a request have waited to go before one of the next higher priority.
  absl::Duration priority_ageing = absl::Seconds(30);
  // An open prompt ends with kDeadlineExceeded when it waits and nothing of it came for so long, or
  // when it holds its slot and neither a block of it did nor an append without tokens.
  absl::Duration upload_timeout = absl::Seconds(60);
};

// What the engine serves; constant after Create.
struct ModelInfo {
  std::string name;
  std::string backend;      // "cpu (avx512, 2 threads)"
  std::string weights, kv;  // "f32", "bf16", "int8"
  std::string config_json;  // the checkpoint's own config.json
  std::string directory;
  int vocab_size = 0, hidden_size = 0, num_heads = 0, head_dim = 0, ffn_size = 0, window = 0;
  // One per layer, bottom first; <kernel> is "s4d N=16 zoh", "dss N=64", "s4 N=64",
  // "s5 N=32 bilinear" or "explicit T=4096":
  //   transformer    bst single_head <kernel>    bst multi_head <kernel>
  //   bst multi_filter S=32 <kernel>    brect S=256    gss F=2048 E=256 <kernel>
  std::vector<std::string> layers;
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;              // as packed by the backend
  int64_t state_bytes_per_sequence = 0;  // constant, whatever the context length
  int max_sequences = 0, max_step_tokens = 0, chunk_tokens = 0, threads = 0;
  int64_t max_prompt_tokens = 0;
  std::string tokenizer_type;          // "byte" or "sentencepiece"
  std::string tokenizer_path;          // the SentencePiece model; empty for bytes
  std::vector<TokenId> bos, eos, pad;  // zero or one id each
  std::optional<TokenId> eos_token() const {
    return eos.empty() ? std::nullopt : std::optional(eos.front());
  }
  SamplingParams default_sampling;  // generation_config.json over the built-in defaults
  int default_max_new_tokens = 256;
  double load_seconds = 0;
};

// One step, for whoever counts. Delivered on the engine thread; must be quick.
struct StepStats {
  enum class Phase { kPrefill, kDecode, kMixed };
  Phase phase = Phase::kDecode;
  int sequences = 0;
  int tokens = 0;         // all rows
  int prompt_tokens = 0;  // of which prompt
  absl::Duration duration;
};

// One finished request, for metrics and the log line.
struct RequestStats {
  enum class Kind { kGenerate, kScore };
  enum class Stage { kQueued, kPrefill, kDecode };
  Kind kind = Kind::kGenerate;
  Stage stage = Stage::kQueued;  // where it was when it ended
  FinishedEvent finished;
  // Of the continuation that has most of finished.generated_tokens: it decodes for all of
  // finished.timings.decode.
  int64_t longest_tokens = 0;
  absl::Duration total;
};

// Receives what the engine counts. All calls come from the engine thread.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(const StepStats& step) = 0;
  // One call per token. `since_previous`: the gap in its continuation; none for the first of it.
  virtual void OnToken(SequenceId id, std::optional<absl::Duration> since_previous) = 0;
  // One call per request, before OnToken, at the first token of any continuation.
  virtual void OnFirstToken(SequenceId id, absl::Duration since_arrival) = 0;
  virtual void OnFinished(const std::string& request_id, const RequestStats& request) = 0;
};

// A consistent-enough snapshot of the gauges; each is read atomically.
struct EngineLoad {
  int running = 0, waiting = 0;
  int64_t queue_tokens = 0;  // prompt tokens that have come of waiting requests
  // Sequences that run and wait, a request's num_sequences or what is left of them: at
  // max_sequences + max_queue the next request is refused.
  int64_t in_flight = 0;
  // Leased: one per continuation that runs, and one for the prompt until all of them do.
  int slots_total = 0, slots_used = 0;
  int64_t steps = 0;     // since start
  absl::Time last_step;  // when the last step ended
  // Nothing can run: all requests wait for more of their prompts, or for slots that such ones hold.
  bool awaiting_input = false;
  bool healthy = true;  // false after a device failure
  bool draining = false;
};

class Engine {
 public:
  // Loads the model, runs three steps to warm up, starts the engine thread. `observer` may be null
  // and must outlive the engine.
  // Errors: kNotFound, kFailedPrecondition (checkpoint); kInvalidArgument (options); kUnimplemented
  //         (processor); kResourceExhausted (memory); kInternal (the warm-up failed).
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        EngineObserver* observer);
  virtual ~Engine() = default;

  // Queues a request. Events arrive at `sink` until FinishedEvent.
  // Errors: kInvalidArgument naming the field (nothing is pushed then); kResourceExhausted when a
  //         queue limit is reached; kUnavailable while draining; kAlreadyExists for a request_id in
  //         flight (an empty request_id is nobody's).
  virtual absl::StatusOr<SequenceId> Submit(GenerateRequest request,
                                            std::shared_ptr<TokenSink> sink) = 0;
  virtual absl::StatusOr<SequenceId> Submit(ScoreRequest request,
                                            std::shared_ptr<TokenSink> sink) = 0;

  // Appends to the prompt of a request that was submitted with prompt_open; does not block. While
  // the request waits the tokens count in max_queue_tokens; from then on the caller bounds what is
  // appended and not yet read (PrefillProgressEvent). Without tokens it says that as much as a
  // block has come which cannot be tokenised yet; so it renews upload_timeout. After an error the
  // prompt is what it was before.
  // Errors: kNotFound when the request is not in flight (any more); kFailedPrecondition when its
  //         prompt is complete; kInvalidArgument when a token is not in the vocabulary, or the
  //         prompt would exceed max_prompt_tokens or be complete and empty; kResourceExhausted when
  //         max_queue_tokens is reached.
  virtual absl::Status AppendPrompt(SequenceId id, std::vector<TokenId> tokens, PromptEnd end) = 0;
  // Ends one continuation as if it were complete (SequenceEndedEvent, kStopped); the others go on.
  // When none is left the request finishes with OK. No-op if it is unknown or done.
  virtual void StopSequence(SequenceId id, int sequence_index) = 0;

  // Ends a request with kCancelled; its slots are free within one step. No-op if unknown or done.
  virtual void Cancel(SequenceId id) = 0;

  // From now on Submit answers kUnavailable; running and waiting requests go on.
  virtual void Drain() = 0;
  // Waits until nothing runs or waits, or until `deadline`. True: idle.
  virtual bool WaitIdle(absl::Time deadline) = 0;
  // Ends every request with kUnavailable and joins the engine thread. Idempotent.
  virtual void Shutdown() = 0;

  virtual const ModelInfo& info() const = 0;
  virtual EngineLoad load() const = 0;
  // Of a backend with a device of its own.
  virtual std::optional<DeviceMemory> device_memory() const = 0;
};

}  // namespace bst
