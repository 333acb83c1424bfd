// ShutdownSignal: SIGTERM and SIGINT as something to wait for.
//
// The first signal is only noted, in a pipe; a second one, of either kind, ends the process with
// 128 + its number, for operators who do not want to wait for a drain.
//
// Threads     One instance in a process; Wait by one thread.
// Tested by   tests/e2e/server_process_test.py
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bst {

class ShutdownSignal {
 public:
  // Errors: kInternal when the system has no pipe to give.
  static absl::StatusOr<ShutdownSignal> Install();

  // Returns the signal's number once it has come.
  int Wait();

 private:
  explicit ShutdownSignal(int read_fd) : read_fd_(read_fd) {}

  int read_fd_;
};

}  // namespace bst
