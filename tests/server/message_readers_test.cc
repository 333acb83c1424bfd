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

TEST(MessageReaders, ReadsWhatIsSmallAtOnceAndHere) {
  MessageReaders readers(1, 1);
  absl::Notification began, let_go;
  readers.Read(kLarge, [&] {
    began.Notify();
    let_go.WaitForNotification();
  });
  began.WaitForNotification();
  std::thread::id reader;
  readers.Read(MessageReaders::kSmallBytes, [&] { reader = std::this_thread::get_id(); });
  EXPECT_EQ(reader, std::this_thread::get_id());
  let_go.Notify();
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
    absl::Notification began, let_go;
    readers.Read(kLarge, [&] {
      began.Notify();
      let_go.WaitForNotification();
    });
    began.WaitForNotification();
    for (int i = 0; i < 2; ++i) readers.Read(kLarge, [&order, i] { order.push_back(2 + i); });
    for (int i = 0; i < 2; ++i) {
      readers.Read(
          kLarge, [&order, i] { order.push_back(i); }, MessageReaders::Order::kBegun);
    }
    let_go.Notify();
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
}

TEST(MessageReaders, OneLongReadingLeavesTheOtherThreads) {
  MessageReaders readers(2, 1);
  absl::Notification let_go, other;
  readers.Read(kLarge, [&] { let_go.WaitForNotification(); });
  readers.Read(kLarge, [&] { other.Notify(); });
  other.WaitForNotification();
  let_go.Notify();
}

TEST(MessageReaders, CountsWhatWaitsAndWhatIsBeingRead) {
  MessageReaders readers(1, 2 * kLarge);
  absl::Notification let_go;
  EXPECT_TRUE(readers.MayTakeMore());
  readers.Read(kLarge, [&] { let_go.WaitForNotification(); });
  EXPECT_TRUE(readers.MayTakeMore());
  auto kept = std::make_shared<int>(0);
  readers.Read(kLarge, [kept] {});
  EXPECT_FALSE(readers.MayTakeMore());
  const std::weak_ptr<int> weak = std::exchange(kept, nullptr);
  let_go.Notify();
  EXPECT_TRUE(WaitUntil([&] { return readers.MayTakeMore(); }));
  EXPECT_TRUE(WaitUntil([&] { return weak.expired(); }));
}

}  // namespace
}  // namespace bst
