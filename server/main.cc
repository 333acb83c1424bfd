// bst-server: flags -> ServerConfig -> Server -> Engine; SIGTERM and SIGINT drain.
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/engine.h"
#include "server/library_log.h"
#include "server/server.h"
#include "server/server_flags.h"
#include "server/shutdown_signal.h"

namespace bst {
namespace {

// Abseil prints its help and exits with 1, the code of a failure. Beside other flags, which may be
// wrong, it stays so.
void SucceedIfHelpIsAskedFor(int argc, char** argv) {
  if (argc != 2) return;
  const std::string_view argument = argv[1];
  if (argument != "--help" && argument != "-help") return;
  std::atexit([] { _exit(std::fflush(stdout) == 0 ? 0 : 1); });
}

void EndAtOnce(int /*signal*/) { _exit(0); }

// Each connection takes a file descriptor. gRPC stops listening for good when it finds none, so it
// may have as many as the system allows.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::Status Run(const ServerConfig& config) {
  // While the model loads nothing is in flight, so a signal ends the process at once. By a handler:
  // without one the first process of a container ignores it.
  std::signal(SIGTERM, EndAtOnce);
  std::signal(SIGINT, EndAtOnce);
  LogConfig(config);
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server, Server::Start(config));
  BST_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                       Engine::Create(config.engine, &server->observer()));
  BST_RETURN_IF_ERROR(server->Serve(std::move(engine)));
  BST_ASSIGN_OR_RETURN(ShutdownSignal signal, ShutdownSignal::Install());
  std::fprintf(stderr, "%s\n", server->ReadyLine().c_str());
  Log(LogLevel::kInfo, "signal", {{"number", signal.Wait()}});
  server->Drain();
  return absl::OkStatus();
}

}  // namespace
}  // namespace bst

int main(int argc, char** argv) {
  bst::SucceedIfHelpIsAskedFor(argc, argv);
  const absl::StatusOr<bst::ServerConfig> config = bst::ConfigFromCommandLine(argc, argv);
  if (!config.ok()) {
    std::fprintf(stderr, "%s\n", std::string(config.status().message()).c_str());
    return 2;
  }
  bst::SetLogFormat(config->log_format);
  bst::RouteLibraryLogs();
  bst::RaiseDescriptorLimit();
  if (const absl::Status status = bst::Run(*config); !status.ok()) {
    bst::Log(bst::LogLevel::kError, "failed", {{"status", status.ToString()}});
    return 1;
  }
  return 0;
}
