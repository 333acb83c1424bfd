#include "server/server_config.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace bst {
namespace {

class Problems {
 public:
  void Require(bool holds, const std::string& problem) {
    if (!holds) lines_.push_back(problem);
  }
  void AtLeast(const char* flag, int64_t value, int64_t least) {
    Require(value >= least, absl::StrCat("--", flag, " is ", value, ", must be at least ", least));
  }
  void Address(const char* flag, const std::string& address) {
    if (const auto parsed = ParseHostPort(address); !parsed.ok()) {
      lines_.push_back(absl::StrCat("--", flag, ": ", std::string(parsed.status().message())));
    }
  }
  absl::Status status() const {
    if (lines_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(lines_, "\n"));
  }

 private:
  std::vector<std::string> lines_;
};

void CheckChoice(Problems& problems, const char* flag, const std::string& value,
                 const std::vector<std::string>& choices) {
  problems.Require(
      std::find(choices.begin(), choices.end(), value) != choices.end(),
      absl::StrCat("--", flag, " is '", value, "', must be one of ", absl::StrJoin(choices, ", ")));
}

}  // namespace

absl::StatusOr<HostPort> ParseHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  HostPort result;
  const bool has_port = colon != std::string::npos && colon + 1 < address.size() &&
                        address.find_first_not_of("0123456789", colon + 1) == std::string::npos &&
                        absl::SimpleAtoi(address.substr(colon + 1), &result.port) &&
                        result.port <= 65535;
  if (!has_port || colon == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "' is not HOST:PORT with a port of 0 to 65535"));
  }
  result.host = address.substr(0, colon);
  if (result.host.find(':') != std::string::npos && result.host.front() != '[') {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "': an IPv6 host goes in brackets, as [::1]:50051"));
  }
  return result;
}

absl::Status Validate(const ServerConfig& config) {
  const EngineOptions& engine = config.engine;
  Problems problems;
  problems.Require(!engine.model_directory.empty(),
                   "--model is required: the directory of a checkpoint");
  CheckChoice(problems, "backend", engine.backend, {"auto", "cpu", "cuda", "reference"});
  CheckChoice(problems, "weights", engine.weights, {"auto", "f32", "bf16", "int8"});
  CheckChoice(problems, "kv", engine.kv, {"auto", "f32", "bf16", "int8"});
  problems.AtLeast("threads", engine.threads, 0);
  problems.AtLeast("max_sequences", engine.max_sequences, 1);
  problems.Require(engine.max_sequences <= kMaxSequences,
                   absl::StrCat("--max_sequences is ", engine.max_sequences, ", must be at most ",
                                kMaxSequences));
  problems.AtLeast("max_step_tokens", engine.max_step_tokens, 0);
  problems.AtLeast("chunk_tokens", engine.chunk_tokens, 1);
  problems.AtLeast("max_queue", engine.max_queue, 0);
  problems.AtLeast("max_queue_tokens", engine.max_queue_tokens, 0);
  problems.AtLeast("max_prompt_tokens", engine.max_prompt_tokens, 1);
  problems.Require(
      engine.reserved_sequences >= -1 && engine.reserved_sequences < engine.max_sequences,
      absl::StrCat("--reserved_sequences is ", engine.reserved_sequences,
                   ", must be at least -1 and less than --max_sequences, ", engine.max_sequences));
  problems.AtLeast("long_prompt_tokens", engine.long_prompt_tokens, 1);
  problems.Require(
      engine.target_step > absl::ZeroDuration(),
      absl::StrCat("--target_step_ms is ", absl::ToDoubleMilliseconds(engine.target_step),
                   ", must be above 0, or 0 for no limit"));
  problems.Require(
      engine.priority_ageing >= absl::ZeroDuration(),
      absl::StrCat("--priority_ageing_seconds is ", absl::ToDoubleSeconds(engine.priority_ageing),
                   ", must be at least 0"));
  problems.Require(engine.upload_timeout > absl::ZeroDuration(),
                   absl::StrCat("--upload_timeout_seconds is ",
                                absl::ToDoubleSeconds(engine.upload_timeout), ", must be above 0"));

  problems.Address("listen", config.listen);
  if (!config.metrics_listen.empty()) problems.Address("metrics_listen", config.metrics_listen);
  problems.Require(config.metrics_listen.find('[') == std::string::npos,
                   absl::StrCat("--metrics_listen is '", config.metrics_listen,
                                "', must be an IPv4 address or a name: the HTTP server of the "
                                "metrics has no IPv6"));
  if (!config.control_listen.empty()) problems.Address("control_listen", config.control_listen);
  problems.AtLeast("max_message_bytes", config.max_message_bytes, 1024);
  problems.Require(config.max_message_bytes <= std::numeric_limits<int32_t>::max(),
                   absl::StrCat("--max_message_bytes is ", config.max_message_bytes,
                                ", must be at most ", std::numeric_limits<int32_t>::max()));
  problems.Require(
      config.write_timeout >= absl::Milliseconds(1) && config.write_timeout <= absl::Hours(24),
      absl::StrCat("--write_timeout_seconds is ", absl::ToDoubleSeconds(config.write_timeout),
                   ", must be 0.001 to 86400"));
  problems.Require(config.grace >= absl::ZeroDuration() && config.grace < absl::InfiniteDuration(),
                   absl::StrCat("--grace_seconds is ", absl::ToDoubleSeconds(config.grace),
                                ", must be at least 0 and finite"));
  problems.Require(config.tls_cert.empty() == config.tls_key.empty(),
                   "--tls_cert and --tls_key go together: set both or none");
  problems.Require(config.tls_client_ca.empty() || !config.tls_cert.empty(),
                   "--tls_client_ca needs --tls_cert and --tls_key");
  return problems.status();
}

void LogConfig(const ServerConfig& config) {
  const EngineOptions& engine = config.engine;
  // As the flag says it.
  const double target_step_ms = engine.target_step == absl::InfiniteDuration()
                                    ? 0
                                    : absl::ToDoubleMilliseconds(engine.target_step);
  Log(LogLevel::kInfo, "config",
      {{"model", engine.model_directory},
       {"listen", config.listen},
       {"metrics_listen", config.metrics_listen},
       {"control_listen", config.control_listen},
       {"backend", engine.backend},
       {"weights", engine.weights},
       {"kv", engine.kv},
       {"threads", engine.threads},
       {"max_sequences", engine.max_sequences},
       {"max_step_tokens", engine.max_step_tokens},
       {"chunk_tokens", engine.chunk_tokens},
       {"max_queue", engine.max_queue},
       {"max_queue_tokens", engine.max_queue_tokens},
       {"max_prompt_tokens", engine.max_prompt_tokens},
       {"reserved_sequences", engine.reserved_sequences},
       {"long_prompt_tokens", engine.long_prompt_tokens},
       {"target_step_ms", target_step_ms},
       {"priority_ageing_seconds", absl::ToDoubleSeconds(engine.priority_ageing)},
       {"upload_timeout_seconds", absl::ToDoubleSeconds(engine.upload_timeout)},
       {"max_message_bytes", config.max_message_bytes},
       {"write_timeout_seconds", absl::ToDoubleSeconds(config.write_timeout)},
       {"grace_seconds", absl::ToDoubleSeconds(config.grace)},
       {"max_unread_bytes", config.max_unread_bytes},
       {"ping_interval_seconds", absl::ToDoubleSeconds(config.ping_interval)},
       {"stall_limit_seconds", absl::ToDoubleSeconds(config.stall_limit)},
       {"tls_cert", config.tls_cert},
       {"tls_key", config.tls_key},
       {"tls_client_ca", config.tls_client_ca},
       {"auth_token_file", config.auth_token_file},
       {"log_format", config.log_format == LogFormat::kJson ? "json" : "text"}});
}

}  // namespace bst
