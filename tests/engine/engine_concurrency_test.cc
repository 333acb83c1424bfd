// Many threads submit, cancel and look at the load while the engine runs, drains and shuts down.
// What is asked here is little: every accepted request ends once. Races are the thread sanitizer's
// to find.
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_fixture.h"

namespace bst {
namespace {

constexpr int kThreads = 6;
constexpr int kRequestsPerThread = 25;

GenerateRequest RandomRequest(std::mt19937& random) {
  GenerateRequest request =
      Greedy(LongPrompt(1 + static_cast<int>(random() % 60)), 1 + static_cast<int>(random() % 12));
  request.sampling.temperature = 1;
  request.sampling.seed = random();
  request.top_logprobs = static_cast<int>(random() % 2);
  request.prompt_progress = random() % 2 == 0;
  request.num_sequences = 1 + static_cast<int>(random() % 3);
  request.priority = static_cast<Priority>(random() % 3);
  request.prompt_open = random() % 3 == 0;
  return request;
}

class EngineConcurrencyTest : public testing::Test {
 protected:
  void SetUp() override {
    EngineOptions options = TinyOptions(model_);
    options.threads = 2;
    options.max_queue = 40;
    engine_ = MakeEngine(options);
  }
  // Submits requests and cancels some, until done or refused as unavailable. Returns those
  // accepted.
  std::vector<Stream> Client(uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Stream> streams;
    for (int i = 0; i < kRequestsPerThread; ++i) {
      if (seed == 1 && i == kRequestsPerThread / 4) under_way_.Notify();
      auto sink = std::make_shared<RecordingSink>();
      absl::StatusOr<SequenceId> id;
      if (random() % 4 == 0) {
        ScoreRequest request;
        request.tokens = LongPrompt(1 + static_cast<int>(random() % 60));
        id = engine_->Submit(std::move(request), sink);
      } else {
        const GenerateRequest request = RandomRequest(random);
        id = engine_->Submit(request, sink);
        if (id.ok() && request.prompt_open) Complete(*id, random);
        if (id.ok() && random() % 4 == 0)
          engine_->StopSequence(*id, static_cast<int>(random() % 3));
      }
      if (id.status().code() == absl::StatusCode::kUnavailable) break;
      if (!id.ok()) {
        EXPECT_EQ(id.status().code(), absl::StatusCode::kResourceExhausted) << id.status();
        if (!streams.empty()) streams.back().sink->WaitFinished();
        continue;
      }
      streams.push_back({*id, sink});
      switch (random() % 4) {
        case 0:
          engine_->Cancel(*id);
          break;
        case 1:
          sink->WaitEvents(2);
          engine_->Cancel(*id);
          break;
        case 2:
          sink->WaitFinished();
          break;
        default:
          break;
      }
    }
    return streams;
  }
  // Sends the rest of an open prompt. The engine may be shut down meanwhile.
  void Complete(SequenceId id, std::mt19937& random) {
    for (int part = 0; part < 3; ++part) {
      const absl::Status status =
          engine_->AppendPrompt(id, LongPrompt(static_cast<int>(random() % 30)),
                                part == 2 ? PromptEnd::kComplete : PromptEnd::kMoreFollows);
      EXPECT_TRUE(status.ok() || absl::IsNotFound(status)) << status;
    }
  }
  // Runs clients, and `meanwhile` beside them; then all that they were promised has happened.
  template <typename Meanwhile>
  void RunClients(Meanwhile meanwhile) {
    std::vector<std::vector<Stream>> accepted(kThreads);
    std::atomic<bool> done = false;
    std::vector<std::thread> clients;
    for (uint32_t i = 0; i < kThreads; ++i) {
      clients.emplace_back([this, i, &accepted] { accepted[i] = Client(i + 1); });
    }
    std::thread watcher([this, &done] {
      while (!done) {
        const EngineLoad load = engine_->load();
        EXPECT_LE(load.slots_used, load.slots_total);
        EXPECT_GE(load.waiting, 0);
        EXPECT_GE(load.queue_tokens, 0);
        EXPECT_TRUE(load.healthy);
        std::this_thread::yield();
      }
    });
    meanwhile();
    for (std::thread& client : clients) client.join();
    for (const auto& streams : accepted) {
      for (const Stream& stream : streams) {
        stream.sink->WaitFinished();
        EXPECT_EQ(stream.sink->violation(), "");
      }
    }
    done = true;
    watcher.join();
    EXPECT_TRUE(engine_->WaitIdle(absl::InfiniteFuture()));
    const EngineLoad load = engine_->load();
    EXPECT_EQ(load.slots_used, 0);
    EXPECT_EQ(load.running, 0);
    EXPECT_EQ(load.waiting, 0);
    EXPECT_EQ(load.queue_tokens, 0);
  }

  const TinyModel model_;
  std::unique_ptr<Engine> engine_;
  absl::Notification under_way_;  // the first client has sent a quarter of its requests
};

TEST_F(EngineConcurrencyTest, ManyClients) {
  RunClients([] {});
  EXPECT_GT(engine_->load().steps, 0);
}

TEST_F(EngineConcurrencyTest, DrainUnderLoad) {
  RunClients([this] {
    under_way_.WaitForNotification();
    engine_->Drain();
  });
}

TEST_F(EngineConcurrencyTest, ShutdownUnderLoadFromTwoThreads) {
  RunClients([this] {
    under_way_.WaitForNotification();
    std::thread other([this] { engine_->Shutdown(); });
    engine_->Shutdown();
    other.join();
  });
}

}  // namespace
}  // namespace bst
