#include "server/delivery_thread.h"

#include <utility>

namespace bst {

DeliveryThread::DeliveryThread() : thread_([this] { Run(); }) {}

DeliveryThread::~DeliveryThread() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

void DeliveryThread::Post(std::shared_ptr<Deliverable> call) {
  absl::MutexLock lock(&mutex_);
  posted_.push_back(std::move(call));
}

void DeliveryThread::Run() {
  std::vector<std::shared_ptr<Deliverable>> batch;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stop_ || !posted_.empty();
      };
      mutex_.Await(absl::Condition(&has_work));
      if (posted_.empty()) return;
      batch.swap(posted_);
    }
    for (const auto& call : batch) call->Advance();
    batch.clear();
  }
}

}  // namespace bst
