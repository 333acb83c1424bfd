// Server: the ports, the services behind them, and the way from start to the end of a drain.
//
//   Start   binds every port; health is NOT_SERVING, requests are refused with UNAVAILABLE
//   Serve   takes the engine, warms it up, then serves
//   Drain   refuses new requests, lets running ones finish, ends the rest with UNAVAILABLE
//
// Ownership   Owns everything behind the ports, the engine included.
// Threads     Thread-compatible: one thread starts, serves and drains.
// Tested by   tests/server/server_test.cc
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/frontend.h"
#include "server/server_config.h"

namespace bst {

class Server {
 public:
  // Errors: kInvalidArgument (an unreadable key or certificate); kUnavailable (an address in use).
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerConfig& config);
  // Ends what still runs at once; Drain first.
  ~Server();

  // Who counts for the engine; to be given to Engine::Create. Lives as long as the server.
  EngineObserver& observer();

  // Errors: those of the tokenizer; what the warm-up request ended with. The server cannot be used
  // then. REQUIRES: once.
  absl::Status Serve(std::unique_ptr<Engine> engine);

  // HOST:PORT with the ports that were bound.
  Addresses addresses() const;
  // "ready grpc=HOST:PORT metrics=HOST:PORT|off control=HOST:PORT|off model=NAME backend=NAME"; of
  // a model's name spaces, control characters and % as %20.
  std::string ReadyLine() const;

  // Blocks for at most config.grace and a moment to flush. Afterwards the ports are closed.
  // REQUIRES: Serve succeeded.
  void Drain();

 private:
  struct Parts;

  explicit Server(std::unique_ptr<Parts> parts);

  std::unique_ptr<Parts> parts_;
};

}  // namespace bst
