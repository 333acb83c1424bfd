#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "server/engine_call.h"
#include "server/output_assembler.h"
#include "tests/server/running_server.h"

namespace bst {
namespace {

using testing::ElementsAre;

struct ScoreStream {
  std::optional<v1::Accepted> accepted;
  std::vector<uint64_t> first_positions;
  std::vector<uint32_t> token_ids;
  std::vector<float> logprobs;
  int tops = 0;
  std::optional<v1::ScoreFinished> finished;
  grpc::Status status;
};

class ScoreServiceTest : public testing::Test {
 protected:
  ScoreStream Score(const v1::ScoreRequest& request,
                    const std::function<void(PuppetEngine&)>& play = {}) {
    std::thread player;
    if (play) player = std::thread([this, &play] { play(server_.engine()); });
    grpc::ClientContext context;
    ScoreStream stream;
    const auto reader = server_.generation().Score(&context, request);
    v1::ScoreEvent event;
    while (reader->Read(&event)) {
      if (event.has_accepted()) stream.accepted = event.accepted();
      if (event.has_scored()) {
        const v1::Scored& run = event.scored();
        stream.first_positions.push_back(run.first_position());
        stream.token_ids.insert(stream.token_ids.end(), run.token_ids().begin(),
                                run.token_ids().end());
        stream.logprobs.insert(stream.logprobs.end(), run.logprobs().begin(), run.logprobs().end());
        stream.tops += run.top_size();
      }
      if (event.has_finished()) stream.finished = event.finished();
    }
    stream.status = reader->Finish();
    if (player.joinable()) player.join();
    return stream;
  }

  RunningServer server_;
};

TEST_F(ScoreServiceTest, RunsThenTheirMean) {
  v1::ScoreRequest request;
  request.set_text("abcd");
  const ScoreStream stream = Score(request, [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.Score(id, 1, {-1, -2});
    engine.Score(id, 3, {-0.5, -4.5});
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.accepted->first_token_id(), 256u);
  EXPECT_EQ(stream.accepted->prompt_tokens(), 5u);
  EXPECT_FALSE(stream.accepted->has_seed());
  EXPECT_EQ(stream.first_positions.front(), 1u);
  EXPECT_THAT(stream.token_ids, ElementsAre('a', 'b', 'c', 'd'));
  EXPECT_THAT(stream.logprobs, ElementsAre(-1, -2, -0.5, -4.5));
  EXPECT_EQ(stream.tops, 0);
  ASSERT_TRUE(stream.finished.has_value());
  EXPECT_EQ(stream.finished->reason(), v1::MAX_TOKENS);
  EXPECT_EQ(stream.finished->mean_nll(), 2.0);
  EXPECT_NEAR(stream.finished->perplexity(), std::exp(2.0), 1e-12);
  EXPECT_EQ(stream.finished->usage().prompt_tokens(), 5u);
  EXPECT_EQ(stream.finished->usage().generated_tokens(), 0u);
}

TEST_F(ScoreServiceTest, AMalformedRequestIsAnInvalidArgument) {
  v1::ScoreRequest request;
  request.set_text("\xff");
  const ScoreStream stream = Score(request);
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(stream.status.error_message(), testing::StartsWith("request is no bst.v1.ScoreReq"));
}

TEST_F(ScoreServiceTest, OneTokenHasNoMean) {
  v1::ScoreRequest request;
  request.mutable_token_ids()->add_ids(97);
  const ScoreStream stream = Score(request, [](PuppetEngine& engine) {
    engine.Finish(engine.WaitForRequest(0).id, FinishReason::kMaxTokens);
  });
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.accepted->first_token_id(), 97u);
  EXPECT_FALSE(stream.finished->has_mean_nll());
  EXPECT_FALSE(stream.finished->has_perplexity());
}

TEST_F(ScoreServiceTest, Alternatives) {
  v1::ScoreRequest request;
  request.set_text("a");
  request.set_top_logprobs(1);
  const ScoreStream stream = Score(request, [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.Score(id, 1, {-1}, {{{TokenId('z'), -0.5f}}});
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_EQ(stream.tops, 1);
}

TEST_F(ScoreServiceTest, ALongTextIsCutIntoMessages) {
  constexpr size_t kTokens = 10'000;
  v1::ScoreRequest request;
  request.mutable_token_ids()->mutable_ids()->Resize(kTokens, 97);
  const ScoreStream stream = Score(request, [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.Score(id, 1, std::vector<float>(kTokens - 1, -3));
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_EQ(stream.logprobs.size(), kTokens - 1);
  EXPECT_THAT(stream.first_positions, ElementsAre(1, 4097, 8193));
  EXPECT_EQ(stream.finished->mean_nll(), 3);
}

TEST_F(ScoreServiceTest, AReaderThatIsTooFarBehindEndsItsRequest) {
  constexpr size_t kRun = 4000;
  v1::ScoreRequest request;
  request.set_text(std::string(kRun, 'x'));
  request.set_top_logprobs(20);
  const std::vector<float> logprobs(kRun, -1);
  const std::vector<std::vector<TokenLogprob>> top(kRun, {20, {TokenId('a'), -1}});
  PuppetEngine& engine = server_.engine();
  engine.set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
  grpc::ClientContext context;
  const auto reader = server_.generation().Score(&context, request);
  const SequenceId id = engine.WaitForRequest(0).id;
  size_t runs = 0;
  for (; runs < 1000 && !engine.was_cancelled(id); ++runs) engine.Score(id, 1, logprobs, top);
  ASSERT_TRUE(engine.was_cancelled(id));
  EXPECT_GT(runs * kRun * (sizeof(TokenLogprob) + MemoryOf(top.front())), kMaxOutboxBytes);
  engine.Finish(id, FinishReason::kCancelled, absl::CancelledError("cancelled"));
  size_t tokens = 0;
  v1::ScoreEvent event;
  while (reader->Read(&event)) tokens += static_cast<size_t>(event.scored().token_ids_size());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  // What waited was dropped; what was under way, up to some messages of 4096 tokens, was not.
  EXPECT_GT(tokens, 0u);
  EXPECT_LT(tokens, runs * kRun / 4);
  EXPECT_EQ(event.finished().reason(), v1::ERROR);
}

TEST(ScoreWriteTimeout, ScoresThatNobodyReadsAreGoneSoonAfterTheirRequest) {
  constexpr size_t kRun = 4000;
  ServerConfig config = LoopbackConfig();
  config.write_timeout = absl::Milliseconds(200);
  RunningServer server(config);
  server.engine().set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
  v1::ScoreRequest request;
  request.set_request_id("scores");
  request.set_text(std::string(kRun, 'x'));
  request.set_top_logprobs(20);
  grpc::ClientContext context;
  const auto reader = server.generation().Score(&context, request);
  const SequenceId id = server.engine().WaitForRequest(0).id;
  const std::vector<std::vector<TokenLogprob>> top(kRun, {20, {TokenId('a'), -1}});
  for (int run = 0; run < 40; ++run) {  // less than kMaxOutboxBytes
    server.engine().Score(id, 1, std::vector<float>(kRun, -1), top);
  }
  server.engine().Finish(id, FinishReason::kMaxTokens);
  server.WaitForEnd("scores");
  EXPECT_TRUE(server.WaitForUnreadCalls(0));
  v1::ScoreEvent event;
  while (reader->Read(&event)) EXPECT_FALSE(event.has_finished());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(ScoreServiceTest, FailuresAndRefusals) {
  v1::ScoreRequest request;
  EXPECT_EQ(Score(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.set_text("abc");
  const ScoreStream stream = Score(request, [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.Score(id, 1, {-1});
    engine.Finish(id, FinishReason::kError, absl::InternalError("NaN"));
  });
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(stream.finished->reason(), v1::ERROR);
  EXPECT_FALSE(stream.finished->has_mean_nll());
}

TEST_F(ScoreServiceTest, CancellationFreesTheEngine) {
  v1::ScoreRequest request;
  request.set_text("abc");
  grpc::ClientContext context;
  const auto reader = server_.generation().Score(&context, request);
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  context.TryCancel();
  server_.engine().WaitForCancel(id);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

}  // namespace
}  // namespace bst
