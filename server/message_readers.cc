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
  for (int i = 0; i < num_threads; ++i) {
    const bool takes_long = i > 0 || num_threads == 1;
    threads_.emplace_back([this, takes_long] { Run(takes_long); });
  }
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
  Waiting& waiting = order == Order::kBegun ? begun_ : new_;
  (bytes > kLongBytes ? waiting.long_ones : waiting.others).push_back({bytes, std::move(read)});
}

bool MessageReaders::MayTakeMore() const {
  absl::MutexLock lock(&mutex_);
  return load_.bytes < limit_bytes_;
}

std::deque<MessageReaders::Reading>* MessageReaders::Next(bool takes_long) {
  for (Waiting* const waiting : {&begun_, &new_}) {
    // Long ones first: the others have a thread that takes nothing else.
    if (takes_long && !waiting->long_ones.empty()) return &waiting->long_ones;
    if (!waiting->others.empty()) return &waiting->others;
  }
  return nullptr;
}

void MessageReaders::Run(bool takes_long) {
  while (true) {
    Reading next;
    {
      absl::MutexLock lock(&mutex_);
      const auto has_work = [this, takes_long]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stop_ || Next(takes_long) != nullptr;
      };
      mutex_.Await(absl::Condition(&has_work));
      std::deque<Reading>* const waiting = Next(takes_long);
      if (waiting == nullptr) return;
      next = std::move(waiting->front());
      waiting->pop_front();
    }
    next.read();
    next.read = nullptr;  // and what it kept, before the bytes count as gone
    absl::MutexLock lock(&mutex_);
    load_ = {load_.messages - 1, load_.bytes - next.bytes};
    on_load_(load_);
  }
}

}  // namespace bst
