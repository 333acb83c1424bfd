#include "server/server_flags.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/version.h"

ABSL_FLAG(std::string, model, "",
          "Directory of the checkpoint: config.json and *.safetensors. Required.");
ABSL_FLAG(std::string, listen, bst::ServerConfig().listen,
          "HOST:PORT of the gRPC service, an IPv6 host in brackets. Port 0 picks a free one, which "
          "the ready line names.");
ABSL_FLAG(std::string, metrics_listen, bst::ServerConfig().metrics_listen,
          "HOST:PORT of Prometheus metrics over HTTP at /metrics; IPv4 alone. Empty: off.");
ABSL_FLAG(
    std::string, control_listen, bst::ServerConfig().control_listen,
    "HOST:PORT of the control service (load, abort, drain). Empty: off. Keep it from clients.");
ABSL_FLAG(std::string, backend, bst::EngineOptions().backend,
          "What computes: auto (cuda where there is a GPU and its engine, else cpu), cpu, cuda or "
          "reference (slow, for comparison).");
ABSL_FLAG(
    std::string, weights, bst::EngineOptions().weights,
    "Number type of the weights: auto, f32, bf16 or int8. auto: f32 if any matrix in the file is "
    "F32, else bf16. bf16 halves memory and the bytes read per token, int8 quarters them and "
    "quantises the inputs of matrix products too.");
ABSL_FLAG(
    std::string, kv, bst::EngineOptions().kv,
    "Number type of the attention state: auto, f32, bf16 or int8. auto: as the weights, bf16 with "
    "int8 weights. bf16 halves the memory of a sequence, int8 about quarters it.");
ABSL_FLAG(int, threads, bst::EngineOptions().threads,
          "Threads that compute. 0: all cores this process may use.");
ABSL_FLAG(
    int, max_sequences, bst::EngineOptions().max_sequences,
    "Slots: continuations that run at the same time, of all requests, at most a million. Each "
    "costs its state's memory from the start.");
ABSL_FLAG(int, max_step_tokens, bst::EngineOptions().max_step_tokens,
          "Tokens of one step of the engine, of all sequences. 0: 2048, or what the model's window "
          "and the slots need. More: prompts are read faster; running streams wait longer between "
          "two tokens while a prompt is read.");
ABSL_FLAG(
    int, chunk_tokens, bst::EngineOptions().chunk_tokens,
    "Tokens of one prompt in one step; rounded down to a multiple of the model's window W, at "
    "least W. More: as for --max_step_tokens.");
ABSL_FLAG(
    int, max_queue, bst::EngineOptions().max_queue,
    "Requests that may wait for slots; the next is answered with RESOURCE_EXHAUSTED. One with "
    "several continuations counts as that many. More: bursts are taken in; the last of them "
    "waits longer.");
ABSL_FLAG(
    int64_t, max_queue_tokens, bst::EngineOptions().max_queue_tokens,
    "Prompt tokens that may wait, of all requests, what has come of uploads included; 4 bytes "
    "of memory each. Text of uploads that cannot be tokenised before its end may take as much "
    "again. What exceeds either is answered with RESOURCE_EXHAUSTED, unless it waits alone.");
ABSL_FLAG(int64_t, max_prompt_tokens, bst::EngineOptions().max_prompt_tokens,
          "Tokens of one prompt; a longer one is answered with INVALID_ARGUMENT.");
ABSL_FLAG(
    int, reserved_sequences, bst::EngineOptions().reserved_sequences,
    "Slots that prompts of more than --long_prompt_tokens leave to others, less than "
    "--max_sequences. -1: an eighth of them, at least one of several. More: short requests "
    "start sooner beside long ones; fewer long ones run at the same time. An upload counts as "
    "long while it arrives.");
ABSL_FLAG(int64_t, long_prompt_tokens, bst::EngineOptions().long_prompt_tokens,
          "Tokens above which a prompt is long, see --reserved_sequences.");
ABSL_FLAG(
    double, target_step_ms, absl::ToDoubleMilliseconds(bst::EngineOptions().target_step),
    "Milliseconds that a step should take while streams run: prompt chunks are cut to fit. 0: "
    "no limit. More: prompts are read faster; running streams wait longer between two tokens "
    "while a prompt is read.");
ABSL_FLAG(
    double, priority_ageing_seconds, absl::ToDoubleSeconds(bst::EngineOptions().priority_ageing),
    "Seconds of waiting that a level of priority is worth: so much longer must a request have "
    "waited to go before one of the next higher level. 0: priorities do not count.");
ABSL_FLAG(
    double, upload_timeout_seconds, absl::ToDoubleSeconds(bst::EngineOptions().upload_timeout),
    "Seconds for which no further part of a GenerateUpload need come, the first one included; then "
    "the request ends with DEADLINE_EXCEEDED. Once it holds its slot, as many tokens as the "
    "model's window, or as many bytes of text that cannot be tokenised yet, must come in that "
    "time.");
ABSL_FLAG(
    int64_t, max_message_bytes, bst::ServerConfig().max_message_bytes,
    "Bytes of one request message; a larger one is answered with RESOURCE_EXHAUSTED. A token id "
    "takes 1 to 3 bytes. Larger prompts come by GenerateUpload.");
ABSL_FLAG(
    double, write_timeout_seconds, absl::ToDoubleSeconds(bst::ServerConfig().write_timeout),
    "Seconds that a client may take to receive one message, 1 MB at most in a stream; then its "
    "call is cancelled. So is one whose output is still being received that long after its request "
    "ended, once 256 MB of such output wait and others are refused for it. More: readers may pause "
    "longer; unread output, up to 64 MB of a call, stays in memory for longer.");
ABSL_FLAG(double, grace_seconds, absl::ToDoubleSeconds(bst::ServerConfig().grace),
          "Seconds that SIGTERM leaves running streams to finish; what is left then ends with "
          "UNAVAILABLE.");
ABSL_FLAG(std::string, tls_cert, "",
          "PEM file with the server's certificate chain. Empty: no TLS.");
ABSL_FLAG(std::string, tls_key, "", "PEM file with the key of --tls_cert.");
ABSL_FLAG(std::string, tls_client_ca, "",
          "PEM file with certificate authorities. Set: clients must show a certificate one of them "
          "signed.");
ABSL_FLAG(std::string, auth_token_file, "",
          "File with keys, one per line: KEY, or KEY expires=2026-12-31T00:00:00Z. Set: calls need "
          "the metadata 'authorization: Bearer KEY' with one of them; health checks and reflection "
          "stay open. Use it with TLS.");
ABSL_FLAG(std::string, log_format, "text", "Lines on stderr: text or json.");

namespace bst {
namespace {

constexpr absl::string_view kFile = "server/server_flags.cc";

bool IsServerFlagFile(absl::string_view file) { return absl::EndsWith(file, kFile); }

// As in the source tree, not as the build directory saw it.
std::string FlagFileName(absl::string_view file) {
  return std::string(IsServerFlagFile(file) ? kFile : file);
}

}  // namespace

absl::StatusOr<ServerConfig> ConfigFromCommandLine(int argc, char** argv) {
  absl::FlagsUsageConfig usage;
  usage.normalize_filename = FlagFileName;
  usage.contains_help_flags = IsServerFlagFile;
  usage.contains_helpshort_flags = IsServerFlagFile;
  usage.contains_helppackage_flags = IsServerFlagFile;
  usage.version_string = [] { return absl::StrCat("bst-server ", kVersion, "\n"); };
  absl::SetFlagsUsageConfig(usage);
  absl::SetProgramUsageMessage(
      "serves a Block-State Transformer over gRPC.\n\n"
      "  bst-server --model=models/bst-books-4m\n"
      "  bst-server --model=DIR --listen=0.0.0.0:50051 --tls_cert=c.pem --tls_key=k.pem "
      "--auth_token_file=keys\n"
      "  bst-server --flagfile=/etc/bst/server.flags\n\n"
      "When it serves it writes one line to stderr: ready grpc=HOST:PORT metrics=HOST:PORT|off "
      "control=HOST:PORT|off model=NAME backend=NAME, with %20 for a space in the name.\n"
      "SIGTERM and SIGINT drain it: running streams finish, at most --grace_seconds; a second "
      "signal ends it.");
  const std::vector<char*> positional = absl::ParseCommandLine(argc, argv);
  if (positional.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", positional[1], "' is not a flag; try --help"));
  }

  ServerConfig config;
  EngineOptions& engine = config.engine;
  engine.model_directory = absl::GetFlag(FLAGS_model);
  engine.backend = absl::GetFlag(FLAGS_backend);
  engine.weights = absl::GetFlag(FLAGS_weights);
  engine.kv = absl::GetFlag(FLAGS_kv);
  engine.threads = absl::GetFlag(FLAGS_threads);
  engine.max_sequences = absl::GetFlag(FLAGS_max_sequences);
  engine.max_step_tokens = absl::GetFlag(FLAGS_max_step_tokens);
  engine.chunk_tokens = absl::GetFlag(FLAGS_chunk_tokens);
  engine.max_queue = absl::GetFlag(FLAGS_max_queue);
  engine.max_queue_tokens = absl::GetFlag(FLAGS_max_queue_tokens);
  engine.max_prompt_tokens = absl::GetFlag(FLAGS_max_prompt_tokens);
  engine.reserved_sequences = absl::GetFlag(FLAGS_reserved_sequences);
  engine.long_prompt_tokens = absl::GetFlag(FLAGS_long_prompt_tokens);
  const double target_step_ms = absl::GetFlag(FLAGS_target_step_ms);
  engine.target_step =
      target_step_ms == 0 ? absl::InfiniteDuration() : absl::Milliseconds(target_step_ms);
  engine.priority_ageing = absl::Seconds(absl::GetFlag(FLAGS_priority_ageing_seconds));
  engine.upload_timeout = absl::Seconds(absl::GetFlag(FLAGS_upload_timeout_seconds));
  config.listen = absl::GetFlag(FLAGS_listen);
  config.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  config.control_listen = absl::GetFlag(FLAGS_control_listen);
  config.max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes);
  config.write_timeout = absl::Seconds(absl::GetFlag(FLAGS_write_timeout_seconds));
  config.grace = absl::Seconds(absl::GetFlag(FLAGS_grace_seconds));
  config.tls_cert = absl::GetFlag(FLAGS_tls_cert);
  config.tls_key = absl::GetFlag(FLAGS_tls_key);
  config.tls_client_ca = absl::GetFlag(FLAGS_tls_client_ca);
  config.auth_token_file = absl::GetFlag(FLAGS_auth_token_file);

  const std::string log_format = absl::GetFlag(FLAGS_log_format);
  config.log_format = log_format == "json" ? LogFormat::kJson : LogFormat::kText;
  std::string problems;
  if (log_format != "json" && log_format != "text") {
    problems = absl::StrCat("--log_format is '", log_format, "', must be one of text, json");
  }
  // A duration of NaN would be one without end.
  for (const auto& [name, value] :
       {std::pair("target_step_ms", target_step_ms),
        {"priority_ageing_seconds", absl::GetFlag(FLAGS_priority_ageing_seconds)},
        {"upload_timeout_seconds", absl::GetFlag(FLAGS_upload_timeout_seconds)}}) {
    if (std::isfinite(value)) continue;
    absl::StrAppend(&problems, problems.empty() ? "" : "\n", "--", name, " is ", value,
                    ", must be a finite number");
  }
  if (const absl::Status valid = Validate(config); !valid.ok()) {
    absl::StrAppend(&problems, problems.empty() ? "" : "\n", std::string(valid.message()));
  }
  if (!problems.empty()) return absl::InvalidArgumentError(problems);
  return config;
}

}  // namespace bst
