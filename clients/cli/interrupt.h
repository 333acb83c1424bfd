// Interrupt: while it lives, Ctrl-C (and SIGTERM) cancels one call instead of ending the process,
// so that the server frees the slot at once and the output ends at a whole line. A second one ends
// it.
//
// Threads     One instance at a time. Has a thread of its own: a signal handler may not call gRPC.
// Tested by   tests/e2e/cli_test.py
#pragma once

#include <grpcpp/client_context.h>

#include <thread>

namespace bst::cli {

class Interrupt {
 public:
  explicit Interrupt(grpc::ClientContext& context);
  ~Interrupt();
  // The signal that one of this process has cancelled its call for; 0: none.
  static int received();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

 private:
  int read_fd_ = -1;
  std::thread thread_;
};

}  // namespace bst::cli
