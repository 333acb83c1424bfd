// How a command reaches the server: address, TLS, key, deadline; and how it reports a failure.
//
// Threads     Values and free functions.
// Tested by   tests/e2e/cli_test.py
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

namespace bst::cli {

// What the process returns. Scripts rely on it.
enum ExitCode { kSuccess = 0, kRequestFailed = 1, kWrongUsage = 2 };

// Something the user got wrong and that the command line's grammar cannot tell: a file that cannot
// be read. Caught in main, which returns kWrongUsage.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The flags that every command has.
struct Connection {
  std::string server = "127.0.0.1:50051";
  bool json = false;
  std::string token_file;
  bool tls = false;
  std::string tls_ca, tls_cert, tls_key, tls_server_name;
  std::optional<double> timeout_seconds;

  void AddFlags(CLI::App& app);

  // Throws UsageError when a file cannot be read.
  std::shared_ptr<grpc::Channel> MakeChannel() const;
  // The key and the deadline of one call. Throws UsageError when the key file cannot be read.
  void Prepare(grpc::ClientContext& context) const;
};

// The file's bytes; "-" is the standard input. Throws UsageError.
std::string ReadFile(const std::string& path);

// Writes what went wrong to stderr: the status, the fields that were wrong, when to try again.
// Returns kRequestFailed.
ExitCode ReportFailure(const grpc::Status& status);

// "UNAVAILABLE"
std::string CodeName(grpc::StatusCode code);

}  // namespace bst::cli
