#include "clients/stress/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

namespace bst::stress {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Words in the order of a command line.
Options Parse(std::vector<std::string> words) {
  CLI::App app("", "bst-stress");
  const auto flags = AddFlags(app);
  std::reverse(words.begin(), words.end());  // as CLI11 wants it
  app.parse(words);
  return MakeOptions(*flags);
}

std::string ErrorOf(const std::vector<std::string>& words) {
  try {
    Parse(words);
  } catch (const client::UsageError& error) {
    return error.what();
  } catch (const CLI::ParseError& error) {
    return std::string("parse: ") + error.what();
  }
  return "";
}

TEST(OptionsTest, Defaults) {
  const Options options = Parse({"--rate", "5"});
  EXPECT_EQ(options.load.rate, 5);
  EXPECT_EQ(options.load.arrivals, Arrivals::kPoisson);
  EXPECT_EQ(options.load.duration_seconds, 30);
  EXPECT_EQ(options.load.requests, std::nullopt);
  EXPECT_EQ(options.load.concurrency, std::nullopt);
  EXPECT_THAT(options.expected, ElementsAre(grpc::StatusCode::OK));
  EXPECT_EQ(options.connection.server, "127.0.0.1:50051");
  EXPECT_EQ(options.traffic.prompt_tokens.high, 128u);
  EXPECT_EQ(options.traffic.deadline_rate, 0);
  EXPECT_FALSE(options.sweep.has_value());
}

TEST(OptionsTest, ARequestCountReplacesTheDuration) {
  EXPECT_EQ(Parse({"--concurrency", "2", "--requests", "7"}).load.duration_seconds, std::nullopt);
  const Options both = Parse({"--concurrency", "2", "--requests", "7", "--duration", "3"});
  EXPECT_EQ(both.load.duration_seconds, 3);
  EXPECT_EQ(both.load.requests, 7u);
}

TEST(OptionsTest, TimesHaveUnits) {
  const Options options =
      Parse({"--rate", "5", "--duration", "2m", "--warmup", "500ms", "--deadline", "1.5s",
             "--slow-reader-delay", "20ms", "--drain", "3"});
  EXPECT_DOUBLE_EQ(*options.load.duration_seconds, 120);
  EXPECT_DOUBLE_EQ(options.load.warmup_seconds, 0.5);
  EXPECT_DOUBLE_EQ(options.load.drain_seconds, 3);
  EXPECT_DOUBLE_EQ(options.traffic.deadline_seconds, 1.5);
  EXPECT_EQ(options.traffic.deadline_rate, 1);
  EXPECT_DOUBLE_EQ(options.traffic.slow_reader_delay_seconds, 0.02);
}

TEST(OptionsTest, SamplingIsSetOnlyWhereItWasSaid) {
  const Options options = Parse({"--rate", "1", "--temperature", "0", "--top-k", "-1"});
  EXPECT_TRUE(options.traffic.sampling.has_temperature());
  EXPECT_EQ(options.traffic.sampling.top_k(), -1);
  EXPECT_FALSE(options.traffic.sampling.has_top_p());
}

TEST(OptionsTest, Codes) {
  EXPECT_THAT(ParseCodes("OK,RESOURCE_EXHAUSTED"),
              ElementsAre(grpc::StatusCode::OK, grpc::StatusCode::RESOURCE_EXHAUSTED));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--expect", "OK,ok"}), HasSubstr("'ok' is no status code"));
}

TEST(OptionsTest, LoadsThatAreNone) {
  EXPECT_THAT(ErrorOf({}), HasSubstr("no load"));
  EXPECT_THAT(ErrorOf({"--rate", "0"}), HasSubstr("--rate must be above 0"));
  EXPECT_THAT(ErrorOf({"--rate", "-1"}), HasSubstr("--rate must be above 0"));
  EXPECT_THAT(ErrorOf({"--rate", "nan"}), HasSubstr("--rate"));
  EXPECT_THAT(ErrorOf({"--rate", "inf"}), HasSubstr("--rate"));
  EXPECT_THAT(ErrorOf({"--rate", "fast"}), HasSubstr("--rate"));
  EXPECT_THAT(ErrorOf({"--rate", "2000000"}), HasSubstr("1,000,000"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--probe-rate", "2000000"}), HasSubstr("--probe-rate"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--probe-rate", "inf"}), HasSubstr("--probe-rate"));
  EXPECT_THAT(ErrorOf({"--concurrency", "0"}), HasSubstr("--concurrency must be above 0"));
  EXPECT_THAT(ErrorOf({"--concurrency", "-1"}), HasSubstr("--concurrency"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--requests", "0"}), HasSubstr("--requests must be above 0"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--duration", "0"}), HasSubstr("--duration must be above 0"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--duration", "5x"}), HasSubstr("--duration"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--cancel-rate", "1.5"}), HasSubstr("--cancel-rate"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--connections", "0"}), HasSubstr("--connections"));
}

TEST(OptionsTest, WhatDoesNotGoTogether) {
  EXPECT_THAT(ErrorOf({"--rate", "1", "--burstiness", "0.5"}), HasSubstr("--arrivals=gamma"));
  EXPECT_THAT(ErrorOf({"--concurrency", "1", "--arrivals", "constant"}), HasSubstr("no arrivals"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--deadline-rate", "0.5"}), HasSubstr("--deadline"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--prefixes", "2"}), HasSubstr("--shared-prefix"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--text-file", "a", "--jsonl", "b"}),
              HasSubstr("choose one"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--jsonl", "/nonexistent"}), HasSubstr("/nonexistent"));
  EXPECT_THAT(ErrorOf({"--rate", "1", "--sweep-from", "2"}), HasSubstr("go with --sweep"));
}

TEST(OptionsTest, Sweeps) {
  EXPECT_THAT(ErrorOf({"--sweep", "rate"}), HasSubstr("needs --slo"));
  EXPECT_THAT(ErrorOf({"--sweep", "rate", "--slo", "itl:5ms"}), HasSubstr("ttft or e2e"));
  EXPECT_THAT(ErrorOf({"--sweep", "rate", "--slo", "ttft:5ms", "--rate", "3"}),
              HasSubstr("--sweep-from"));
  EXPECT_THAT(ErrorOf({"--sweep", "concurrency", "--slo", "itl:5ms", "--concurrency", "3"}),
              HasSubstr("--sweep-from"));
  EXPECT_THAT(ErrorOf({"--sweep", "rate", "--slo", "ttft:5ms", "--sweep-steps", "1,x"}),
              HasSubstr("'x' is no load"));
  EXPECT_THAT(ErrorOf({"--sweep", "concurrency", "--slo", "itl:5ms", "--sweep-steps", "1.5"}),
              HasSubstr("'1.5' is no load"));
  EXPECT_THAT(
      ErrorOf({"--sweep", "rate", "--slo", "ttft:5ms", "--sweep-from", "4", "--sweep-to", "2"}),
      HasSubstr("not below"));
  EXPECT_THAT(
      ErrorOf({"--sweep", "rate", "--slo", "ttft:5ms", "--sweep-steps", "4", "--sweep-to", "2"}),
      HasSubstr("leave out"));
  const std::vector<std::string> concurrency = {"--sweep", "concurrency", "--slo", "itl:5ms"};
  const std::vector<std::string> rate = {"--sweep", "rate", "--slo", "ttft:5ms"};
  const auto with = [](std::vector<std::string> words, const char* flag, const char* value) {
    words.insert(words.end(), {flag, value});
    return words;
  };
  EXPECT_THAT(ErrorOf(with(concurrency, "--sweep-steps", "1,1e10")),
              HasSubstr("--sweep-steps: a load is above 4294967295"));
  EXPECT_THAT(ErrorOf(with(concurrency, "--sweep-to", "4294967296")),
              HasSubstr("--sweep-to is above 4294967295"));
  EXPECT_EQ(Parse(with(concurrency, "--sweep-steps", "4294967295")).sweep->steps.size(), 1u);
  EXPECT_THAT(ErrorOf(with(rate, "--sweep-steps", "1000001")), HasSubstr("is above 1000000"));
  EXPECT_THAT(ErrorOf(with(rate, "--sweep-to", "1000001")), HasSubstr("is above 1000000"));
  const Options options =
      Parse({"--sweep", "concurrency", "--slo", "itl:5ms", "--sweep-steps", "1,8,32"});
  EXPECT_EQ(options.sweep->variable, SweepOptions::Variable::kConcurrency);
  EXPECT_THAT(options.sweep->steps, ElementsAre(1, 8, 32));
}

TEST(OptionsTest, VerifyComparesWholeAnswers) {
  const Options options = Parse({"--verify"});
  EXPECT_EQ(options.load.requests, 32u);
  EXPECT_EQ(options.load.concurrency, 16u);
  EXPECT_EQ(options.load.duration_seconds, std::nullopt);
  EXPECT_TRUE(options.traffic.logprobs);
  const std::vector<std::vector<std::string>> combinations = {
      {"--rate", "1"},      {"--duration", "5s"}, {"--cancel-rate", "0.1"}, {"--deadline", "1s"},
      {"--slo", "ttft:1s"}, {"--html", "x"},      {"--concurrency", "1"}};
  for (std::vector<std::string> words : combinations) {
    const std::string flag = words.front();
    words.push_back("--verify");
    EXPECT_THAT(ErrorOf(words), HasSubstr("--verify does not go with " + flag));
  }
}

}  // namespace
}  // namespace bst::stress
