#include "clients/cli/connection.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace bst::cli {

void Connection::AddFlags(CLI::App& app) {
  client::Connection::AddFlags(app);
  app.add_flag("--json", json, "One JSON object on stdout, nothing else there");
  const std::string description = "Seconds after which the call is given up; default: ";
  app.add_option(
         "--timeout", timeout_seconds,
         description + (timeout_seconds ? std::to_string(std::lround(*timeout_seconds)) : "never"))
      ->check(client::Positive());
}

void Connection::Prepare(grpc::ClientContext& context) const {
  client::AddKey(ReadKey(), context);
  if (timeout_seconds.has_value()) {
    const auto timeout = std::chrono::duration_cast<std::chrono::system_clock::duration>(
        std::chrono::duration<double>(*timeout_seconds));
    context.set_deadline(std::chrono::system_clock::now() + timeout);
  }
}

ExitCode ReportFailure(const grpc::Status& status, const char* smaller) {
  std::fprintf(stderr, "bst: %s: %s\n", CodeName(client::CodeOf(status)).c_str(),
               status.error_message().c_str());
  google::rpc::Status details;
  bool may_retry = false;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : details.details()) {
      if (google::rpc::RetryInfo retry; detail.UnpackTo(&retry)) {
        may_retry = true;
        std::fprintf(stderr, "Try again in %lld s.\n",
                     static_cast<long long>(retry.retry_delay().seconds()));
      }
    }
  }
  // In gRPC's words or in TooLarge's; where anything else is exhausted, the server says what helps.
  const std::string& message = status.error_message();
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && !may_retry &&
      (message.find("message larger than max") != std::string::npos ||
       message.find("message limit") != std::string::npos)) {
    std::fprintf(stderr,
                 "The request is larger than the server's message limit: %s, or start the server "
                 "with a larger --max_message_bytes (see `bst info`).\n",
                 smaller);
  }
  return kRequestFailed;
}

}  // namespace bst::cli
