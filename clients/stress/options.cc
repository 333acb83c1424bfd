#include "clients/stress/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

namespace bst::stress {

using client::UsageError;

struct Flags {
  client::Connection connection;
  uint32_t connections = 1;
  double wait = 10;
  std::string metrics;

  std::optional<double> rate;
  std::string arrivals = "poisson";
  std::optional<double> burstiness;
  std::optional<uint32_t> concurrency;
  std::optional<double> duration;
  std::optional<uint64_t> requests;
  double warmup = 0, probe_rate = 0, drain = 60;
  uint32_t retries = 0;
  std::string sweep, sweep_steps;
  std::optional<double> sweep_from, sweep_to;
  double sweep_precision = 0.1;
  bool verify = false;

  std::string prompt_tokens = "128", max_new_tokens = "64", mix;
  std::string text_file, jsonl_file;
  uint32_t shared_prefix = 0, prefixes = 1;
  uint64_t seed = 1;
  std::optional<float> temperature, top_p, min_p, typical_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<int32_t> top_k;
  bool ignore_eos = false, logprobs = false;
  double cancel_rate = 0, slow_reader = 0, slow_reader_delay = 0.1, deadline_rate = 1;
  std::optional<double> deadline;

  std::string slo, expect;
  std::string json, requests_out, html;
};

namespace {

constexpr double kMaxRate = 1e6;  // a second
constexpr double kMaxConcurrency = std::numeric_limits<uint32_t>::max();

CLI::Option* AddSeconds(CLI::App& app, const std::string& name, auto& value,
                        const std::string& help) {
  const std::map<std::string, double> units = {
      {"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}};
  return app.add_option(name, value, help)
      ->transform(CLI::AsNumberWithUnit(units, CLI::AsNumberWithUnit::CASE_SENSITIVE, "TIME"));
}

void AddServerFlags(CLI::App& app, Flags& f) {
  f.connection.AddFlags(app);
  for (CLI::Option* const option : app.get_options()) {
    if (!option->get_lnames().empty() && option->get_lnames()[0] != "help") option->group("Server");
  }
  app.add_option("--connections", f.connections, "Separate connections, used in turn")
      ->check(CLI::Range(1, 10'000))
      ->group("Server")
      ->capture_default_str();
  AddSeconds(app, "--wait", f.wait, "Wait so long for a server that is not ready yet (10s)")
      ->check(client::NotNegative())
      ->group("Server");
  app.add_option("--metrics", f.metrics,
                 "HOST:PORT of the server's metrics, read before and after the run")
      ->group("Server");
}

void AddLoadFlags(CLI::App& app, Flags& f) {
  const char* const group = "Load";
  app.add_option("--rate", f.rate, "Open loop: requests due per second, whatever the server does")
      ->group(group);
  app.add_option("--concurrency", f.concurrency,
                 "Closed loop: so many streams at any time. With --rate: the most at a time; what "
                 "is due waits, and its latency counts on")
      ->group(group);
  app.add_option("--arrivals", f.arrivals, "Gaps of an open loop: poisson, constant, gamma")
      ->check(CLI::IsMember({"poisson", "constant", "gamma"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--burstiness", f.burstiness,
                 "Shape of gamma arrivals: below 1 in bursts, 1 is poisson, above 1 more even")
      ->group(group);
  AddSeconds(app, "--duration", f.duration,
             "Send for so long after the warm-up (30s, unless --requests is given)")
      ->group(group);
  app.add_option("--requests", f.requests, "Send so many requests after the warm-up")->group(group);
  AddSeconds(
      app, "--warmup", f.warmup,
      "Requests due in this time at the start count for throughput alone, by what comes after it")
      ->check(client::NotNegative())
      ->group(group);
  AddSeconds(app, "--drain", f.drain, "Wait so long for the last streams, then cut them (60s)")
      ->check(client::NotNegative())
      ->group(group);
  app.add_option("--probe-rate", f.probe_rate,
                 "Besides: so many one-token requests per second, which feel every stall")
      ->check(client::NotNegative())
      ->group(group);
  app.add_option("--retry", f.retries,
                 "Send a refused request again, so many times at most, when the server said to")
      ->check(client::NotNegative())
      ->group(group);
  app.add_option("--seed", f.seed,
                 "Everything drawn here comes from it: arrivals, prompts, each request's own seed")
      ->check(client::NotNegative())
      ->group(group)
      ->capture_default_str();

  const char* const other = "Instead of one run";
  app.add_option("--sweep", f.sweep,
                 "Find the highest load that holds --slo; varies the 'rate' or the 'concurrency'")
      ->check(CLI::IsMember({"rate", "concurrency"}))
      ->group(other);
  app.add_option("--sweep-from", f.sweep_from, "First load; doubled while the SLO holds (1)")
      ->group(other);
  app.add_option("--sweep-to", f.sweep_to, "Highest load to try")->group(other);
  app.add_option("--sweep-precision", f.sweep_precision,
                 "Halve the interval until it is this part of the load")
      ->check(CLI::Range(0.001, 1.0))
      ->group(other)
      ->capture_default_str();
  app.add_option("--sweep-steps", f.sweep_steps, "Exactly these loads: 1,2,4,8")->group(other);
  app.add_flag("--verify", f.verify,
               "The same requests one by one and --concurrency at a time (16) must give the same "
               "tokens and log-probabilities, bit for bit")
      ->group(other);
}

void AddTrafficFlags(CLI::App& app, Flags& f) {
  const char* const group = "Traffic";
  app.add_option("--prompt-tokens", f.prompt_tokens, "Length of a prompt: N or LOW-HIGH")
      ->group(group)
      ->capture_default_str();
  app.add_option("--max-new-tokens", f.max_new_tokens, "Tokens to generate: N or LOW-HIGH")
      ->group(group)
      ->capture_default_str();
  app.add_option("--mix", f.mix,
                 "Instead of the two: WEIGHT:PROMPT[:NEW],... e.g. 90:32-256,10:4000-8000:16")
      ->group(group);
  app.add_option("--text-file", f.text_file,
                 "Prompts are pieces of this text; default: random token ids")
      ->group(group);
  app.add_option("--jsonl", f.jsonl_file,
                 "Prompts are its lines in turn: {\"prompt\": TEXT} or {\"token_ids\": [...]}, and "
                 "if wanted \"max_new_tokens\"")
      ->group(group);
  app.add_option("--shared-prefix", f.shared_prefix, "Tokens in front that requests have in common")
      ->check(client::NotNegative())
      ->group(group);
  app.add_option("--prefixes", f.prefixes, "Different shared prefixes, drawn per request")
      ->check(client::Positive())
      ->group(group);
  app.add_flag("--ignore-eos", f.ignore_eos, "Go on after an end of sequence: exact lengths")
      ->group(group);
  app.add_flag("--logprobs", f.logprobs, "Ask for log-probabilities")->group(group);
  app.add_option("--temperature", f.temperature, "0 .. 100; unset: the model's default")
      ->group(group);
  app.add_option("--top-k", f.top_k, "Only the k likeliest")->group(group);
  app.add_option("--top-p", f.top_p, "Only the likeliest with this mass")->group(group);
  app.add_option("--min-p", f.min_p, "Only those at least so likely, relative to the likeliest")
      ->group(group);
  app.add_option("--typical-p", f.typical_p, "Locally typical sampling")->group(group);
  app.add_option("--repetition-penalty", f.repetition_penalty, "Above 1 discourages what was said")
      ->group(group);

  app.add_option("--presence-penalty", f.presence_penalty, "-2 .. 2, once per token of the output")
      ->group(group);
  app.add_option("--frequency-penalty", f.frequency_penalty, "-2 .. 2, per occurrence")
      ->group(group);

  const char* const faults = "Clients that misbehave (shares are 0 .. 1)";
  app.add_option("--cancel-rate", f.cancel_rate,
                 "Share cancelled at a random moment: a third within 0.1 s, the rest while it "
                 "streams")
      ->check(CLI::Range(0.0, 1.0))
      ->group(faults);
  AddSeconds(app, "--deadline", f.deadline, "Deadline of a call")->group(faults);
  app.add_option("--deadline-rate", f.deadline_rate, "Share that has the deadline (1)")
      ->check(CLI::Range(0.0, 1.0))
      ->group(faults);
  app.add_option("--slow-reader", f.slow_reader, "Share that waits before it reads a message")
      ->check(CLI::Range(0.0, 1.0))
      ->group(faults);
  AddSeconds(app, "--slow-reader-delay", f.slow_reader_delay, "How long it waits (100ms)")
      ->check(client::Positive())
      ->group(faults);
}

void AddReportFlags(CLI::App& app, Flags& f) {
  const char* const group = "Verdict and report";
  app.add_option("--slo", f.slo,
                 "What must hold, e.g. ttft:200ms,itl:50ms@p95,e2e:5s (p99 if not said; also "
                 "tpot). Failed requests are beyond every bound")
      ->group(group);
  app.add_option("--expect", f.expect,
                 "Status codes that are fine (OK). CANCELLED is for what this client cancelled, "
                 "DEADLINE_EXCEEDED for what it gave a deadline")
      ->group(group);
  app.add_option("--json", f.json,
                 "Write the report as one JSON object; - is stdout, the text then goes to stderr")
      ->group(group);
  app.add_option("--requests-out", f.requests_out, "Write one JSON object per request")
      ->group(group);
  app.add_option("--html", f.html, "Write the report as one HTML file with charts")->group(group);
}

LoadShape MakeLoad(const Flags& f) {
  LoadShape load;
  const auto check_positive = [](const std::optional<double>& value, const char* flag) {
    if (value.has_value() && !(std::isfinite(*value) && *value > 0))
      throw UsageError(std::string(flag) + " must be above 0");
  };
  check_positive(f.rate, "--rate");
  check_positive(f.burstiness, "--burstiness");
  check_positive(f.duration, "--duration");
  if (f.rate.has_value() && *f.rate > kMaxRate)
    throw UsageError("--rate is above 1,000,000 a second");
  if (!(f.probe_rate <= kMaxRate)) throw UsageError("--probe-rate is above 1,000,000 a second");
  if (f.concurrency == 0u) throw UsageError("--concurrency must be above 0");
  if (f.requests == uint64_t{0}) throw UsageError("--requests must be above 0");
  if (f.burstiness.has_value() && f.arrivals != "gamma")
    throw UsageError("--burstiness goes with --arrivals=gamma");
  load.rate = f.rate;
  load.arrivals = f.arrivals == "constant" ? Arrivals::kConstant
                  : f.arrivals == "gamma"  ? Arrivals::kGamma
                                           : Arrivals::kPoisson;
  if (f.arrivals != "poisson" && !f.rate.has_value() && f.sweep != "rate")
    throw UsageError("--arrivals goes with --rate: a closed loop has no arrivals");
  load.burstiness = f.burstiness.value_or(1);
  load.concurrency = f.concurrency;
  load.warmup_seconds = f.warmup;
  load.duration_seconds = f.duration;
  load.requests = f.requests;
  if (!f.duration.has_value() && !f.requests.has_value()) load.duration_seconds = 30;
  load.probe_rate = f.probe_rate;
  load.drain_seconds = f.drain;
  load.max_retries = f.retries;
  return load;
}

SweepOptions MakeSweep(const Flags& f, const Slo& slo) {
  SweepOptions sweep;
  const bool is_rate = f.sweep == "rate";
  sweep.variable = is_rate ? SweepOptions::Variable::kRate : SweepOptions::Variable::kConcurrency;
  if (slo.empty()) throw UsageError("--sweep needs --slo: it looks for the highest load within it");
  const bool bounds_waiting = std::any_of(slo.begin(), slo.end(), [](const SloClause& clause) {
    return clause.metric == Metric::kTtft || clause.metric == Metric::kE2e;
  });
  if (is_rate && !bounds_waiting)
    throw UsageError(
        "--sweep rate needs a bound on ttft or e2e: a queue that grows keeps the rest");
  if (is_rate && f.rate.has_value())
    throw UsageError("--sweep rate chooses the rate: use --sweep-from instead of --rate");
  if (!is_rate && (f.concurrency.has_value() || f.rate.has_value()))
    throw UsageError(
        "--sweep concurrency chooses the load: use --sweep-from, without --concurrency and --rate");
  sweep.from = f.sweep_from.value_or(1);
  sweep.to = f.sweep_to.value_or(is_rate ? 1e5 : 1e4);
  sweep.precision = f.sweep_precision;
  if (!(sweep.from > 0) || !(sweep.to >= sweep.from) || !std::isfinite(sweep.to))
    throw UsageError("--sweep-from must be above 0 and --sweep-to not below it");
  const double highest = is_rate ? kMaxRate : kMaxConcurrency;
  const auto check_highest = [highest](double load, const char* flag) {
    if (load > highest)
      throw UsageError(std::string(flag) + " is above " +
                       std::to_string(static_cast<uint32_t>(highest)));
  };
  check_highest(sweep.to, "--sweep-to");
  std::string_view rest = f.sweep_steps;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    double step = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + comma, step);
    if (error != std::errc() || end != rest.data() + comma || !std::isfinite(step) || step <= 0 ||
        (!is_rate && step != std::floor(step)))
      throw UsageError("--sweep-steps: '" + std::string(rest.substr(0, comma)) + "' is no load");
    check_highest(step, "--sweep-steps: a load");
    sweep.steps.push_back(step);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  if (!sweep.steps.empty() && (f.sweep_from.has_value() || f.sweep_to.has_value()))
    throw UsageError("--sweep-steps says all loads; leave out --sweep-from and --sweep-to");
  if (!is_rate) {
    sweep.from = std::ceil(sweep.from);
    sweep.to = std::floor(sweep.to);
  }
  return sweep;
}

TrafficOptions MakeTraffic(const Flags& f) {
  TrafficOptions traffic;
  traffic.seed = f.seed;
  traffic.prompt_tokens = ParseRange(f.prompt_tokens, "--prompt-tokens");
  traffic.new_tokens = ParseRange(f.max_new_tokens, "--max-new-tokens");
  if (!f.mix.empty()) traffic.mix = ParseMix(f.mix);
  if (!f.text_file.empty() && !f.jsonl_file.empty())
    throw UsageError("--text-file and --jsonl are two sources of prompts; choose one");
  if (!f.jsonl_file.empty()) {
    if (!f.mix.empty() || f.shared_prefix > 0)
      throw UsageError("--jsonl says the prompts; leave out --mix and --shared-prefix");
    traffic.json_prompts = ParseJsonLines(client::ReadFile(f.jsonl_file), f.jsonl_file);
  }
  traffic.prefix_tokens = f.shared_prefix;
  traffic.num_prefixes = f.prefixes;
  if (f.prefixes > 1 && f.shared_prefix == 0)
    throw UsageError("--prefixes goes with --shared-prefix");
  v1::Sampling& sampling = traffic.sampling;
  if (f.temperature) sampling.set_temperature(*f.temperature);
  if (f.top_k) sampling.set_top_k(*f.top_k);
  if (f.top_p) sampling.set_top_p(*f.top_p);
  if (f.min_p) sampling.set_min_p(*f.min_p);
  if (f.typical_p) sampling.set_typical_p(*f.typical_p);
  if (f.repetition_penalty) sampling.set_repetition_penalty(*f.repetition_penalty);
  if (f.presence_penalty) sampling.set_presence_penalty(*f.presence_penalty);
  if (f.frequency_penalty) sampling.set_frequency_penalty(*f.frequency_penalty);
  traffic.ignore_eos = f.ignore_eos;
  traffic.logprobs = f.logprobs;
  traffic.cancel_rate = f.cancel_rate;
  traffic.slow_reader_rate = f.slow_reader;
  traffic.slow_reader_delay_seconds = f.slow_reader_delay;
  if (f.deadline.has_value()) {
    if (!(*f.deadline > 0)) throw UsageError("--deadline must be above 0");
    traffic.deadline_seconds = *f.deadline;
    traffic.deadline_rate = f.deadline_rate;
  } else if (f.deadline_rate != 1) {
    throw UsageError("--deadline-rate goes with --deadline");
  }
  return traffic;
}

// --verify compares whole answers, so nothing may cut them.
void CheckVerify(const Flags& f) {
  const auto refuse = [](bool given, const char* flag) {
    if (given) throw UsageError(std::string("--verify does not go with ") + flag);
  };
  refuse(f.rate.has_value(), "--rate: it compares --concurrency 1 with --concurrency N");
  refuse(!f.sweep.empty(), "--sweep");
  refuse(f.duration.has_value(), "--duration: use --requests");
  refuse(f.warmup > 0, "--warmup");
  refuse(f.cancel_rate > 0, "--cancel-rate: what is cancelled has no whole answer");
  refuse(f.deadline.has_value(), "--deadline: what runs out of time has no whole answer");
  refuse(!f.slo.empty(), "--slo: it measures nothing");
  refuse(!f.html.empty(), "--html: it measures nothing");
  refuse(f.concurrency == 1u, "--concurrency 1: that is what it compares with");
}

}  // namespace

std::shared_ptr<Flags> AddFlags(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  AddServerFlags(app, *flags);
  AddLoadFlags(app, *flags);
  AddTrafficFlags(app, *flags);
  AddReportFlags(app, *flags);
  return flags;
}

Options MakeOptions(const Flags& f) {
  Options options;
  options.connection = f.connection;
  options.num_connections = f.connections;
  options.wait_seconds = f.wait;
  const bool is_host_and_port =
      f.metrics.find('/') == std::string::npos && f.metrics.find(':') != std::string::npos;
  if (!f.metrics.empty() && !is_host_and_port) {
    throw UsageError("--metrics is '" + f.metrics +
                     "', not HOST:PORT (without http:// or a path), as 127.0.0.1:9090");
  }
  options.metrics_address = f.metrics;
  if (!f.slo.empty()) options.slo = ParseSlo(f.slo);
  options.expected = ParseCodes(f.expect.empty() ? "OK" : f.expect);
  options.load = MakeLoad(f);
  options.traffic = MakeTraffic(f);
  options.text_file = f.text_file;
  options.verify = f.verify;
  options.json_file = f.json;
  options.requests_file = f.requests_out;
  options.html_file = f.html;
  if (f.sweep.empty() && (!f.sweep_steps.empty() || f.sweep_from.has_value() || f.sweep_to))
    throw UsageError("--sweep-steps, --sweep-from and --sweep-to go with --sweep");
  if (f.verify) {
    CheckVerify(f);
    options.traffic.logprobs = true;
    options.load.duration_seconds.reset();
    options.load.requests = f.requests.value_or(32);
    options.load.concurrency = f.concurrency.value_or(16);
  } else if (!f.sweep.empty()) {
    options.sweep = MakeSweep(f, options.slo);
  } else if (!f.rate.has_value() && !f.concurrency.has_value()) {
    throw UsageError(
        "no load: give --rate (open loop), --concurrency (closed loop), --sweep or --verify; "
        "bst-stress --help has examples");
  }
  return options;
}

std::set<grpc::StatusCode> ParseCodes(std::string_view text) {
  std::set<grpc::StatusCode> codes;
  while (true) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view name = text.substr(0, comma);
    bool found = false;
    for (int code = grpc::StatusCode::OK; code <= grpc::StatusCode::UNAUTHENTICATED; ++code) {
      if (client::CodeName(static_cast<grpc::StatusCode>(code)) != name) continue;
      codes.insert(static_cast<grpc::StatusCode>(code));
      found = true;
    }
    if (!found)
      throw UsageError("--expect: '" + std::string(name) +
                       "' is no status code, for instance OK or RESOURCE_EXHAUSTED");
    if (comma == text.size()) return codes;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace bst::stress
