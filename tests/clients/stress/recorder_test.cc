#include "clients/stress/recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace bst::stress {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;

RequestRecord Completed(double ttft, double e2e) {
  RequestRecord record;
  record.intended_seconds = record.sent_seconds = 1;
  record.end_seconds = 1 + e2e;
  record.ttft_seconds = ttft;
  record.tpot_seconds = 0.01;
  record.e2e_seconds = e2e;
  record.gaps = 10;
  record.prompt_tokens = 5;
  record.output_tokens = 11;
  record.finish_reason = v1::MAX_TOKENS;
  return record;
}

RequestRecord Failed(StatusCode code) {
  RequestRecord record;
  record.code = code;
  record.message = "why";
  return record;
}

TEST(RecorderTest, CompletedRequestsMakeTheLatencies) {
  Recorder recorder({}, {StatusCode::OK});
  recorder.AddRequest(Completed(0.1, 0.5));
  recorder.AddRequest(Completed(0.3, 0.9));
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.requests, 2u);
  EXPECT_EQ(totals.completed, 2u);
  EXPECT_EQ(totals.work.good, 2u);
  EXPECT_EQ(totals.ttft.count(), 2u);
  EXPECT_EQ(totals.ttft.max(), 0.3);
  EXPECT_EQ(totals.e2e.max(), 0.9);
  EXPECT_EQ(totals.prompt_tokens, 10u);
  EXPECT_EQ(totals.output_tokens, 22u);
  EXPECT_EQ(totals.last_end_seconds, 1.9);
  EXPECT_EQ(totals.codes.at(StatusCode::OK), 2u);
  EXPECT_EQ(totals.finish_reasons.at("MAX_TOKENS"), 2u);
  EXPECT_EQ(totals.unexpected, 0u);
}

TEST(RecorderTest, TheWarmUpCountsOnTheTimelineAlone) {
  Recorder recorder({}, {StatusCode::OK});
  RequestRecord record = Completed(0.1, 0.5);
  record.is_measured = false;
  recorder.AddRequest(record);
  recorder.AddTokens(std::vector<TokenSample>{{0.3, 0.2f, 4}}, false);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.requests, 0u);
  EXPECT_EQ(totals.ttft.count(), 0u);
  EXPECT_EQ(totals.itl.count(), 0u);
  EXPECT_EQ(totals.longest_stall_seconds, 0);
  EXPECT_EQ(totals.timeline.bins()[6].ended, 1u);  // at 1.5 s, in bins of a quarter of a second
  EXPECT_EQ(totals.timeline.bins()[1].output_tokens, 4u);
}

TEST(RecorderTest, ThroughputCountsWhatCameAfterTheWarmUp) {
  Recorder recorder(ParseSlo("ttft:1s"), {StatusCode::OK}, 2);
  RequestRecord before = Completed(0.1, 0.5), across = Completed(0.1, 2.5);
  RequestRecord cut_across = Failed(StatusCode::CANCELLED);
  before.is_measured = across.is_measured = cut_across.is_measured = false;
  cut_across.was_cut = true;
  cut_across.end_seconds = 4;
  for (const RequestRecord& record : {before, across, cut_across}) recorder.AddRequest(record);
  recorder.AddTokens(std::vector<TokenSample>{{1.9, TokenSample::kNoGap, 4}, {2.1, 0.2f, 7}},
                     false);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.work.completed, 1u);
  EXPECT_EQ(totals.work.good, 1u);
  EXPECT_EQ(totals.work.prompt_tokens, 5u);
  EXPECT_EQ(totals.work.output_tokens, 7u);
  EXPECT_EQ(totals.last_end_seconds, 4);
  // Latencies and counts are of requests that were due after it.
  EXPECT_EQ(totals.requests, 0u);
  EXPECT_EQ(totals.ttft.count(), 0u);
  EXPECT_EQ(totals.slo[0].total, 0u);
}

TEST(RecorderTest, GapsMakeItlAndTheLongestStall) {
  Recorder recorder({}, {StatusCode::OK});
  recorder.AddTokens(
      std::vector<TokenSample>{{0.1, TokenSample::kNoGap, 1}, {0.2, 0.1f, 1}, {0.9, 0.7f, 3}},
      true);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.itl.count(), 2u);
  EXPECT_NEAR(totals.longest_stall_seconds, 0.7, 1e-6);
  EXPECT_EQ(recorder.live().output_tokens, 5u);
}

TEST(RecorderTest, TheSilenceAtTheEndIsAStall) {
  Recorder recorder({}, {StatusCode::OK});
  RequestRecord cut = Failed(StatusCode::CANCELLED);
  cut.was_cut = true;
  cut.silence_seconds = 4;
  recorder.AddRequest(cut);
  RequestRecord slow_reader = cut, probe = cut, warm_up = cut;
  slow_reader.silence_seconds = probe.silence_seconds = warm_up.silence_seconds = 9;
  slow_reader.is_slow_reader = true;
  probe.is_probe = true;
  warm_up.is_measured = false;
  for (const RequestRecord& record : {slow_reader, probe, warm_up}) recorder.AddRequest(record);
  EXPECT_EQ(recorder.Totals().longest_stall_seconds, 4);
  EXPECT_EQ(recorder.Totals().itl.count(), 0u);
}

TEST(RecorderTest, SlowReadersCountInCodesAndTokensAlone) {
  Recorder recorder(ParseSlo("ttft:1ms"), {StatusCode::OK});
  RequestRecord record = Completed(5, 9);
  record.is_slow_reader = true;
  recorder.AddRequest(record);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.completed, 1u);
  EXPECT_EQ(totals.output_tokens, 11u);
  EXPECT_EQ(totals.ttft.count(), 0u);
  EXPECT_EQ(totals.slo[0].total, 0u);
}

TEST(RecorderTest, OnlyWhatNobodyWantedIsUnexpected) {
  Recorder recorder({}, {StatusCode::OK, StatusCode::RESOURCE_EXHAUSTED});
  recorder.AddRequest(Failed(StatusCode::RESOURCE_EXHAUSTED));
  RequestRecord cancelled = Failed(StatusCode::CANCELLED);
  cancelled.was_cancelled = true;
  recorder.AddRequest(cancelled);
  RequestRecord late = Failed(StatusCode::DEADLINE_EXCEEDED);
  late.has_deadline = true;
  recorder.AddRequest(late);
  EXPECT_EQ(recorder.Totals().unexpected, 0u);

  RequestRecord stranger = Failed(StatusCode::CANCELLED);
  stranger.index = 77;
  recorder.AddRequest(stranger);
  recorder.AddRequest(Failed(StatusCode::DEADLINE_EXCEEDED));
  recorder.AddRequest(Failed(StatusCode::INTERNAL));
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.unexpected, 3u);
  EXPECT_EQ(totals.first_unexpected, "request 77: CANCELLED: why");
  EXPECT_EQ(totals.failed, 5u);  // all but what was cancelled as planned
  EXPECT_EQ(totals.completed, 0u);
}

TEST(RecorderTest, OkIsNotExpectedWhenOnlyFailuresAre) {
  Recorder recorder({}, {StatusCode::UNAUTHENTICATED});
  recorder.AddRequest(Completed(0.1, 0.2));
  EXPECT_EQ(recorder.Totals().unexpected, 1u);
}

TEST(RecorderTest, AStreamThatIsNotWholeIsUnexpectedAndNotCompleted) {
  Recorder recorder({}, {StatusCode::OK});
  RequestRecord record = Completed(0.1, 0.2);
  record.defect = "OK without a Finished event";
  recorder.AddRequest(record);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.completed, 0u);
  EXPECT_EQ(totals.failed, 1u);
  EXPECT_THAT(totals.first_unexpected, HasSubstr("without a Finished"));
}

TEST(RecorderTest, FailuresAreBeyondEveryBoundAndPlannedCancelsBeyondNone) {
  Recorder recorder(ParseSlo("ttft:200ms,itl:50ms@p80,e2e:1s"), {StatusCode::OK});
  EXPECT_DOUBLE_EQ(recorder.itl_bound_seconds(), 0.05);
  recorder.AddRequest(Completed(0.1, 0.5));  // good
  RequestRecord slow_first = Completed(0.3, 0.5);
  recorder.AddRequest(slow_first);
  RequestRecord some_gaps = Completed(0.1, 0.5);
  some_gaps.slow_gaps = 2;  // of 10: still at p80
  recorder.AddRequest(some_gaps);
  RequestRecord many_gaps = Completed(0.1, 0.5);
  many_gaps.slow_gaps = 3;
  recorder.AddRequest(many_gaps);
  recorder.AddRequest(Failed(StatusCode::UNAVAILABLE));
  RequestRecord cancelled = Failed(StatusCode::CANCELLED);
  cancelled.was_cancelled = true;
  recorder.AddRequest(cancelled);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.work.good, 2u);
  EXPECT_EQ(totals.slo[0].within, 3u);
  EXPECT_EQ(totals.slo[0].total, 5u);
  EXPECT_EQ(totals.slo[1].within, 35u);
  EXPECT_EQ(totals.slo[1].total, 41u);
  EXPECT_EQ(totals.slo[2].within, 4u);
  EXPECT_EQ(totals.slo[2].total, 5u);
}

TEST(RecorderTest, AnAnswerInOneMessageKeepsItlAndTpot) {
  Recorder recorder(ParseSlo("itl:50ms,tpot:50ms"), {StatusCode::OK});
  RequestRecord record = Completed(0.1, 0.5);
  record.gaps = 0;
  record.tpot_seconds.reset();
  recorder.AddRequest(record);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.work.good, 1u);
  for (const ClauseCount& count : totals.slo) {
    EXPECT_EQ(count.within, 1u);
    EXPECT_EQ(count.total, 1u);
  }
  EXPECT_EQ(totals.tpot.count(), 0u);
}

TEST(RecorderTest, ProbesAreApart) {
  Recorder recorder({}, {StatusCode::OK});
  RequestRecord probe = Completed(0.1, 0.25);
  probe.is_probe = true;
  recorder.AddRequest(probe);
  RequestRecord refused = Failed(StatusCode::RESOURCE_EXHAUSTED);
  refused.is_probe = true;
  recorder.AddRequest(refused);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.requests, 0u);
  EXPECT_EQ(totals.probes, 2u);
  EXPECT_EQ(totals.probe_e2e.max(), 0.25);
  EXPECT_EQ(totals.unexpected, 1u);
  EXPECT_THAT(totals.first_unexpected, HasSubstr("probe 0"));
}

TEST(RecorderTest, RefusalsAreCountedOverAllAttempts) {
  Recorder recorder({}, {StatusCode::OK});
  RequestRecord record = Completed(0.1, 0.5);
  record.retries = 2;
  record.refusals = 2;
  record.refusals_with_retry_info = 2;
  record.refusals_with_pushback = 1;
  recorder.AddRequest(record);
  const RunTotals totals = recorder.Totals();
  EXPECT_EQ(totals.retries, 2u);
  EXPECT_EQ(totals.refusals, 2u);
  EXPECT_EQ(totals.refusals_with_retry_info, 2u);
  EXPECT_EQ(totals.refusals_with_pushback, 1u);
}

TEST(TimelineTest, BinsBecomeWiderAndLoseNothing) {
  Timeline timeline;
  constexpr int kSeconds = 1000;  // more than 512 quarters
  for (int i = 0; i < kSeconds; ++i) {
    Timeline::Bin& bin = timeline.At(i + 0.5);
    ++bin.sent;
    bin.output_tokens += 3;
    bin.ttft.Add(0.1);
  }
  EXPECT_EQ(timeline.bin_seconds(), 2);
  EXPECT_EQ(timeline.bins().size(), 500u);
  for (const Timeline::Bin& bin : timeline.bins()) {
    EXPECT_EQ(bin.sent, 2u);
    EXPECT_EQ(bin.output_tokens, 6u);
    EXPECT_EQ(bin.ttft.count(), 2u);
  }
  EXPECT_EQ(timeline.At(-1).sent, 2u);  // before the start: the first bin
}

}  // namespace
}  // namespace bst::stress
