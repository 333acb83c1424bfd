#include "clients/cli/interrupt.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <system_error>

namespace bst::cli {
namespace {

// A signal handler can be handed nothing else.
volatile std::sig_atomic_t write_fd = -1;
volatile std::sig_atomic_t received_signal = 0;

void Send(char byte) { [[maybe_unused]] const ssize_t written = write(write_fd, &byte, 1); }

void OnSignal(int signal) {
  const int saved_errno = errno;
  received_signal = signal;
  Send('c');
  errno = saved_errno;
}

void SetHandler(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

Interrupt::Interrupt(grpc::ClientContext& context) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe2");
  read_fd_ = fds[0];
  write_fd = fds[1];
  thread_ = std::thread([this, &context] {
    char byte = 0;
    while (read(read_fd_, &byte, 1) < 0 && errno == EINTR) {
    }
    if (byte == 'c') context.TryCancel();
  });
  SetHandler(OnSignal);
}

Interrupt::~Interrupt() {
  SetHandler(SIG_DFL);
  Send('q');
  thread_.join();
  close(read_fd_);
  close(write_fd);
}

int Interrupt::received() { return received_signal; }

}  // namespace bst::cli
