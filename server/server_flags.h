// The command line of bst-server: absl flags -> ServerConfig. Linked into the binary alone, so that
// the server library has no global flags.
//
// Threads     The main thread, before any other.
// Tested by   tests/e2e/server_process_test.py
#pragma once

#include "absl/status/statusor.h"
#include "server/server_config.h"

namespace bst {

// Parses the command line; ends the process for --help, --version and unknown flags, as absl flags
// do. Errors: kInvalidArgument with one line per wrong option, all of them.
absl::StatusOr<ServerConfig> ConfigFromCommandLine(int argc, char** argv);

}  // namespace bst
