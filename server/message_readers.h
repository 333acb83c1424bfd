// MessageReaders: the threads on which large messages are parsed, and their text is tokenised.
//
// gRPC has few threads, and they serve all connections: while each of them tokenises megabytes no
// probe is answered, no stream goes on and no cancellation is seen. So they read small messages
// alone. What waits here has been received: MayTakeMore bounds the bytes of it. One thread of
// several leaves long messages, seconds of tokenising each, to the others.
//
// Ownership   Keeps what was to be read until it has been.
// Threads     Thread-safe. One reading may run beside another. Of one order the long ones, and the
//             others, begin as they came.
// Tested by   tests/server/message_readers_test.cc, tests/server/generation_service_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace bst {

class MessageReaders {
 public:
  // kBegun: more of a request that has begun, which holds its slot meanwhile; before all others
  // that the thread takes.
  enum class Order { kNew, kBegun };

  // The largest message that is read where it arrives: some milliseconds of tokenising.
  static constexpr size_t kSmallBytes = size_t{16} << 10;

  // The largest that every thread takes: a tenth of a second.
  static constexpr size_t kLongBytes = size_t{256} << 10;

  // A quarter of the machine's hardware threads, from 2 to 8.
  static int DefaultThreads();

  // Messages that wait or are being read.
  struct Load {
    int64_t messages = 0;
    size_t bytes = 0;
  };

  // `limit_bytes`: of the load, where MayTakeMore turns false. `on_load` hears of each change of
  // it, one after the other, and must be quick.
  MessageReaders(
      int num_threads, size_t limit_bytes, std::function<void(Load)> on_load = [](Load) {});
  // Reads what waits, then joins.
  ~MessageReaders();

  // Calls `read`, which reads so many bytes: before it returns if they are few, else soon, on one
  // of the threads.
  void Read(size_t bytes, std::function<void()> read, Order order = Order::kNew)
      ABSL_LOCKS_EXCLUDED(mutex_);

  bool MayTakeMore() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Reading {
    size_t bytes;
    std::function<void()> read;
  };

  // Of one order.
  struct Waiting {
    std::deque<Reading> long_ones, others;
  };

  void Run(bool takes_long);
  // From where such a thread takes its next reading; nullptr: nothing waits for it.
  std::deque<Reading>* Next(bool takes_long) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t limit_bytes_;
  const std::function<void(Load)> on_load_;
  mutable absl::Mutex mutex_;
  Waiting begun_ ABSL_GUARDED_BY(mutex_), new_ ABSL_GUARDED_BY(mutex_);
  Load load_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // last: they use the others
};

}  // namespace bst
