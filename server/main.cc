// bst-server: flags -> ServerConfig -> Server -> Engine; SIGTERM and SIGINT drain.
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/engine.h"
#include "server/server.h"
#include "server/server_flags.h"
#include "server/shutdown_signal.h"

namespace bst {
namespace {

absl::Status Run(const ServerConfig& config) {
  LogConfig(config);
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server, Server::Start(config));
  BST_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                       Engine::Create(config.engine, &server->observer()));
  BST_RETURN_IF_ERROR(server->Serve(std::move(engine)));
  // Not earlier: while the model loads a signal may end the process at once, nothing is in flight.
  BST_ASSIGN_OR_RETURN(ShutdownSignal signal, ShutdownSignal::Install());
  std::fprintf(stderr, "%s\n", server->ReadyLine().c_str());
  Log(LogLevel::kInfo, "signal", {{"number", signal.Wait()}});
  server->Drain();
  return absl::OkStatus();
}

}  // namespace
}  // namespace bst

int main(int argc, char** argv) {
  const absl::StatusOr<bst::ServerConfig> config = bst::ConfigFromCommandLine(argc, argv);
  if (!config.ok()) {
    std::fprintf(stderr, "%s\n", std::string(config.status().message()).c_str());
    return 2;
  }
  bst::SetLogFormat(config->log_format);
  if (const absl::Status status = bst::Run(*config); !status.ok()) {
    bst::Log(bst::LogLevel::kError, "failed", {{"status", status.ToString()}});
    return 1;
  }
  return 0;
}
