#include "server/server_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "absl/strings/str_split.h"

namespace bst {
namespace {

using testing::HasSubstr;

ServerConfig Good() {
  ServerConfig config;
  config.engine.model_directory = "somewhere";
  return config;
}

std::string Problem(const ServerConfig& config) { return std::string(Validate(config).message()); }

TEST(ServerConfig, DefaultsAreValid) { EXPECT_TRUE(Validate(Good()).ok()) << Problem(Good()); }

TEST(ServerConfig, AllProblemsAreReportedTogether) {
  ServerConfig config;  // no model
  config.listen = "nonsense";
  config.engine.threads = -1;
  config.engine.max_sequences = 0;
  config.tls_cert = "cert.pem";
  const absl::Status status = Validate(config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::vector<std::string> lines = absl::StrSplit(std::string(status.message()), '\n');
  EXPECT_EQ(lines.size(), 5u) << status.message();
  for (const char* const part :
       {"--model is required", "--listen: 'nonsense'", "--threads is -1, must be at least 0",
        "--max_sequences is 0, must be at least 1", "--tls_cert and --tls_key go together"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

TEST(ServerConfig, TypesAreChosenFromAList) {
  ServerConfig config = Good();
  config.engine.weights = "f64";
  EXPECT_THAT(Problem(config),
              HasSubstr("--weights is 'f64', must be one of auto, f32, bf16, int8"));
  config = Good();
  config.engine.backend = "reference";
  config.engine.weights = "bf16";
  config.engine.kv = "f32";
  EXPECT_TRUE(Validate(config).ok());
}

TEST(ServerConfig, NumbersAtAndBeyondTheirBounds) {
  ServerConfig config = Good();
  config.engine.max_queue = 0;
  config.engine.max_queue_tokens = 0;
  config.max_message_bytes = 1024;
  config.grace = absl::ZeroDuration();
  EXPECT_TRUE(Validate(config).ok()) << Problem(config);
  config.max_message_bytes = std::numeric_limits<int32_t>::max();
  EXPECT_TRUE(Validate(config).ok());
  config.max_message_bytes += 1;
  EXPECT_THAT(Problem(config),
              HasSubstr("--max_message_bytes is 2147483648, must be at most 2147483647"));
  config.max_message_bytes = 1023;
  EXPECT_THAT(Problem(config), HasSubstr("--max_message_bytes is 1023"));
  config = Good();
  for (const absl::Duration wrong : {absl::Seconds(-1), absl::InfiniteDuration()}) {
    config.grace = wrong;
    EXPECT_THAT(Problem(config), HasSubstr("--grace_seconds is ")) << wrong;
  }
  config = Good();
  for (const double seconds : {0.001, 86400.0}) {
    config.write_timeout = absl::Seconds(seconds);
    EXPECT_TRUE(Validate(config).ok()) << Problem(config);
  }
  for (const absl::Duration wrong :
       {absl::ZeroDuration(), absl::Microseconds(999), absl::InfiniteDuration()}) {
    config.write_timeout = wrong;
    EXPECT_THAT(Problem(config), HasSubstr("must be 0.001 to 86400")) << wrong;
  }
  config = Good();
  config.tls_client_ca = "ca.pem";
  EXPECT_THAT(Problem(config), HasSubstr("--tls_client_ca needs"));
}

// As the engine does, which would fail when everything else is up.
TEST(ServerConfig, SlotsAtAndBeyondTheirBound) {
  ServerConfig config = Good();
  config.engine.max_sequences = 1'000'000;
  EXPECT_TRUE(Validate(config).ok()) << Problem(config);
  config.engine.max_sequences += 1;
  EXPECT_THAT(Problem(config), HasSubstr("--max_sequences is 1000001, must be at most 1000000"));
}

TEST(ServerConfig, TheLogHasOptionsWithoutFlagsToo) {
  testing::internal::CaptureStderr();
  LogConfig(Good());
  const std::string line = testing::internal::GetCapturedStderr();
  for (const char* const field :
       {" config model=somewhere ", " grace_seconds=30 ", " max_unread_bytes=268435456 ",
        " ping_interval_seconds=60 ", " stall_limit_seconds=120 "}) {
    EXPECT_THAT(line, HasSubstr(field));
  }
}

TEST(ServerConfig, SchedulingAtAndBeyondItsBounds) {
  ServerConfig config = Good();
  config.engine.max_sequences = 4;
  config.engine.reserved_sequences = 3;
  config.engine.long_prompt_tokens = 1;
  config.engine.target_step = absl::InfiniteDuration();
  config.engine.priority_ageing = absl::ZeroDuration();
  config.engine.upload_timeout = absl::Milliseconds(1);
  EXPECT_TRUE(Validate(config).ok()) << Problem(config);
  config.engine.reserved_sequences = 4;
  EXPECT_THAT(Problem(config), HasSubstr("--reserved_sequences is 4, must be at least -1 and less "
                                         "than --max_sequences, 4"));
  config.engine.reserved_sequences = -2;
  EXPECT_THAT(Problem(config), HasSubstr("--reserved_sequences is -2"));
  config = Good();
  config.engine.long_prompt_tokens = 0;
  EXPECT_THAT(Problem(config), HasSubstr("--long_prompt_tokens is 0, must be at least 1"));
  config = Good();
  config.engine.target_step = absl::Milliseconds(-1);
  config.engine.priority_ageing = absl::Seconds(-1);
  config.engine.upload_timeout = absl::ZeroDuration();
  EXPECT_THAT(Problem(config), HasSubstr("--target_step_ms is -1, must be above 0"));
  EXPECT_THAT(Problem(config), HasSubstr("--priority_ageing_seconds is -1, must be at least 0"));
  EXPECT_THAT(Problem(config), HasSubstr("--upload_timeout_seconds is 0, must be above 0"));
}

// It would fail as it binds, with a message of civetweb's that says nothing.
TEST(ServerConfig, MetricsHaveNoIPv6) {
  ServerConfig config = Good();
  config.listen = config.control_listen = "[::1]:0";
  EXPECT_TRUE(Validate(config).ok()) << Problem(config);
  config.metrics_listen = "[::1]:0";
  EXPECT_THAT(Problem(config), HasSubstr("--metrics_listen is '[::1]:0', must be an IPv4 address"));
}

TEST(ServerConfig, NoStepLimitIsLoggedAsItsFlagSaysIt) {
  ServerConfig config = Good();
  config.engine.target_step = absl::InfiniteDuration();
  testing::internal::CaptureStderr();
  LogConfig(config);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(" target_step_ms=0 "));
}

TEST(ServerConfig, Addresses) {
  EXPECT_EQ(ParseHostPort("127.0.0.1:0")->port, 0);
  EXPECT_EQ(ParseHostPort("host.name:65535")->host, "host.name");
  EXPECT_EQ(ParseHostPort("[::1]:50051")->host, "[::1]");
  for (const char* const bad :
       {"", "host", ":1", "host:", "host:65536", "host:-1", "host:1x", "::1:50051", "host:+1"}) {
    EXPECT_FALSE(ParseHostPort(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace bst
