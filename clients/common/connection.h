// How a client reaches the server: address, TLS, key. What the programs under clients/ share.
//
// Threads     Values and free functions.
// Tested by   tests/clients/connection_test.cc, tests/e2e/cli_test.py
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <stdexcept>
#include <string>

namespace CLI {
class App;
class Validator;
}  // namespace CLI

namespace bst::client {

// Something the user got wrong and that the command line's grammar cannot tell: a file that cannot
// be read. Caught in main, which ends with the exit code for wrong usage.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Connection {
  std::string server = "127.0.0.1:50051";  // or another name that gRPC resolves
  std::string token_file;
  bool tls = false;  // any of the following implies it
  std::string tls_ca, tls_cert, tls_key, tls_server_name;

  void AddFlags(CLI::App& app);

  // Calls go round all addresses of `server`. `arguments`: what the caller wants beyond message
  // size, keepalive, the pauses between attempts to connect, and the name to expect. Throws
  // UsageError when `server` is no address (a URL, no port), when a file cannot be read or is no
  // PEM, and for one of --tls-cert and --tls-key without the other.
  std::shared_ptr<grpc::Channel> MakeChannel(grpc::ChannelArguments arguments = {}) const;

  // The first line of --token-file without blanks around it; empty without a file. Throws
  // UsageError when no key is there: one has bytes from 0x21 to 0x7e alone.
  std::string ReadKey() const;
};

// Checks of a flag's number, for CLI11's option->check(): its own print the bounds of a double.
CLI::Validator NotNegative();
CLI::Validator Positive();

// Shows `key` to the server; an empty one is not shown.
void AddKey(const std::string& key, grpc::ClientContext& context);

// The file's bytes; "-" is the standard input. Throws UsageError.
std::string ReadFile(const std::string& path);

// The status's code, but UNAVAILABLE for a stream that a proxy reset: its server was lost. Tested
// by tests/deploy/envoy_test.py.
grpc::StatusCode CodeOf(const grpc::Status& status);

// "UNAVAILABLE"
std::string CodeName(grpc::StatusCode code);

}  // namespace bst::client
