// StatePool keeps its header's promises, over the reference backend.
#include "engine/state/state_pool.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/backend/reference/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/faulty_backend.h"

namespace bst {
namespace {

using ::testing::HasSubstr;

StateLayout LayoutOf(const std::vector<size_t>& slot_bytes) {
  StateLayout layout;
  for (const size_t bytes : slot_bytes) layout.Add({absl::StrCat("region", bytes), bytes});
  return layout;
}

class StatePoolTest : public testing::Test {
 protected:
  std::unique_ptr<StatePool> MakePool(const std::vector<size_t>& slot_bytes, int num_slots) {
    auto pool = StatePool::Create(backend_, LayoutOf(slot_bytes), num_slots);
    EXPECT_TRUE(pool.ok()) << pool.status();
    return *std::move(pool);
  }

  FaultyBackend backend_{MakeReferenceBackend()};
};

TEST_F(StatePoolTest, LeasesEverySlotOnceLowestFirst) {
  const auto pool = MakePool({8}, 3);
  EXPECT_EQ(pool->num_slots(), 3);
  EXPECT_EQ(pool->num_free(), 3);
  std::vector<SlotLease> leases;
  for (int i = 0; i < 3; ++i) {
    std::optional<SlotLease> lease = pool->Acquire();
    ASSERT_TRUE(lease.has_value());
    EXPECT_EQ(lease->id(), SlotId(i));
    leases.push_back(*std::move(lease));
  }
  EXPECT_EQ(pool->num_free(), 0);
  EXPECT_FALSE(pool->Acquire().has_value());
}

TEST_F(StatePoolTest, AReturnedSlotIsLeasedAgain) {
  const auto pool = MakePool({8}, 3);
  std::optional<SlotLease> first = pool->Acquire();
  std::optional<SlotLease> second = pool->Acquire();
  first.reset();
  EXPECT_EQ(pool->num_free(), 2);
  EXPECT_EQ(pool->Acquire()->id(), SlotId(0));
}

TEST_F(StatePoolTest, MovingALeaseMovesTheRight) {
  const auto pool = MakePool({8}, 2);
  SlotLease a = *pool->Acquire();
  SlotLease b = *pool->Acquire();
  EXPECT_EQ(pool->num_free(), 0);
  a = std::move(b);  // Slot 0 goes back, slot 1 changes hands.
  EXPECT_EQ(a.id(), SlotId(1));
  EXPECT_EQ(pool->num_free(), 1);
  {
    const SlotLease c = std::move(a);
    EXPECT_EQ(c.id(), SlotId(1));
    EXPECT_EQ(pool->num_free(), 1);
  }
  EXPECT_EQ(pool->num_free(), 2);
}

TEST_F(StatePoolTest, ANewLeaseSeesOnlyZeros) {
  const auto pool = MakePool({24, 100}, 2);
  for (int round = 0; round < 3; ++round) {
    const std::optional<SlotLease> lease = pool->Acquire();
    for (int region = 0; region < 2; ++region) {
      const PoolView view = pool->region(region);
      std::byte* bytes = view.slot<std::byte>(lease->id());
      for (size_t i = 0; i < view.slot_bytes; ++i)
        ASSERT_EQ(bytes[i], std::byte{0}) << region << " " << i;
      std::memset(bytes, 0xab, view.slot_bytes);
    }
  }
}

TEST_F(StatePoolTest, ACopyIsOfEveryRegionAndOfNoOtherSlot) {
  const auto pool = MakePool({24, 100, 64}, 4);
  std::vector<SlotLease> leases;
  for (int i = 0; i < 4; ++i) leases.push_back(*pool->Acquire());
  for (int region = 0; region < 3; ++region) {
    const PoolView view = pool->region(region);
    for (const SlotLease& lease : leases) {
      std::memset(view.slot<std::byte>(lease.id()), 10 * (1 + lease.id().value()) + region,
                  view.slot_bytes);
    }
  }
  pool->Copy(leases[2].id(), leases[1].id());
  for (int region = 0; region < 3; ++region) {
    const PoolView view = pool->region(region);
    for (const SlotLease& lease : leases) {
      const int from = lease.id() == leases[1].id() ? 2 : lease.id().value();
      const std::byte* bytes = view.slot<std::byte>(lease.id());
      for (size_t i = 0; i < view.slot_bytes; ++i) {
        ASSERT_EQ(bytes[i], static_cast<std::byte>(10 * (1 + from) + region))
            << region << " " << lease.id().value() << " " << i;
      }
    }
  }
}

TEST_F(StatePoolTest, SlotsStartOnCacheLines) {
  const auto pool = MakePool({1, 64, 65}, 2);
  const size_t expected[] = {64, 64, 128};
  for (int region = 0; region < 3; ++region) {
    const PoolView view = pool->region(region);
    EXPECT_EQ(view.slot_bytes, expected[region]);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.base) % 64, 0u);
  }
  EXPECT_EQ(LayoutOf({1, 64, 65}).bytes_per_slot(), 64u + 64u + 128u);
}

TEST_F(StatePoolTest, ASequenceMayNeedNoState) {
  const auto pool = MakePool({}, 1);
  const std::optional<SlotLease> lease = pool->Acquire();
  EXPECT_EQ(lease->id(), SlotId(0));
}

TEST_F(StatePoolTest, CreateNamesTheRegionThatDoesNotFit) {
  for (int n = 1; n <= 3; ++n) {
    backend_.FailAllocation(n);
    const auto pool = StatePool::Create(backend_, LayoutOf({10, 20, 30}), 4);
    ASSERT_FALSE(pool.ok());
    EXPECT_EQ(pool.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(pool.status().message()), HasSubstr(absl::StrCat("region", 10 * n)));
  }
  backend_.FailAllocation(4);
  EXPECT_TRUE(StatePool::Create(backend_, LayoutOf({10, 20, 30}), 4).ok());
}

TEST_F(StatePoolTest, WhatDoesNotFitInAllIsRefusedBeforeAnyIsTouched) {
  // Two cache lines a slot, one of each region.
  backend_.SetAvailableBytes(10 * 128 + 127);
  backend_.FailAllocation(1);  // which is never reached
  const auto pool = StatePool::Create(backend_, LayoutOf({10, 64}), 11);
  ASSERT_FALSE(pool.ok());
  EXPECT_EQ(pool.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.status().message(),
            "state: 11 slots of 128 bytes, but 1407 bytes of memory are available: enough for 10");
  backend_.FailAllocation(3);
  EXPECT_TRUE(StatePool::Create(backend_, LayoutOf({10, 64}), 10).ok());
}

TEST_F(StatePoolTest, SizesThatOverflowAreAnError) {
  const size_t huge = std::numeric_limits<size_t>::max();
  for (const std::vector<size_t>& bytes : std::vector<std::vector<size_t>>{
           {huge}, {huge - 64}, {huge / 2}, {huge / 4, huge / 4}, {huge - 128, 256}}) {
    const auto pool = StatePool::Create(backend_, LayoutOf(bytes), 3);
    ASSERT_FALSE(pool.ok());
    EXPECT_EQ(pool.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(pool.status().message()), HasSubstr("exceed the address space"));
  }
}

TEST_F(StatePoolTest, DestroyingThePoolBeforeALeaseIsABug) {
  EXPECT_DEATH(
      {
        auto pool = MakePool({8}, 2);
        std::optional<SlotLease> lease = pool->Acquire();
        pool.reset();
      },
      "1 slots are still leased");
}

TEST_F(StatePoolTest, AMovedLeaseHasNoId) {
  const auto pool = MakePool({8}, 2);
  SlotLease a = *pool->Acquire();
  const SlotLease b = std::move(a);
  EXPECT_DEATH((void)a.id(), "moved from");
}

// Random leases and returns against a set of free ids.
TEST_F(StatePoolTest, RandomCallsMatchASetOfFreeSlots) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    const int num_slots = 1 + static_cast<int>(random() % 9);
    const auto pool = MakePool({16}, num_slots);
    std::set<SlotId> free;
    for (int id = 0; id < num_slots; ++id) free.insert(SlotId(id));
    std::vector<SlotLease> leases;
    std::vector<std::string> calls;
    for (int call = 0; call < 200; ++call) {
      if (leases.empty() || random() % 2 == 0) {
        calls.push_back("acquire");
        std::optional<SlotLease> lease = pool->Acquire();
        ASSERT_EQ(lease.has_value(), !free.empty())
            << "seed " << seed << ": " << absl::StrJoin(calls, ", ");
        if (!lease.has_value()) continue;
        ASSERT_EQ(lease->id(), *free.begin())
            << "seed " << seed << ": " << absl::StrJoin(calls, ", ");
        auto* mark = pool->region(0).slot<uint64_t>(lease->id());
        ASSERT_EQ(*mark, 0u) << "seed " << seed << ": " << absl::StrJoin(calls, ", ");
        *mark = 1 + static_cast<uint64_t>(lease->id().value());
        free.erase(free.begin());
        leases.push_back(*std::move(lease));
      } else {
        const size_t i = random() % leases.size();
        calls.push_back(absl::StrCat("return ", leases[i].id().value()));
        free.insert(leases[i].id());
        std::swap(leases[i], leases.back());
        leases.pop_back();
      }
      ASSERT_EQ(pool->num_free(), static_cast<int>(free.size()))
          << "seed " << seed << ": " << absl::StrJoin(calls, ", ");
      for (const SlotLease& lease : leases) {  // Nobody wrote into a slot that is held.
        ASSERT_EQ(*pool->region(0).slot<uint64_t>(lease.id()),
                  1 + static_cast<uint64_t>(lease.id().value()));
      }
    }
  }
}

}  // namespace
}  // namespace bst
