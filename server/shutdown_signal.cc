#include "server/shutdown_signal.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>

#include "absl/strings/str_cat.h"

namespace bst {
namespace {

// The globals of the server: a signal handler can be handed nothing else.
volatile std::sig_atomic_t write_fd = -1;
std::atomic_flag has_come;  // lock-free: two signals may come on two threads

void OnSignal(int signal_number) {
  // Not the default action: the kernel keeps that from the first process of a container.
  if (has_come.test_and_set()) _exit(128 + signal_number);
  const int saved_errno = errno;
  const auto byte = static_cast<unsigned char>(signal_number);
  [[maybe_unused]] const ssize_t written = write(write_fd, &byte, 1);
  errno = saved_errno;
}

}  // namespace

absl::StatusOr<ShutdownSignal> ShutdownSignal::Install() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe2");
  write_fd = fds[1];
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  // Not SA_RESTART: Wait() sees to that, and under ThreadSanitizer a handler runs only after the
  // call that the signal has interrupted.
  action.sa_flags = 0;
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGTERM, &action, nullptr) != 0 || sigaction(SIGINT, &action, nullptr) != 0) {
    return absl::ErrnoToStatus(errno, "sigaction");
  }
  return ShutdownSignal(fds[0]);
}

int ShutdownSignal::Wait() {
  unsigned char byte = 0;
  while (read(read_fd_, &byte, 1) < 0 && errno == EINTR) {
  }
  return byte;
}

}  // namespace bst
