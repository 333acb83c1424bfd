// The commands of bst. Each adds itself to the command line and leaves in `run` what main calls if
// it was chosen.
//
// Threads     The main thread.
// Tested by   tests/e2e/cli_test.py
#pragma once

#include <functional>

#include "clients/cli/connection.h"

namespace bst::cli {

// Returns the exit code; throws UsageError.
using Run = std::function<ExitCode()>;

void AddGenerate(CLI::App& app, Run& run);
void AddScore(CLI::App& app, Run& run);
void AddTokenize(CLI::App& app, Run& run);
void AddInfo(CLI::App& app, Run& run);
void AddHealth(CLI::App& app, Run& run);

}  // namespace bst::cli
