#include "server/message_readers.h"

#include <algorithm>
#include <utility>

namespace bst {

int MessageReaders::DefaultThreads() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency() / 4, 2U, 8U));
}

MessageReaders::MessageReaders(int num_threads, size_t limit_bytes,
                               std::function<void(Load)> on_load)
    : limit_bytes_(limit_bytes), on_load_(std::move(on_load)) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Run(); });
}

MessageReaders::~MessageReaders() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void MessageReaders::Read(size_t bytes, std::function<void()> read, Order order) {
  if (bytes <= kSmallBytes) return read();
  absl::MutexLock lock(&mutex_);
  load_ = {load_.messages + 1, load_.bytes + bytes};
  on_load_(load_);
  (order == Order::kBegun ? begun_ : new_).push_back({bytes, std::move(read)});
}

bool MessageReaders::MayTakeMore() const {
  absl::MutexLock lock(&mutex_);
  return load_.bytes < limit_bytes_;
}

void MessageReaders::Run() {
  while (true) {
    Reading next;
    {
      absl::MutexLock lock(&mutex_);
      const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stop_ || !new_.empty() || !begun_.empty();
      };
      mutex_.Await(absl::Condition(&has_work));
      std::deque<Reading>& waiting = begun_.empty() ? new_ : begun_;
      if (waiting.empty()) return;
      next = std::move(waiting.front());
      waiting.pop_front();
    }
    next.read();
    next.read = nullptr;  // and what it kept, before the bytes count as gone
    absl::MutexLock lock(&mutex_);
    load_ = {load_.messages - 1, load_.bytes - next.bytes};
    on_load_(load_);
  }
}

}  // namespace bst
