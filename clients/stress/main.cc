// bst-stress: the load generator.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "clients/common/connection.h"
#include "clients/stress/html_report.h"
#include "clients/stress/json_report.h"
#include "clients/stress/options.h"
#include "clients/stress/server_facts.h"
#include "clients/stress/session.h"
#include "clients/stress/sweep.h"
#include "clients/stress/text_report.h"
#include "clients/stress/verify.h"

namespace bst::stress {
namespace {

enum ExitCode { kPassed = 0, kFailed = 1, kWrongUsage = 2 };

constexpr char kExamples[] =
    "Examples:\n"
    "  Ten users who each wait for their answer before they ask again, for half a minute:\n"
    "    bst-stress --concurrency 10 --duration 30s\n"
    "  Five requests a second at random times, whatever the server does; fails if the promise "
    "breaks:\n"
    "    bst-stress --rate 5 --duration 60s --warmup 5s --slo ttft:500ms,itl:100ms\n"
    "  Nine short prompts and one very long; one-token probes feel what the long ones do to "
    "others:\n"
    "    bst-stress --rate 4 --mix 90:32-256,10:4000-8000 --probe-rate 2 --metrics "
    "127.0.0.1:9090\n"
    "  The highest rate that holds the promise, with charts:\n"
    "    bst-stress --sweep rate --duration 20s --slo ttft:500ms,itl:100ms --html sweep.html\n"
    "  Clients that go away, that have no time, that read slowly:\n"
    "    bst-stress --concurrency 16 --cancel-rate 0.2 --deadline 2s --slow-reader 0.1\n"
    "  Far too much: refusals are fine, other failures are not:\n"
    "    bst-stress --rate 500 --duration 10s --expect OK,RESOURCE_EXHAUSTED --json -\n"
    "  The same answers whatever the load:\n"
    "    bst-stress --verify --requests 64 --concurrency 32\n"
    "Latency counts from the moment a request was due, not from when it could be sent.\n"
    "Exit code: 0 passed; 1 an SLO did not hold, a status was unexpected, answers differed, "
    "nothing was answered, the server was not there, or the report could not be written; 2 wrong "
    "usage.";

// After the run: no wrong usage.
class ReportError : public std::runtime_error {
  using runtime_error::runtime_error;
};

void WriteFile(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);  // main sees whether it arrived
    return;
  }
  std::FILE* const file = std::fopen(path.c_str(), "w");
  bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (file != nullptr) written &= std::fclose(file) == 0;
  if (!written) throw ReportError("FAILED: cannot write " + path);
}

// Before the run rather than after it.
void CheckWritable(const std::string& path) {
  if (path.empty() || path == "-") return;
  std::FILE* const file = std::fopen(path.c_str(), "a");
  if (file == nullptr) throw client::UsageError("cannot write " + path);
  std::fclose(file);
}

void WriteReports(const Options& options, const Json& report) {
  const std::string text = report.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!options.json_file.empty()) WriteFile(options.json_file, text);
  if (!options.html_file.empty()) WriteFile(options.html_file, HtmlReport(report));
}

// Where the text goes: JSON alone may have stdout.
std::FILE* TextFile(const Options& options) { return options.json_file == "-" ? stderr : stdout; }

ExitCode RunLoadOnce(const Options& options, Session& session) {
  const RunResult result = session.Run(options.load);
  std::fputs(RunText(session.subject(), result).c_str(), TextFile(options));
  WriteReports(options, RunJson(session.subject(), result));
  return result.Complaints().empty() ? kPassed : kFailed;
}

ExitCode RunSweep(const Options& options, Session& session) {
  std::FILE* const out = TextFile(options);
  const bool is_rate = options.sweep->variable == SweepOptions::Variable::kRate;
  std::fputs(SweepHeadText(is_rate).c_str(), out);
  const SweepResult sweep = Sweep(*options.sweep, [&](double load) {
    LoadShape shape = options.load;
    if (is_rate) {
      shape.rate = load;
    } else {
      shape.concurrency = static_cast<uint32_t>(load);
    }
    SweepPoint point{load, false, session.Run(shape)};
    point.held = point.result.Complaints().empty();
    std::fputs(SweepRowText(point).c_str(), out);
    std::fflush(out);
    return point;
  });
  const SweepPoint* const highest = sweep.Highest();
  if (highest != nullptr) {
    std::fprintf(out, "\nthe highest load that holds: %g %s\n\n%s", highest->load,
                 is_rate ? "requests/s" : "streams",
                 RunText(session.subject(), highest->result).c_str());
  } else {
    std::fprintf(out, "\nFAILED: the lowest load does not hold\n\n%s",
                 RunText(session.subject(), sweep.points.front().result).c_str());
  }
  WriteReports(options, SweepJson(session.subject(), sweep));
  return highest != nullptr && !IsInterrupted() ? kPassed : kFailed;
}

ExitCode RunVerify(const Options& options, Session& session) {
  const uint32_t concurrency = *options.load.concurrency;
  Answers answers[2];
  uint64_t tokens = 0;
  for (size_t i = 0; i < 2; ++i) {
    LoadShape load = options.load;
    load.concurrency = i == 0 ? 1 : concurrency;
    session.Run(load, true, [&answers, &tokens, i](RequestRecord& record) {
      if (record.is_probe) return;
      if (i == 0) tokens += record.output_tokens;
      answers[i].emplace(record.index, TakeAnswer(record));
    });
  }
  const std::optional<std::string> difference = FirstDifference(answers[0], answers[1]);
  std::FILE* const out = TextFile(options);
  if (difference.has_value()) {
    std::fprintf(out, "FAILED: %s\n", difference->c_str());
  } else {
    std::fprintf(out,
                 "the same: %zu requests, %llu tokens and log-probabilities at concurrency 1 and "
                 "%u\n",
                 answers[0].size(), static_cast<unsigned long long>(tokens), concurrency);
  }
  WriteReports(options,
               {{"ok", !difference.has_value()},
                {"requests", answers[0].size()},
                {"tokens", tokens},
                {"concurrency", concurrency},
                {"first_difference", difference.has_value() ? Json(*difference) : Json()}});
  return difference.has_value() || IsInterrupted() ? kFailed : kPassed;
}

ExitCode Main(const Flags& flags) {
  const Options options = MakeOptions(flags);
  CheckWritable(options.json_file);
  CheckWritable(options.html_file);
  Session session(options);
  CatchInterrupts();
  if (options.verify) return RunVerify(options, session);
  return options.sweep.has_value() ? RunSweep(options, session) : RunLoadOnce(options, session);
}

}  // namespace
}  // namespace bst::stress

int main(int argc, char** argv) {
  using namespace bst::stress;
  CLI::App app("Loads a bst-server and reports latency, throughput and failures.", "bst-stress");
  app.footer(kExamples);
  app.set_version_flag("--version", "bst-stress " BST_VERSION);
  const auto flags = AddFlags(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kPassed : kWrongUsage;
  }
  try {
    const ExitCode code = Main(*flags);
    // A report that did not arrive, on a full disk, is no success.
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      std::fprintf(stderr, "bst-stress: the output could not be written\n");
      return kFailed;
    }
    return code;
  } catch (const ServerError& error) {
    std::fprintf(stderr, "bst-stress: %s\n", error.what());
    return kFailed;
  } catch (const ReportError& error) {
    std::fprintf(stderr, "bst-stress: %s\n", error.what());
    return kFailed;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bst-stress: %s\n", error.what());
    return kWrongUsage;
  }
}
