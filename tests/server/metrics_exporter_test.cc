#include "server/metrics_exporter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "tests/support/puppet_engine.h"

namespace bst {
namespace {

using testing::HasSubstr;
using testing::Not;

class CallWithCause : public Abortable {
 public:
  explicit CallWithCause(CancelCause cause) : cause_(cause) {}
  void Abort() override {}
  CancelCause cancel_cause() const override { return cause_; }

 private:
  CancelCause cause_;
};

class MetricsExporterTest : public testing::Test {
 protected:
  ~MetricsExporterTest() override { metrics_.Unpublish(); }

  RequestStats Finished(RequestStats::Stage stage, absl::Status status = absl::OkStatus()) {
    RequestStats stats;
    stats.stage = stage;
    stats.total = absl::Milliseconds(62.5);
    stats.finished.status = std::move(status);
    stats.finished.prompt_tokens = 7;
    stats.finished.generated_tokens = stats.longest_tokens = 5;
    stats.finished.timings = {absl::Milliseconds(2), absl::Milliseconds(20), absl::Milliseconds(22),
                              absl::Milliseconds(40)};
    return stats;
  }

  PuppetEngine engine_;
  ActiveRequests active_;
  MetricsExporter metrics_{active_};
};

TEST_F(MetricsExporterTest, NothingCountsBeforePublish) {
  metrics_.OnStep({StepStats::Phase::kPrefill, 1, 64, 64, absl::Milliseconds(1)});
  metrics_.OnFirstToken(SequenceId(1), absl::Milliseconds(1));
  metrics_.OnFinished("warm-up", Finished(RequestStats::Stage::kDecode));
  const std::string text = metrics_.Render();
  EXPECT_THAT(text, HasSubstr("bst_prompt_tokens_total 0\n"));
  EXPECT_THAT(text, HasSubstr("bst_generation_tokens_total 0\n"));
  EXPECT_THAT(text, HasSubstr("bst_e2e_request_latency_seconds_count 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("bst_model_info")));
  EXPECT_THAT(text, HasSubstr("bst_build_info{version="));
}

TEST_F(MetricsExporterTest, Gauges) {
  metrics_.Publish(engine_);
  const std::string text = metrics_.Render();
  for (const char* const line :
       {"bst_requests_running 0\n", "bst_requests_waiting 0\n", "bst_awaiting_input 0\n",
        "bst_queue_tokens 0\n", "bst_state_slots{state=\"used\",tier=\"device\"} 0\n",
        "bst_state_slots{state=\"cached\",tier=\"device\"} 0\n",
        "bst_state_slots{state=\"free\",tier=\"device\"} 4\n",
        "bst_state_bytes{state=\"used\",tier=\"device\"} 0\n",
        "bst_state_bytes{state=\"cached\",tier=\"device\"} 0\n",
        "bst_state_bytes{state=\"free\",tier=\"device\"} 4000\n",
        "bst_last_step_timestamp_seconds 0\n", "bst_model_load_seconds 1.5\n",
        "bst_model_info{name=\"puppet\",backend=\"puppet "
        "(strings)\",weights=\"f32\",kv=\"f32\",parameters=\"12345\"} 1\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  metrics_.Unpublish();
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("bst_model_info")));
}

// Slots of 4,000 bytes in all; what is neither weights nor slots nor free is the workspace.
TEST_F(MetricsExporterTest, MemoryOfTheGpu) {
  metrics_.Publish(engine_);
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("bst_gpu_memory_bytes")));
  const auto weights = static_cast<size_t>(engine_.info().weight_bytes);
  engine_.set_device_memory({.total_bytes = weights + 10'000, .free_bytes = 5'500});
  const std::string text = metrics_.Render();
  for (const std::string& line :
       {"weights\"} " + std::to_string(weights), std::string("state\"} 4000"),
        std::string("workspace\"} 500"), std::string("free\"} 5500")}) {
    EXPECT_THAT(text, HasSubstr("bst_gpu_memory_bytes{kind=\"" + line + "\n"));
  }
}

TEST_F(MetricsExporterTest, MessagesToRead) {
  EXPECT_THAT(metrics_.Render(), HasSubstr("bst_messages_to_read 0\n"));
  metrics_.SetReadersLoad({.messages = 2, .bytes = 40'000});
  const std::string text = metrics_.Render();
  EXPECT_THAT(text, HasSubstr("bst_messages_to_read 2\n"));
  EXPECT_THAT(text, HasSubstr("bst_messages_to_read_bytes 40000\n"));
}

TEST_F(MetricsExporterTest, ProcessMetrics) {
  const std::string text = metrics_.Render();
  for (const char* const name : {"process_resident_memory_bytes", "process_virtual_memory_bytes",
                                 "process_cpu_seconds_total", "process_open_fds", "process_max_fds",
                                 "process_start_time_seconds"}) {
    const size_t line = text.find(std::string("\n") + name + " ");
    ASSERT_NE(line, std::string::npos) << name;
    EXPECT_GE(std::stod(text.substr(line + 2 + std::string(name).size())), 0) << name;
  }
}

TEST_F(MetricsExporterTest, StepsByPhase) {
  metrics_.Publish(engine_);
  metrics_.OnStep({StepStats::Phase::kPrefill, 1, 64, 64, absl::Milliseconds(2)});
  metrics_.OnStep({StepStats::Phase::kDecode, 3, 3, 0, absl::Milliseconds(1)});
  metrics_.OnStep(
      {StepStats::Phase::kMixed, 3, 34, 32, absl::Milliseconds(4)});  // two streams saw the gap
  const std::string text = metrics_.Render();
  for (const char* const line :
       {"bst_prompt_tokens_total 96\n", "bst_batch_sequences_sum{phase=\"decode\"} 3\n",
        "bst_iteration_tokens_bucket{phase=\"prefill\",le=\"64\"} 1\n",
        "bst_iteration_tokens_bucket{phase=\"prefill\",le=\"32\"} 0\n",
        "bst_step_seconds_count{phase=\"mixed\"} 1\n", "bst_decode_stall_seconds_count 2\n",
        "bst_decode_stall_seconds_bucket{le=\"0.005\"} 2\n",
        "bst_decode_stall_seconds_bucket{le=\"0.003\"} 0\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST_F(MetricsExporterTest, TokensAndFinishedRequests) {
  metrics_.Publish(engine_);
  metrics_.OnFirstToken(SequenceId(1), absl::Milliseconds(22));
  metrics_.OnToken(SequenceId(1), std::nullopt);
  metrics_.OnToken(SequenceId(1), absl::Milliseconds(10));
  metrics_.OnFinished("r", Finished(RequestStats::Stage::kDecode));
  const std::string text = metrics_.Render();
  for (const char* const line :
       {"bst_generation_tokens_total 2\n",
        "bst_time_to_first_token_seconds_bucket{le=\"0.04\"} 1\n",
        "bst_time_to_first_token_seconds_bucket{le=\"0.02\"} 0\n",
        "bst_inter_token_latency_seconds_count 1\n", "bst_time_per_output_token_seconds_sum 0.01\n",
        "bst_request_queue_seconds_sum 0.002\n", "bst_request_prefill_seconds_sum 0.02\n",
        "bst_request_decode_seconds_sum 0.04\n", "bst_e2e_request_latency_seconds_sum 0.0625\n",
        "bst_request_prompt_tokens_bucket{le=\"10\"} 1\n",
        "bst_request_prompt_tokens_bucket{le=\"5\"} 0\n", "bst_request_generation_tokens_sum 5\n",
        "bst_request_prompt_tokens_bucket{le=\"5000000\"} 1\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

// 40 ms for three continuations of 5, 3 and 1 tokens: four gaps of 10 ms, one after the other.
TEST_F(MetricsExporterTest, TheLongestContinuationTellsTheTimePerToken) {
  metrics_.Publish(engine_);
  RequestStats stats = Finished(RequestStats::Stage::kDecode);
  stats.finished.generated_tokens = 9;
  metrics_.OnFinished("r", stats);
  EXPECT_THAT(metrics_.Render(), HasSubstr("bst_time_per_output_token_seconds_sum 0.01\n"));
  stats.finished.generated_tokens = 3;
  stats.longest_tokens = 1;  // no gap at all
  metrics_.OnFinished("s", stats);
  EXPECT_THAT(metrics_.Render(), HasSubstr("bst_time_per_output_token_seconds_count 1\n"));
}

TEST_F(MetricsExporterTest, CancellationsByStageAndCause) {
  metrics_.Publish(engine_);
  const auto client = std::make_shared<CallWithCause>(CancelCause::kClient);
  const auto abort = std::make_shared<CallWithCause>(CancelCause::kAbort);
  const auto deadline = std::make_shared<CallWithCause>(CancelCause::kDeadline);
  const auto refused = std::make_shared<CallWithCause>(CancelCause::kRefused);
  active_.Add("client", client);
  active_.Add("abort", abort);
  active_.Add("deadline", deadline);
  active_.Add("stop", refused);
  const absl::Status cancelled = absl::CancelledError("");
  metrics_.OnFinished("client", Finished(RequestStats::Stage::kQueued, cancelled));
  metrics_.OnFinished("abort", Finished(RequestStats::Stage::kPrefill, cancelled));
  metrics_.OnFinished("deadline", Finished(RequestStats::Stage::kDecode, cancelled));
  metrics_.OnFinished("stop",
                      Finished(RequestStats::Stage::kDecode, cancelled));  // ended by itself
  metrics_.OnFinished("late",
                      Finished(RequestStats::Stage::kQueued, absl::DeadlineExceededError("")));
  const std::string text = metrics_.Render();
  for (const char* const line :
       {"{cause=\"client\",stage=\"queued\"} 1\n", "{cause=\"abort\",stage=\"prefill\"} 1\n",
        "{cause=\"deadline\",stage=\"decode\"} 1\n", "{cause=\"deadline\",stage=\"queued\"} 1\n",
        "{cause=\"client\",stage=\"decode\"} 0\n", "{cause=\"abort\",stage=\"decode\"} 0\n"}) {
    EXPECT_THAT(text, HasSubstr(std::string("bst_requests_cancelled_total") + line));
  }
  // Of the five, two read their prompts to the end.
  EXPECT_THAT(text, HasSubstr("bst_request_queue_seconds_count 5\n"));
  EXPECT_THAT(text, HasSubstr("bst_request_prefill_seconds_count 2\n"));
}

TEST_F(MetricsExporterTest, RequestsAndRejections) {
  metrics_.CountRequest("Generate", absl::StatusCode::kOk, "MAX_TOKENS");
  metrics_.CountRequest("Generate", absl::StatusCode::kOk, "MAX_TOKENS");
  metrics_.CountRequest("Tokenize", absl::StatusCode::kUnavailable, "");
  metrics_.CountRejected(RejectReason::kTooLong);
  const std::string text = metrics_.Render();
  EXPECT_THAT(
      text,
      HasSubstr(
          "bst_requests_total{code=\"OK\",finish_reason=\"MAX_TOKENS\",rpc=\"Generate\"} 2\n"));
  EXPECT_THAT(
      text,
      HasSubstr(
          "bst_requests_total{code=\"UNAVAILABLE\",finish_reason=\"\",rpc=\"Tokenize\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("bst_requests_rejected_total{reason=\"too_long\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("bst_requests_rejected_total{reason=\"queue_tokens\"} 0\n"));
}

TEST_F(MetricsExporterTest, ListensOnAFreePortAndRefusesATakenOne) {
  const absl::StatusOr<std::string> address = metrics_.Listen("127.0.0.1:0");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_THAT(*address, testing::MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  MetricsExporter other(active_);
  EXPECT_EQ(other.Listen(*address).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace bst
