#include "clients/stress/session.h"

#include <sys/resource.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "clients/stress/json_report.h"
#include "clients/stress/server_facts.h"
#include "clients/stress/text_report.h"

namespace bst::stress {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void OnSignal(int) { interrupted = 1; }

// Of all threads, user and system.
double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = &OnSignal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool IsInterrupted() { return interrupted != 0; }

Session::Session(const Options& options) : options_(options) {
  stubs_.key = options_.connection.ReadKey();
  for (uint32_t i = 0; i < options_.num_connections; ++i) {
    grpc::ChannelArguments arguments;
    // Or channels to one address would share one connection.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // A refusal is to be seen, not papered over.
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    stubs_.stubs.push_back(v1::Generation::NewStub(options_.connection.MakeChannel(arguments)));
  }
  v1::Generation::Stub& stub = *stubs_.stubs.front();
  const v1::ModelInfo info = GetModelInfo(stub, stubs_.key, options_.wait_seconds);
  // The other connections too are open before the first request counts.
  for (const auto& other : stubs_.stubs) GetModelInfo(*other, stubs_.key, options_.wait_seconds);
  subject_ = {options_.connection.server, info.name(), info.backend(), options_.num_connections,
              options_.traffic.seed};
  TrafficOptions traffic = options_.traffic;
  if (!options_.text_file.empty()) {
    traffic.text_tokens =
        TokenizeText(stub, stubs_.key, LimitsOf(info), client::ReadFile(options_.text_file));
    if (traffic.text_tokens.empty())
      throw client::UsageError(options_.text_file + " holds no tokens");
  }
  traffic_.emplace(std::move(traffic), LimitsOf(info));
  if (!options_.requests_file.empty()) {
    requests_file_.reset(std::fopen(options_.requests_file.c_str(), "w"));
    if (requests_file_ == nullptr)
      throw client::UsageError("cannot write " + options_.requests_file);
  }
}

RunResult Session::Run(const LoadShape& load, bool keep_output,
                       std::function<void(RequestRecord&)> on_record) {
  RunResult result;
  result.load = load;
  result.has_slo = !options_.slo.empty();
  if (!options_.metrics_address.empty()) result.before = ScrapeMetrics(options_.metrics_address);
  Recorder recorder(options_.slo, options_.expected, load.warmup_seconds);
  LiveLine line;
  LoadRun::Hooks hooks;
  hooks.keep_output = keep_output;
  hooks.is_interrupted = &IsInterrupted;
  hooks.on_progress = [&line, &recorder](double seconds, size_t running) {
    line.Show(seconds, running, recorder.live());
  };
  hooks.on_record = [this, &on_record](RequestRecord& record) {
    WriteRequest(record);
    if (on_record) on_record(record);
  };
  LoadRun run(load, options_.traffic.seed, *traffic_, stubs_, recorder, std::move(hooks));
  const RunClock clock;
  const double cpu_before = CpuSeconds();
  run.Run();
  line.Clear();
  result.client_cpu_cores = (CpuSeconds() - cpu_before) / clock.Now();
  result.peak_in_flight = run.peak_in_flight();
  result.was_interrupted = IsInterrupted();
  result.totals = recorder.Totals();
  // From here on a failure must not lose what was measured.
  if (!options_.metrics_address.empty()) {
    try {
      result.after = ScrapeMetrics(options_.metrics_address);
    } catch (const ServerError& error) {
      result.troubles.push_back(std::string("after the run: ") + error.what());
    }
  }
  if (requests_file_ != nullptr &&
      (std::fflush(requests_file_.get()) != 0 || std::ferror(requests_file_.get()) != 0))
    result.troubles.push_back("cannot write " + options_.requests_file);
  return result;
}

void Session::WriteRequest(const RequestRecord& record) {
  if (requests_file_ == nullptr) return;
  const std::string line =
      RequestJson(record).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  std::fwrite(line.data(), 1, line.size(), requests_file_.get());
}

}  // namespace bst::stress
