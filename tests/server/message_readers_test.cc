#include "server/message_readers.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/support/wait_until.h"

namespace bst {
namespace {

constexpr size_t kLarge = MessageReaders::kSmallBytes + 1;

// Keeps a thread of `readers` until it is destroyed, which may be before they have noticed.
class LongReading {
 public:
  explicit LongReading(MessageReaders& readers, size_t bytes = kLarge) {
    readers.Read(bytes, [state = state_] {
      state->began.Notify();
      state->let_go.WaitForNotification();
    });
    state_->began.WaitForNotification();
  }
  ~LongReading() { state_->let_go.Notify(); }
  LongReading(const LongReading&) = delete;
  LongReading& operator=(const LongReading&) = delete;

 private:
  struct State {
    absl::Notification began, let_go;
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

TEST(MessageReaders, ReadsWhatIsSmallAtOnceAndHere) {
  MessageReaders readers(1, 1);
  const LongReading other(readers);
  std::thread::id reader;
  readers.Read(MessageReaders::kSmallBytes, [&] { reader = std::this_thread::get_id(); });
  EXPECT_EQ(reader, std::this_thread::get_id());
}

TEST(MessageReaders, ReadsWhatIsLargeElsewhereInOrder) {
  std::vector<int> order;
  {
    MessageReaders readers(1, 1);
    for (int i = 0; i < 100; ++i) readers.Read(kLarge, [&order, i] { order.push_back(i); });
  }  // reads what waits
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(MessageReaders, ReadsMoreOfWhatHasBegunFirst) {
  std::vector<int> order;
  {
    MessageReaders readers(1, 1);
    const LongReading other(readers);
    for (int i = 0; i < 2; ++i) readers.Read(kLarge, [&order, i] { order.push_back(2 + i); });
    for (int i = 0; i < 2; ++i) {
      readers.Read(
          kLarge, [&order, i] { order.push_back(i); }, MessageReaders::Order::kBegun);
    }
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
}

TEST(MessageReaders, OneLongReadingLeavesTheOtherThreads) {
  absl::Notification other;  // the readers, which use it, are gone before
  MessageReaders readers(2, 1);
  const LongReading first(readers);
  readers.Read(kLarge, [&] { other.Notify(); });
  other.WaitForNotification();
}

TEST(MessageReaders, LongMessagesLeaveOneThread) {
  constexpr size_t kLong = MessageReaders::kLongBytes + 1;
  absl::Notification second, other;
  {
    MessageReaders readers(2, 1);
    const LongReading first(readers, kLong);
    readers.Read(kLong, [&] { second.Notify(); });
    readers.Read(MessageReaders::kLongBytes, [&] { other.Notify(); });
    other.WaitForNotification();
    EXPECT_FALSE(second.HasBeenNotified());
  }
  EXPECT_TRUE(second.HasBeenNotified());
}

TEST(MessageReaders, CountsWhatWaitsAndWhatIsBeingRead) {
  MessageReaders readers(1, 2 * kLarge);
  EXPECT_TRUE(readers.MayTakeMore());
  auto first = std::make_unique<LongReading>(readers);
  EXPECT_TRUE(readers.MayTakeMore());
  auto kept = std::make_shared<int>(0);
  readers.Read(kLarge, [kept] {});
  EXPECT_FALSE(readers.MayTakeMore());
  const std::weak_ptr<int> weak = std::exchange(kept, nullptr);
  first.reset();
  EXPECT_TRUE(WaitUntil([&] { return readers.MayTakeMore(); }));
  EXPECT_TRUE(WaitUntil([&] { return weak.expired(); }));
}

TEST(MessageReaders, SaysWhatItsLoadIs) {
  std::vector<std::pair<int64_t, size_t>> loads;
  {
    MessageReaders readers(
        1, 1, [&](MessageReaders::Load load) { loads.emplace_back(load.messages, load.bytes); });
    const LongReading first(readers);
    readers.Read(kLarge + 5, [] {});
    readers.Read(MessageReaders::kSmallBytes, [] {});  // never waits
  }
  using Load = std::pair<int64_t, size_t>;
  EXPECT_EQ(loads, (std::vector<Load>{{1, kLarge}, {2, 2 * kLarge + 5}, {1, kLarge + 5}, {0, 0}}));
}

}  // namespace
}  // namespace bst
