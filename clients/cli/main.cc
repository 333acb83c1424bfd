// bst: the command line of the inference server.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "clients/cli/commands.h"
#include "clients/cli/interrupt.h"

int main(int argc, char** argv) {
  using namespace bst::cli;
  CLI::App app("Talks to a bst-server: generate and score text with a Block-State Transformer.",
               "bst");
  app.footer(
      "Examples:\n"
      "  bst generate --prompt 'Once upon a time' --max-new-tokens 100\n"
      "  bst score --prompt-file book.txt\n"
      "  bst info --server localhost:50051\n"
      "  bst COMMAND --help\n"
      "Exit code: 0 success, 1 the request failed or its output could not be written (stderr says "
      "why), 2 wrong usage, 130 and 143 cancelled by Ctrl-C and by SIGTERM.");
  app.set_version_flag("--version", "bst " BST_VERSION);
  app.require_subcommand(1);
  Run run;
  AddGenerate(app, run);
  AddScore(app, run);
  AddTokenize(app, run);
  AddInfo(app, run);
  AddHealth(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kSuccess : kWrongUsage;
  }
  try {
    const ExitCode code = run();
    // Text that did not arrive, on a full disk, is no success.
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      std::fprintf(stderr, "bst: the output could not be written\n");
      return kRequestFailed;
    }
    constexpr int kSignalBase = 128;  // as shells report a process that a signal ended
    const int signal = Interrupt::received();
    return code == kRequestFailed && signal != 0 ? kSignalBase + signal : code;
  } catch (const std::exception& error) {  // UsageError, or the system out of pipes or threads
    std::fprintf(stderr, "bst: %s\n", error.what());
    return kWrongUsage;
  }
}
