#include "server/delivery_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"

namespace bst {
namespace {

class Counting : public Deliverable {
 public:
  explicit Counting(std::atomic<int>& count) : count_(count) {}
  void Advance() override { ++count_; }

 private:
  std::atomic<int>& count_;
};

class Blocking : public Deliverable {
 public:
  void Advance() override {
    began.Notify();
    let_go.WaitForNotification();
  }
  absl::Notification began, let_go;
};

TEST(DeliveryThread, AdvancesWhatWasPostedElsewhere) {
  std::atomic<int> count = 0;
  {
    DeliveryThread delivery;
    std::vector<std::thread> posters;
    for (int i = 0; i < 4; ++i) {
      posters.emplace_back([&] {
        for (int k = 0; k < 1000; ++k) delivery.Post(std::make_shared<Counting>(count));
      });
    }
    for (std::thread& poster : posters) poster.join();
  }  // runs what is left
  EXPECT_EQ(count, 4000);
}

TEST(DeliveryThread, PostDoesNotWaitForAnAdvance) {
  std::atomic<int> count = 0;
  DeliveryThread delivery;
  const auto blocking = std::make_shared<Blocking>();
  delivery.Post(blocking);
  blocking->began.WaitForNotification();
  for (int i = 0; i < 100; ++i) delivery.Post(std::make_shared<Counting>(count));
  EXPECT_EQ(count, 0);
  blocking->let_go.Notify();
}

TEST(DeliveryThread, LetsGoOfACallAfterItsAdvance) {
  std::atomic<int> count = 0;
  std::weak_ptr<Counting> watch;
  {
    DeliveryThread delivery;
    auto call = std::make_shared<Counting>(count);
    watch = call;
    delivery.Post(std::move(call));
  }
  EXPECT_EQ(count, 1);
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace bst
