// The flags that every command of bst has, and how a command reports a failure.
//
// Threads     Values and free functions.
// Tested by   tests/e2e/cli_test.py
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <optional>

#include "clients/common/connection.h"

namespace bst::cli {

using client::CodeName;
using client::ReadFile;
using client::UsageError;

// What the process returns. Scripts rely on it.
enum ExitCode { kSuccess = 0, kRequestFailed = 1, kWrongUsage = 2 };

struct Connection : client::Connection {
  bool json = false;
  std::optional<double> timeout_seconds;

  // What the members hold are the defaults.
  void AddFlags(CLI::App& app);

  // The key and the deadline of one call. Throws UsageError when the key file cannot be read.
  void Prepare(grpc::ClientContext& context) const;
};

// Writes what went wrong to stderr: the status, the fields that were wrong, when to try again;
// where the request was too large how it gets `smaller`. Returns kRequestFailed.
ExitCode ReportFailure(const grpc::Status& status, const char* smaller = "shorten it");

}  // namespace bst::cli
