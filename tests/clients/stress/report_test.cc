// The reports: the names in the JSON, and that the HTML is well formed and refers to nothing
// outside.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "clients/stress/html_report.h"
#include "clients/stress/json_report.h"
#include "clients/stress/text_report.h"

namespace bst::stress {
namespace {

using testing::HasSubstr;
using testing::Not;

const Subject kSubject = {"127.0.0.1:1", "</script><!-- model", "cpu", 2, 9};

RunResult SomeResult() {
  const Slo slo = ParseSlo("ttft:200ms,itl:50ms");
  Recorder recorder(slo, {grpc::StatusCode::OK}, 2);
  for (int i = 0; i < 40; ++i) {
    RequestRecord record;
    record.index = static_cast<uint64_t>(i);
    record.intended_seconds = record.sent_seconds = 2 + 0.1 * i;
    record.ttft_seconds = 0.01 * (i + 1);
    record.tpot_seconds = 0.002;
    record.e2e_seconds = 1;
    record.end_seconds = record.intended_seconds + 1;
    record.gaps = 9;
    record.prompt_tokens = 100;
    record.output_tokens = 10;
    record.finish_reason = v1::MAX_TOKENS;
    recorder.AddSend(record.intended_seconds);
    recorder.AddRequest(record);
    recorder.AddTokens(std::vector<TokenSample>{{record.end_seconds, 0.004f, 10}}, true);
  }
  RequestRecord refused;
  refused.code = grpc::StatusCode::RESOURCE_EXHAUSTED;
  refused.message = "queue is full";
  refused.intended_seconds = refused.end_seconds = 3;
  refused.refusals = refused.refusals_with_retry_info = 1;
  recorder.AddRequest(refused);
  RunResult result;
  result.load.rate = 10;
  result.load.warmup_seconds = 2;
  result.totals = recorder.Totals();
  result.has_slo = true;
  result.before = ParseMetrics("# TYPE done_total counter\ndone_total 1\n");
  result.after = ParseMetrics("# TYPE done_total counter\ndone_total 4\n");
  return result;
}

TEST(JsonReportTest, HasVllmsNames) {
  const Json json = RunJson(kSubject, SomeResult());
  for (const char* const name :
       {"date", "backend", "model_id", "num_prompts", "request_rate", "burstiness",
        "max_concurrency", "duration", "completed", "failed", "total_input_tokens",
        "total_output_tokens", "request_throughput", "request_goodput", "output_throughput",
        "total_token_throughput", "max_concurrent_requests"})
    EXPECT_TRUE(json.contains(name)) << name;
  for (const char* const metric : {"ttft", "tpot", "itl", "e2el"}) {
    for (const char* const statistic :
         {"mean", "median", "std", "p50", "p90", "p95", "p99", "p99.9", "max"}) {
      const std::string name = std::string(statistic) + "_" + metric + "_ms";
      EXPECT_TRUE(json.contains(name) && json[name].is_number()) << name;
    }
  }
}

TEST(JsonReportTest, HasWhatWasMeasured) {
  const Json json = RunJson(kSubject, SomeResult());
  EXPECT_EQ(json["completed"], 40);
  EXPECT_EQ(json["failed"], 1);
  EXPECT_EQ(json["num_prompts"], 41);
  EXPECT_NEAR(json["duration"].get<double>(), 4.9, 1e-6);  // from the end of the warm-up
  EXPECT_NEAR(json["request_throughput"].get<double>(), 40 / 4.9, 1e-3);
  EXPECT_NEAR(json["output_throughput"].get<double>(), 400 / 4.9, 1e-3);
  EXPECT_NEAR(json["request_goodput"].get<double>(), 20 / 4.9, 1e-3);
  EXPECT_NEAR(json["p50_ttft_ms"].get<double>(), 200, 1);
  EXPECT_EQ(json["max_ttft_ms"], 400);
  EXPECT_EQ(json["status_codes"]["RESOURCE_EXHAUSTED"], 1);
  EXPECT_EQ(json["first_messages"]["RESOURCE_EXHAUSTED"], "queue is full");
  EXPECT_EQ(json["refusals"]["with_retry_info"], 1);
  EXPECT_EQ(json["slo"][0]["within"], 20);
  EXPECT_EQ(json["slo"][0]["total"], 41);
  EXPECT_EQ(json["slo"][0]["held"], false);
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["slo"][1]["within"], 360);
  EXPECT_EQ(json["slo"][1]["held"], true);   // 360 of 361 are above 99 %
  EXPECT_EQ(json["complaints"].size(), 2u);  // the status and ttft
  EXPECT_EQ(json["server_metrics"]["counters"]["done_total"], 3);
}

TEST(JsonReportTest, AClosedLoopHasNoRateAndNoSloNoGoodput) {
  RunResult result = SomeResult();
  result.load.rate.reset();
  result.load.concurrency = 4;
  result.has_slo = false;
  const Json json = RunJson(kSubject, result);
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_EQ(json["max_concurrency"], 4);
  EXPECT_TRUE(json["request_goodput"].is_null());
}

TEST(JsonReportTest, ASweepHasTheHighestLoadThatHeldAndEveryPoint) {
  SweepResult sweep;
  sweep.points = {{2, true, SomeResult()}, {4, false, SomeResult()}};
  const Json json = SweepJson(kSubject, sweep);
  EXPECT_EQ(json["sweep"]["highest"], 2);
  EXPECT_EQ(json["sweep"]["points"].size(), 2u);
  EXPECT_EQ(json["sweep"]["points"][1]["held"], false);
  EXPECT_EQ(json["sweep"]["points"][1]["run"]["completed"], 40);
  EXPECT_EQ(json["ok"], true);
  sweep.points[0].held = false;
  EXPECT_TRUE(SweepJson(kSubject, sweep)["sweep"]["highest"].is_null());
  EXPECT_EQ(SweepJson(kSubject, sweep)["ok"], false);
}

TEST(JsonReportTest, ARequestIsOneLine) {
  RequestRecord record;
  record.index = 3;
  record.code = grpc::StatusCode::RESOURCE_EXHAUSTED;
  record.pushback_ms = 1000;
  record.message = "two\nlines";
  const Json json = RequestJson(record);
  EXPECT_EQ(json["status"], "RESOURCE_EXHAUSTED");
  EXPECT_EQ(json["pushback_ms"], 1000);
  EXPECT_TRUE(json["ttft_ms"].is_null());
  EXPECT_EQ(json.dump().find('\n'), std::string::npos);
}

// Every element is closed, in order; void elements aside. Scripts and styles hold text.
void ExpectWellFormed(const std::string& html) {
  const std::set<std::string> kVoid = {"meta", "br", "hr", "img", "link", "input"};
  const std::regex tag("<(/?)([a-zA-Z][a-zA-Z0-9]*)(\\s[^<>]*)?>");
  std::vector<std::string> open;
  size_t at = 0;
  std::smatch match;
  while (true) {
    const std::string rest = html.substr(at);
    if (!std::regex_search(rest, match, tag)) break;
    const std::string name = match[2];
    at += static_cast<size_t>(match.position() + match.length());
    if (match[1] == "/") {
      ASSERT_FALSE(open.empty()) << name;
      ASSERT_EQ(open.back(), name);
      open.pop_back();
    } else if (kVoid.count(name) == 0) {
      open.push_back(name);
      if (name == "script" || name == "style") {
        at = html.find("</" + name + ">", at);
        ASSERT_NE(at, std::string::npos) << name << " is not closed";
      }
    }
  }
  EXPECT_TRUE(open.empty()) << open.back() << " is not closed";
}

// The JSON between the script tags.
Json Embedded(const std::string& html) {
  const std::string start = "id=\"report\">";
  const size_t from = html.find(start) + start.size();
  return Json::parse(html.substr(from, html.find("</script>", from) - from));
}

TEST(HtmlReportTest, IsWellFormedWhateverTheModelIsCalled) {
  const Json report = RunJson(kSubject, SomeResult());
  const std::string html = HtmlReport(report);
  EXPECT_EQ(html.rfind("<!DOCTYPE html>", 0), 0u);
  ExpectWellFormed(html);
  EXPECT_EQ(Embedded(html), report);
  EXPECT_EQ(Embedded(html)["model_id"], kSubject.model);
}

TEST(HtmlReportTest, ASweepToo) {
  SweepResult sweep;
  sweep.points = {{2, true, SomeResult()}, {4, false, SomeResult()}};
  const std::string html = HtmlReport(SweepJson(kSubject, sweep));
  ExpectWellFormed(html);
  EXPECT_EQ(Embedded(html)["sweep"]["points"].size(), 2u);
}

TEST(HtmlReportTest, RefersToNothingOutside) {
  std::string html = HtmlReport(RunJson(kSubject, SomeResult()));
  const std::string name_space = "\"http://www.w3.org/2000/svg\"";  // a name, not an address
  html.erase(html.find(name_space), name_space.size());
  for (const char* const outside :
       {"http:", "https:", "src=", "href=", "@import", "url(", "fetch("})
    EXPECT_THAT(html, Not(HasSubstr(outside)));
}

TEST(TextReportTest, SaysWhatHappenedAndWhyItFailed) {
  const std::string text = RunText(kSubject, SomeResult());
  EXPECT_THAT(text, HasSubstr("open loop, 10 requests/s (poisson): 41 requests in 4.90 s"));
  EXPECT_THAT(text, HasSubstr("RESOURCE_EXHAUSTED           1   queue is full"));
  EXPECT_THAT(text, HasSubstr("1 RESOURCE_EXHAUSTED, 1 with RetryInfo, 0 with"));
  EXPECT_THAT(text, HasSubstr("FAILED: SLO ttft p99 <= 200 ms does not hold: 48.78 %"));
  EXPECT_THAT(text, Not(HasSubstr("passed")));
}

TEST(TextReportTest, ARunWithoutRequestsIsNoSuccess) {
  RunResult result;
  result.load.concurrency = 3;
  EXPECT_THAT(RunText(kSubject, result), HasSubstr("FAILED: no request was measured"));
}

TEST(TextReportTest, ARunWithoutAnswersIsNoSuccess) {
  RunResult result;
  result.load.concurrency = 3;
  result.totals.requests = 3;
  result.totals.codes[grpc::StatusCode::CANCELLED] = 3;  // cut: nobody else complains of them
  EXPECT_THAT(RunText(kSubject, result),
              HasSubstr("FAILED: no request completed, and none had a token"));
  result.totals.output_tokens = 1;
  EXPECT_THAT(result.Complaints(), testing::IsEmpty());
  result.totals.output_tokens = 0;
  result.totals.completed = 1;
  EXPECT_THAT(result.Complaints(), testing::IsEmpty());
  result.totals.completed = 0;
  result.was_interrupted = true;
  EXPECT_THAT(result.Complaints(), testing::ElementsAre("interrupted"));
}

TEST(TextReportTest, Progress) {
  EXPECT_EQ(ProgressText(12, 8, {120, 110, 2, 5000, 0.0121, 0.08}, 1234),
            "   12.0 s  sent 120  running 8  OK 110  other 2  1234 tok/s  TTFT p50 12.1 ms p99 "
            "80.0 ms");
}

}  // namespace
}  // namespace bst::stress
