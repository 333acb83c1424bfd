// Session: a server, what it is asked, and the files of the report; runs loads against it.
//
// Threads     Thread-compatible.
// Tested by   tests/e2e/stress_test.py
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <optional>

#include "clients/stress/load_run.h"
#include "clients/stress/options.h"
#include "clients/stress/run_result.h"
#include "clients/stress/traffic.h"

namespace bst::stress {

class Session {
 public:
  // Connects, asks the server for its limits, and makes the traffic fit them. Throws UsageError,
  // ServerError.
  explicit Session(const Options& options);

  const Subject& subject() const { return subject_; }

  // `on_record` gets every request when it ended. Throws UsageError when the metrics cannot be
  // read.
  RunResult Run(const LoadShape& load, bool keep_output = false,
                std::function<void(RequestRecord&)> on_record = {});

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void WriteRequest(const RequestRecord& record);

  const Options options_;
  Stubs stubs_;
  Subject subject_;
  std::optional<Traffic> traffic_;
  std::unique_ptr<std::FILE, CloseFile> requests_file_;
};

// From now on SIGINT and SIGTERM end the run at hand, which is then reported; a second one ends the
// process.
void CatchInterrupts();
bool IsInterrupted();

}  // namespace bst::stress
