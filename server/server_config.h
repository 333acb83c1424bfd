// ServerConfig: everything the server can be told, as one immutable value.
//
// Threads     Immutable once validated.
// Tested by   tests/server/server_config_test.cc
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/log.h"
#include "engine/engine.h"

namespace bst {

struct ServerConfig {
  EngineOptions engine;

  // HOST:PORT; port 0 picks a free one. IPv6 hosts in brackets, but not for the metrics: Debian
  // builds civetweb without IPv6.
  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:9090";  // empty: no metrics over HTTP
  std::string control_listen;                     // empty: no control service

  int64_t max_message_bytes = 64 * 1024 * 1024;  // of one request
  absl::Duration grace = absl::Seconds(30);      // how long a drain waits for running streams

  // PEM files. cert and key go together; client_ca, if set, demands client certificates it signed.
  std::string tls_cert, tls_key, tls_client_ca;
  std::string auth_token_file;  // see AuthTokens::Load; empty: no credentials needed
  // A client that takes longer to receive one message loses its RPC. 1 ms to a day.
  absl::Duration write_timeout = absl::Seconds(60);

  // No flags; tests make them smaller. Output of requests that are over may take max_unread_bytes,
  // all readers together; above it no request is admitted, and those whose request ended
  // write_timeout ago lose their RPCs. The server pings its clients, so that one that vanished
  // without a word frees its slot. The stall limit is the longest step of a machine that still
  // works: prompt chunks of a large model on few cores take seconds.
  int64_t max_unread_bytes = int64_t{256} << 20;
  absl::Duration ping_interval = absl::Seconds(60);
  absl::Duration stall_limit = absl::Seconds(120);

  LogFormat log_format = LogFormat::kText;
};

// The host and the port of "HOST:PORT".
struct HostPort {
  std::string host;
  int port = 0;
};

// Errors: kInvalidArgument when it is not HOST:PORT with a port of 0 .. 65535.
absl::StatusOr<HostPort> ParseHostPort(const std::string& address);

// Errors: kInvalidArgument with one line per wrong option, all of them. Reads no file.
absl::Status Validate(const ServerConfig& config);

// The event "config" with every option and its value, for the start of the log. Holds no secrets:
// keys and certificates are named by their files.
void LogConfig(const ServerConfig& config);

}  // namespace bst
