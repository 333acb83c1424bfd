// Options: the command line of bst-stress, read and checked as a whole.
//
// Threads     A value and free functions.
// Tested by   tests/clients/stress/options_test.cc
#pragma once

#include <grpcpp/support/status.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "clients/common/connection.h"
#include "clients/stress/load_run.h"
#include "clients/stress/slo.h"
#include "clients/stress/traffic.h"

namespace bst::stress {

// What a sweep varies, and how.
struct SweepOptions {
  enum class Variable { kRate, kConcurrency };
  Variable variable = Variable::kRate;
  std::vector<double> steps;  // not empty: exactly these loads
  double from = 1, to = 1e6;  // else: doubled from `from`, then halved in between
  double precision = 0.1;     // until the interval is this part of the load
};

struct Options {
  client::Connection connection;
  uint32_t num_connections = 1;
  double wait_seconds = 10;
  std::string metrics_address;  // empty: none

  LoadShape load;
  std::optional<SweepOptions> sweep;
  bool verify = false;

  TrafficOptions traffic;  // text_tokens are yet to be made of text_file
  std::string text_file;

  Slo slo;
  std::set<grpc::StatusCode> expected;

  std::string json_file, requests_file, html_file;
};

// The flags as they are written; shared by the command line and whoever builds the Options.
struct Flags;

// Adds every flag to `app`.
std::shared_ptr<Flags> AddFlags(CLI::App& app);

// After the parse. Throws UsageError that says what does not go together.
Options MakeOptions(const Flags& flags);

// "OK,RESOURCE_EXHAUSTED". Throws UsageError.
std::set<grpc::StatusCode> ParseCodes(std::string_view text);

}  // namespace bst::stress
