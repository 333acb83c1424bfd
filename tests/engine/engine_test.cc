// The engine's answers: what is generated and scored depends on the request alone, and is what the
// model says.
#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cpu/cpu_backend.h"
#include "engine/backend/reference/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/engine_fixture.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/model_runner.h"

namespace bst {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class EngineTest : public testing::Test {
 protected:
  EngineOptions Options() const { return TinyOptions(model_); }

  const TinyModel model_;
};

TEST_F(EngineTest, GeneratesAsManyTokensAsAskedFor) {
  const auto engine = MakeEngine(Options());
  const Stream stream = Start(*engine, Greedy(Tokens("To be, or not to be"), 12));
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(stream.sink->violation(), "");
  EXPECT_EQ(finished.reason, FinishReason::kMaxTokens);
  EXPECT_TRUE(finished.status.ok()) << finished.status;
  EXPECT_EQ(finished.prompt_tokens, 19);
  EXPECT_EQ(finished.generated_tokens, 12);
  EXPECT_THAT(TokensOf(stream), SizeIs(12));
  EXPECT_THAT(LogprobsOf(stream), Each(testing::Lt(0.0f)));
  const std::vector<AcceptedEvent> accepted = stream.sink->Events<AcceptedEvent>();
  ASSERT_THAT(accepted, SizeIs(1));
  EXPECT_EQ(accepted[0].prompt_tokens, 19);
  EXPECT_EQ(accepted[0].queue_position, 0);
  EXPECT_THAT(stream.sink->Events<PrefillProgressEvent>(), IsEmpty());  // Not asked for.
}

// The engine against the bare model, fed token by token: no scheduler, no sampler.
TEST_F(EngineTest, GreedyTokensAreTheModelsLikeliest) {
  const std::vector<TokenId> prompt = LongPrompt(45);
  const auto engine = MakeEngine(Options());
  GenerateRequest request = Greedy(prompt, 20);
  request.top_logprobs = 2;
  const Stream stream = Start(*engine, request);
  ASSERT_TRUE(stream.sink->WaitFinished().status.ok());

  const auto backend = *MakeCpuBackend();
  const auto runner = *ModelRunner::Create(model_.directory(), *backend, DType::kF32, 1);
  std::vector<TokenId> document = prompt;
  const std::vector<TokenId> generated = TokensOf(stream);
  document.insert(document.end(), generated.begin(), generated.end());
  const std::vector<float> logits = runner->Logits(document, std::vector<int>(document.size(), 1));
  const std::vector<GeneratedEvent> events = stream.sink->Events<GeneratedEvent>();
  ASSERT_THAT(events, SizeIs(20));
  for (size_t i = 0; i < events.size(); ++i) {
    const auto row =
        logits.begin() + static_cast<ptrdiff_t>(prompt.size() - 1 + i) * TinyModel::kVocabSize;
    const auto likeliest = std::max_element(row, row + TinyModel::kVocabSize);
    EXPECT_EQ(events[i].token.token, TokenId(static_cast<int32_t>(likeliest - row))) << i;
    double sum = 0;
    for (auto logit = row; logit < row + TinyModel::kVocabSize; ++logit)
      sum += std::exp(double{*logit} - *likeliest);
    EXPECT_NEAR(events[i].token.logprob, -std::log(sum), 1e-5) << i;
    ASSERT_THAT(events[i].top, SizeIs(2));
    EXPECT_EQ(events[i].top[0].token, events[i].token.token);
    EXPECT_EQ(events[i].top[0].logprob, events[i].token.logprob);
    EXPECT_LT(events[i].top[1].logprob, events[i].top[0].logprob);
  }
}

// ---- The answer does not depend on load, arrival, slots or chunks ----

// Requests of many kinds; every sampling parameter is used by one of them.
std::vector<GenerateRequest> MixedRequests() {
  std::vector<GenerateRequest> requests;
  for (const int length : {1, 7, 8, 9, 16, 31, 64, 100, 150}) {
    GenerateRequest request;
    request.prompt = LongPrompt(length);
    request.sampling.seed = static_cast<uint64_t>(length);
    request.stopping.max_new_tokens = 5 + length % 17;
    request.top_logprobs = length % 3;
    requests.push_back(request);
  }
  UseEverySamplingParameter(requests);
  return requests;
}

class EngineLawTest : public EngineTest {
 protected:
  // Each request alone in an engine of one slot.
  std::vector<std::string> Alone(EngineOptions options) {
    options.max_sequences = 1;
    const auto engine = MakeEngine(options);
    std::vector<std::string> transcripts;
    for (const GenerateRequest& request : MixedRequests())
      transcripts.push_back(Transcript(Start(*engine, request)));
    return transcripts;
  }
  // All of them at once.
  std::vector<std::string> Together(const EngineOptions& options) {
    const auto engine = MakeEngine(options);
    std::vector<Stream> streams;
    for (const GenerateRequest& request : MixedRequests())
      streams.push_back(Start(*engine, request));
    std::vector<std::string> transcripts;
    for (const Stream& stream : streams) transcripts.push_back(Transcript(stream));
    EXPECT_EQ(engine->load().slots_used, 0);
    return transcripts;
  }
};

TEST_F(EngineLawTest, NeighboursSlotsAndChunksDoNotShow) {
  const std::vector<std::string> alone = Alone(Options());
  for (const int slots : {1, 2, 5, 16}) {
    for (const int chunk_tokens : {8, 16, 512}) {
      EngineOptions options = Options();
      options.max_sequences = slots;
      options.chunk_tokens = chunk_tokens;
      options.max_step_tokens = chunk_tokens == 512 ? 512 : 8 + slots - 1;
      EXPECT_EQ(Together(options), alone) << slots << " slots, chunks of " << chunk_tokens;
    }
  }
}

TEST_F(EngineLawTest, NorDoTheyOnOtherBackendsAndTypes) {
  for (const char* backend : {"cpu", "reference"}) {
    for (const char* type : {"f32", "bf16"}) {
      EngineOptions options = Options();
      options.backend = backend;
      options.weights = type;
      const std::vector<std::string> alone = Alone(options);
      options.chunk_tokens = 8;
      options.max_step_tokens = 19;
      EXPECT_EQ(Together(options), alone) << backend << " " << type;
    }
  }
}

TEST_F(EngineLawTest, NorDoesTheMomentOfArrival) {
  const std::vector<std::string> alone = Alone(Options());
  const auto engine = MakeEngine(Options());
  std::vector<Stream> streams;
  for (const GenerateRequest& request : MixedRequests()) {
    streams.push_back(Start(*engine, request));
    // The next one comes when this one has generated a few tokens, others are on their way, and
    // slots are used for the second time.
    streams.back().sink->WaitEvents(4);
  }
  std::vector<std::string> transcripts;
  for (const Stream& stream : streams) transcripts.push_back(Transcript(stream));
  EXPECT_EQ(transcripts, alone);
}

TEST_F(EngineLawTest, ACancelledNeighbourLeavesNoTrace) {
  const std::vector<std::string> alone = Alone(Options());
  const auto engine = MakeEngine(Options());
  std::vector<Stream> streams, cancelled;
  for (const GenerateRequest& request : MixedRequests()) {
    cancelled.push_back(Start(*engine, request));
    streams.push_back(Start(*engine, request));
    engine->Cancel(cancelled.back().id);
  }
  std::vector<std::string> transcripts;
  for (const Stream& stream : streams) transcripts.push_back(Transcript(stream));
  EXPECT_EQ(transcripts, alone);
}

// ---- Several sequences of one prompt ----

std::vector<GenerateRequest> RequestsForThree() {
  std::vector<GenerateRequest> requests = MixedRequests();
  for (GenerateRequest& request : requests) request.num_sequences = 3;
  requests[2].stopping.stop_token_ids = {TokenId(3), TokenId(65), TokenId(200)};
  return requests;
}

TEST_F(EngineLawTest, SequencesOfOnePromptAreWhatTheyWouldBeAlone) {
  // Each sequence alone: the other two are stopped before anything runs.
  std::vector<std::string> alone;
  {
    EngineOptions options = Options();
    options.max_sequences = 3;
    const auto engine = MakeEngine(options);
    for (const GenerateRequest& request : RequestsForThree()) {
      for (int index = 0; index < 3; ++index) {
        GenerateRequest other = Greedy(Tokens("holds all slots"), 1'000'000);
        other.stopping.ignore_eos = true;
        other.num_sequences = 3;
        const Stream before = Start(*engine, other);
        before.sink->WaitEvents(2);
        const Stream stream = Start(*engine, request);
        for (int i = 0; i < 3; ++i) {
          if (i != index) engine->StopSequence(stream.id, i);
        }
        engine->Cancel(before.id);
        alone.push_back(Transcript(stream, index));
        EXPECT_THAT(TokensOf(stream), SizeIs(TokensOf(stream, index).size()));
      }
    }
  }
  for (const int slots : {3, 5, 16}) {
    for (const int chunk_tokens : {8, 32}) {
      EngineOptions options = Options();
      options.max_sequences = slots;
      options.chunk_tokens = chunk_tokens;
      options.max_step_tokens = chunk_tokens + slots - 1;
      const auto engine = MakeEngine(options);
      std::vector<Stream> streams;
      for (const GenerateRequest& request : RequestsForThree())
        streams.push_back(Start(*engine, request));
      std::vector<std::string> together;
      for (const Stream& stream : streams) {
        for (int index = 0; index < 3; ++index) together.push_back(Transcript(stream, index));
      }
      EXPECT_EQ(together, alone) << slots << " slots, chunks of " << chunk_tokens;
      EXPECT_EQ(engine->load().slots_used, 0);
    }
  }
}

TEST_F(EngineLawTest, TheFirstSequenceIsTheOnlyOneOfARequestForOne) {
  const auto engine = MakeEngine(Options());
  std::vector<GenerateRequest> requests = RequestsForThree();
  for (GenerateRequest& request : requests) {
    const Stream three = Start(*engine, request);
    request.num_sequences = 1;
    const Stream one = Start(*engine, request);
    EXPECT_EQ(Transcript(three, 0), Transcript(one, 0));
    EXPECT_EQ(three.sink->WaitFinished().reason, one.sink->WaitFinished().reason);
    EXPECT_EQ(three.sink->WaitFinished().stop_token, one.sink->WaitFinished().stop_token);
  }
}

TEST_F(EngineTest, SequencesDifferUnlessTheyAreGreedy) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = Greedy(LongPrompt(20), 12);
  request.num_sequences = 4;
  request.stopping.ignore_eos = true;
  const Stream greedy = Start(*engine, request);
  request.sampling.temperature = 1;
  const Stream drawn = Start(*engine, request);
  EXPECT_EQ(greedy.sink->WaitFinished().generated_tokens, 48);
  EXPECT_EQ(drawn.sink->WaitFinished().generated_tokens, 48);
  for (int index = 1; index < 4; ++index) {
    EXPECT_EQ(TokensOf(greedy, index), TokensOf(greedy, 0));
    EXPECT_NE(TokensOf(drawn, index), TokensOf(drawn, index - 1));
  }
  EXPECT_THAT(drawn.sink->Events<SequenceEndedEvent>(), SizeIs(4));
}

// ---- A prompt that comes in parts ----

// Submits the request with `first` tokens of its prompt, then the rest in parts of `part` tokens.
Stream Upload(Engine& engine, GenerateRequest request, size_t first, size_t part) {
  const std::vector<TokenId> prompt = request.prompt;
  request.prompt_open = true;
  request.prompt.resize(std::min(first, prompt.size()));
  const auto iterator = [&](size_t i) { return prompt.begin() + static_cast<ptrdiff_t>(i); };
  const Stream stream = Start(engine, std::move(request));
  for (size_t begin = std::min(first, prompt.size()); begin < prompt.size(); begin += part) {
    const size_t end = std::min(begin + part, prompt.size());
    const absl::Status status =
        engine.AppendPrompt(stream.id, {iterator(begin), iterator(end)}, PromptEnd::kMoreFollows);
    EXPECT_TRUE(status.ok()) << status;
  }
  EXPECT_TRUE(engine.AppendPrompt(stream.id, {}, PromptEnd::kComplete).ok());
  return stream;
}

TEST_F(EngineLawTest, APromptInPartsIsThePrompt) {
  const std::vector<std::string> alone = Alone(Options());
  for (const size_t first : {0, 5, 8, 64}) {
    for (const size_t part : {1, 8, 29}) {
      const auto engine = MakeEngine(Options());
      std::vector<Stream> streams;
      for (const GenerateRequest& request : MixedRequests())
        streams.push_back(Upload(*engine, request, first, part));
      std::vector<std::string> transcripts;
      for (const Stream& stream : streams) transcripts.push_back(Transcript(stream));
      EXPECT_EQ(transcripts, alone) << "first " << first << ", parts of " << part;
    }
  }
}

TEST_F(EngineTest, PrefillRunsWhileThePromptStillComes) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = Greedy({}, 3);
  request.prompt_open = true;
  const Stream stream = Start(*engine, request);
  const std::vector<TokenId> prompt = LongPrompt(40);
  // Each part is waited for: two blocks are read when the seventeenth token is there.
  const auto part = [&](int begin, int end) {
    return std::vector<TokenId>(prompt.begin() + begin, prompt.begin() + end);
  };
  ASSERT_TRUE(engine->AppendPrompt(stream.id, part(0, 17), PromptEnd::kMoreFollows).ok());
  stream.sink->WaitEvents(2);
  ASSERT_TRUE(engine->AppendPrompt(stream.id, part(17, 33), PromptEnd::kMoreFollows).ok());
  stream.sink->WaitEvents(3);
  ASSERT_TRUE(engine->AppendPrompt(stream.id, part(33, 40), PromptEnd::kComplete).ok());
  EXPECT_EQ(stream.sink->WaitFinished().prompt_tokens, 40);
  std::vector<std::pair<int64_t, int64_t>> progress;
  for (const PrefillProgressEvent& event : stream.sink->Events<PrefillProgressEvent>())
    progress.push_back({event.processed_tokens, event.total_tokens});
  EXPECT_THAT(progress, ElementsAre(std::pair(16, 17), std::pair(32, 33), std::pair(40, 40)));
  EXPECT_EQ(stream.sink->Events<AcceptedEvent>().at(0).prompt_tokens, 0);
}

TEST_F(EngineTest, TheSeedDecides) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = Greedy(Tokens("seed"), 16);
  request.sampling.temperature = 1;
  request.sampling.seed = 1;
  const std::string first = Transcript(Start(*engine, request));
  EXPECT_EQ(Transcript(Start(*engine, request)), first);
  request.sampling.seed = 2;
  EXPECT_NE(Transcript(Start(*engine, request)), first);
}

// ---- Scoring ----

TEST_F(EngineTest, ScoreGivesTheLogprobsThatGenerateGave) {
  const auto engine = MakeEngine(Options());
  GenerateRequest generate = Greedy(LongPrompt(29), 40);
  generate.sampling.temperature = 1;
  generate.top_logprobs = 3;
  const Stream generated = Start(*engine, generate);
  ASSERT_TRUE(generated.sink->WaitFinished().status.ok());

  ScoreRequest score;
  score.tokens = generate.prompt;
  for (const TokenId token : TokensOf(generated)) score.tokens.push_back(token);
  score.top_logprobs = 3;
  const Stream scored = Start(*engine, score);
  const FinishedEvent finished = scored.sink->WaitFinished();
  EXPECT_TRUE(finished.status.ok()) << finished.status;
  EXPECT_EQ(scored.sink->violation(), "");
  EXPECT_EQ(finished.prompt_tokens, 69);
  EXPECT_EQ(finished.generated_tokens, 0);

  // Positions 1 .. 68, each once and in order.
  int64_t next = 1;
  std::vector<TokenLogprob> tokens;
  for (const ScoredEvent& event : scored.sink->Events<ScoredEvent>()) {
    EXPECT_EQ(event.first_position, next);
    EXPECT_EQ(event.top.size(), event.tokens.size());
    next += static_cast<int64_t>(event.tokens.size());
    tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
  }
  ASSERT_THAT(tokens, SizeIs(68));
  for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i].token, score.tokens[i + 1]);
  const std::vector<float> logprobs = LogprobsOf(generated);
  for (size_t i = 0; i < logprobs.size(); ++i) {
    // Two ways to sum the same 259 exponentials.
    EXPECT_NEAR(tokens[28 + i].logprob, logprobs[i], 2e-6) << i;
  }
  const auto top = TopOf(scored);
  EXPECT_EQ(std::vector(top.begin() + 28 * 3, top.end()), TopOf(generated));
}

TEST_F(EngineTest, AScoredTextTellsHowFarItIsRead) {
  EngineOptions options = Options();
  options.chunk_tokens = options.max_step_tokens = 64;
  const auto engine = MakeEngine(options);
  // Kinds and positions in the order in which they come.
  std::vector<std::pair<bool, int64_t>> events;
  const auto sink = std::make_shared<RecordingSink>([&](const SequenceEvent& event) {
    if (const auto* scored = std::get_if<ScoredEvent>(&event)) {
      events.emplace_back(false,
                          scored->first_position + static_cast<int64_t>(scored->tokens.size()));
    } else if (const auto* progress = std::get_if<PrefillProgressEvent>(&event)) {
      events.emplace_back(true, progress->processed_tokens);
      EXPECT_EQ(progress->total_tokens, 150);
    }
  });
  ASSERT_TRUE(
      engine->Submit(ScoreRequest{.request_id = "s", .tokens = LongPrompt(150)}, sink).ok());
  EXPECT_TRUE(sink->WaitFinished().status.ok());
  // A chunk's last target is the first token of the next chunk.
  EXPECT_THAT(events,
              ElementsAre(std::pair(false, 65), std::pair(true, 64), std::pair(false, 129),
                          std::pair(true, 128), std::pair(false, 150), std::pair(true, 150)));
}

TEST_F(EngineTest, ScoresDoNotDependOnChunksOrLoad) {
  ScoreRequest request;
  request.tokens = LongPrompt(300);
  request.top_logprobs = 2;
  std::vector<std::string> transcripts;
  for (const int chunk_tokens : {8, 64, 512}) {
    EngineOptions options = Options();
    options.chunk_tokens = chunk_tokens;
    options.max_step_tokens = chunk_tokens + 3;
    const auto engine = MakeEngine(options);
    const Stream neighbour = Start(*engine, Greedy(LongPrompt(90), 30));
    transcripts.push_back(Transcript(Start(*engine, request)));
    // A chunk of 512 is scored in groups of at most 256 rows.
    neighbour.sink->WaitFinished();
  }
  EXPECT_EQ(transcripts[1], transcripts[0]);
  EXPECT_EQ(transcripts[2], transcripts[0]);
}

TEST_F(EngineTest, AScoredTextOfOneTokenHasNoPositions) {
  const auto engine = MakeEngine(Options());
  const Stream stream =
      Start(*engine, ScoreRequest{.request_id = "one", .tokens = Tokens("x"), .top_logprobs = 5});
  EXPECT_TRUE(stream.sink->WaitFinished().status.ok());
  EXPECT_THAT(stream.sink->Events<ScoredEvent>(), IsEmpty());
}

// ---- How a sequence ends ----

TEST_F(EngineTest, AStopTokenEndsTheSequenceAndIsPartOfIt) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = Greedy(Tokens("stop"), 30);
  request.sampling.temperature = 1;
  const Stream whole = Start(*engine, request);
  whole.sink->WaitFinished();
  const std::vector<TokenId> tokens = TokensOf(whole);
  const TokenId stop = tokens[9];
  const auto first = std::find(tokens.begin(), tokens.end(), stop);

  request.stopping.stop_token_ids = {TokenId(3), stop};
  const Stream stopped = Start(*engine, request);
  const FinishedEvent finished = stopped.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kStopToken);
  EXPECT_TRUE(finished.status.ok());
  EXPECT_EQ(finished.stop_token, stop);
  EXPECT_EQ(TokensOf(stopped), std::vector<TokenId>(tokens.begin(), first + 1));
  EXPECT_EQ(finished.generated_tokens, first - tokens.begin() + 1);
}

// A bias of 100 makes eos the likeliest token wherever it may be drawn.
GenerateRequest EagerToEnd() {
  GenerateRequest request = Greedy(Tokens("end"), 6);
  request.sampling.logit_bias = {{TinyModel::kEos, 100.0f}};
  return request;
}

TEST_F(EngineTest, EosEndsTheSequence) {
  const auto engine = MakeEngine(Options());
  const Stream stream = Start(*engine, EagerToEnd());
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kEos);
  EXPECT_EQ(finished.stop_token, TinyModel::kEos);
  EXPECT_THAT(TokensOf(stream), ElementsAre(TinyModel::kEos));
}

TEST_F(EngineTest, AnIgnoredEosIsAnOrdinaryToken) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = EagerToEnd();
  request.stopping.ignore_eos = true;
  request.stopping.min_new_tokens = 3;  // Does not ban it either.
  const Stream stream = Start(*engine, request);
  EXPECT_EQ(stream.sink->WaitFinished().reason, FinishReason::kMaxTokens);
  EXPECT_EQ(TokensOf(stream), std::vector<TokenId>(6, TinyModel::kEos));
}

TEST_F(EngineTest, AnIgnoredEosThatIsAStopTokenStops) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = EagerToEnd();
  request.stopping.ignore_eos = true;
  request.stopping.stop_token_ids = {TinyModel::kEos};
  EXPECT_EQ(Start(*engine, request).sink->WaitFinished().reason, FinishReason::kStopToken);
}

TEST_F(EngineTest, NothingEndsBeforeMinNewTokens) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = EagerToEnd();
  request.sampling.logit_bias.push_back({TokenId(10), 90.0f});
  request.stopping.stop_token_ids = {TokenId(10)};
  request.stopping.min_new_tokens = 3;
  const Stream stream = Start(*engine, request);
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.reason, FinishReason::kEos);
  const std::vector<TokenId> tokens = TokensOf(stream);
  ASSERT_THAT(tokens, SizeIs(4));
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(tokens[static_cast<size_t>(i)], TinyModel::kEos);
    EXPECT_NE(tokens[static_cast<size_t>(i)], TokenId(10));
  }
  EXPECT_EQ(tokens[3], TinyModel::kEos);
}

TEST_F(EngineTest, AnEosThatIsTheLastTokenAllowedIsAnEos) {
  const auto engine = MakeEngine(Options());
  GenerateRequest request = EagerToEnd();
  request.stopping.max_new_tokens = 1;
  EXPECT_EQ(Start(*engine, request).sink->WaitFinished().reason, FinishReason::kEos);
}

TEST_F(EngineTest, PrefillProgressFollowsTheChunks) {
  EngineOptions options = Options();
  options.chunk_tokens = 16;
  const auto engine = MakeEngine(options);
  GenerateRequest request = Greedy(LongPrompt(40), 2);
  request.prompt_progress = true;
  const Stream stream = Start(*engine, request);
  stream.sink->WaitFinished();
  std::vector<int64_t> processed;
  for (const PrefillProgressEvent& event : stream.sink->Events<PrefillProgressEvent>()) {
    processed.push_back(event.processed_tokens);
    EXPECT_EQ(event.total_tokens, 40);
  }
  EXPECT_THAT(processed, ElementsAre(16, 32, 40));
}

// ---- Numbers that are none ----

class EngineNanTest : public EngineTest {
 protected:
  void SetUp() override {
    auto backend = std::make_unique<FaultyBackend>(*MakeCpuBackend());
    backend->Poison(kPoison);
    EngineParts parts;
    parts.backend = std::move(backend);
    engine_ = MakeEngine(Options(), nullptr, std::move(parts));
  }
  static constexpr TokenId kPoison = TokenId(255);

  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineNanTest, NanLogitsEndTheirRequestAlone) {
  const GenerateRequest healthy = Greedy(Tokens("healthy"), 30);
  const std::string alone = Transcript(Start(*engine_, healthy));
  GenerateRequest ill = Greedy(Tokens("ill"), 30);
  ill.prompt.push_back(kPoison);

  std::vector<Stream> healthy_streams, ill_streams;
  for (int i = 0; i < 6; ++i) {  // More than slots: the healthy follow the ill in the same slots.
    ill_streams.push_back(Start(*engine_, ill));
    healthy_streams.push_back(Start(*engine_, healthy));
  }
  for (const Stream& stream : ill_streams) {
    const FinishedEvent finished = stream.sink->WaitFinished();
    EXPECT_EQ(finished.reason, FinishReason::kError);
    EXPECT_EQ(finished.status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(finished.generated_tokens, 0);
    EXPECT_EQ(stream.sink->violation(), "");
  }
  for (const Stream& stream : healthy_streams) EXPECT_EQ(Transcript(stream), alone);
  EXPECT_TRUE(engine_->load().healthy);
  EXPECT_EQ(engine_->load().slots_used, 0);
}

TEST_F(EngineNanTest, NanInTheMiddleKeepsWhatWasGenerated) {
  // The poison is drawn as the first token and read in the step after.
  GenerateRequest request = Greedy(Tokens("later"), 30);
  request.sampling.logit_bias = {{kPoison, 100.0f}};
  const Stream stream = Start(*engine_, request);
  const FinishedEvent finished = stream.sink->WaitFinished();
  EXPECT_EQ(finished.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(TokensOf(stream), ElementsAre(kPoison));
  EXPECT_EQ(finished.generated_tokens, 1);
}

TEST_F(EngineNanTest, ScoringStopsAtTheFirstNan) {
  for (const int poisoned :
       {0, 20, 50, 98}) {  // First chunk, later ones, the last scored position.
    for (const int top_logprobs : {0, 2}) {
      ScoreRequest request;
      request.tokens = LongPrompt(100);
      std::replace(request.tokens.begin(), request.tokens.end(), kPoison, TokenId(0));
      request.tokens[static_cast<size_t>(poisoned)] = kPoison;
      request.top_logprobs = top_logprobs;
      const Stream stream = Start(*engine_, request);
      const FinishedEvent finished = stream.sink->WaitFinished();
      EXPECT_EQ(finished.reason, FinishReason::kError) << poisoned;
      EXPECT_EQ(finished.status.code(), absl::StatusCode::kInternal) << poisoned;
      EXPECT_EQ(stream.sink->violation(), "");
      for (const float logprob : LogprobsOf(stream)) EXPECT_FALSE(std::isnan(logprob));
    }
  }
}

}  // namespace
}  // namespace bst
