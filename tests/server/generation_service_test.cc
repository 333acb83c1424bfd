// GenerationService over loopback, a PuppetEngine behind it: events, continuations, slow readers,
// status codes, cancellation.
//
// One file, though long: it mirrors one class; each RPC of its own has its own test beside this.
#include "server/generation_service.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "server/engine_call.h"
#include "server/message_readers.h"
#include "server/output_assembler.h"
#include "tests/server/http_get.h"
#include "tests/server/running_server.h"

namespace bst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class GenerationServiceTest : public testing::Test {
 protected:
  RunningServer server_;
};

TEST_F(GenerationServiceTest, EventsOfAStreamComeInOrder) {
  v1::GenerateRequest request = TextRequest("hello", "mine");
  request.mutable_sampling()->set_seed(42);
  const Stream stream = server_.Generate(request, [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.Progress(id, 6, 6);
    engine.GenerateText(id, "ok");
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  ASSERT_TRUE(stream.accepted.has_value());
  EXPECT_TRUE(stream.events.front().has_accepted());
  EXPECT_EQ(stream.accepted->request_id(), "mine");
  EXPECT_EQ(stream.accepted->seed(), 42u);
  EXPECT_EQ(stream.accepted->prompt_tokens(), 6u);  // bos
  EXPECT_EQ(stream.text, "ok");
  EXPECT_THAT(stream.token_ids, ElementsAre('o', 'k'));
  ASSERT_TRUE(stream.finished.has_value());
  EXPECT_EQ(stream.finished->reason(), v1::MAX_TOKENS);
  EXPECT_EQ(stream.finished->usage().prompt_tokens(), 6u);
  EXPECT_EQ(stream.finished->usage().generated_tokens(), 2u);
  EXPECT_NEAR(stream.finished->timings().queue_seconds(), 0.005, 1e-9);
  EXPECT_NEAR(stream.finished->timings().prefill_seconds(), 0.015, 1e-9);
  EXPECT_NEAR(stream.finished->timings().time_to_first_token_seconds(), 0.020, 1e-9);
  EXPECT_NEAR(stream.finished->timings().mean_inter_token_seconds(), 0.040, 1e-9);
  EXPECT_NEAR(stream.finished->timings().tokens_per_second(), 25, 1e-6);
  const GenerateRequest submitted = *server_.engine().WaitForRequest(0).generate;
  EXPECT_EQ(submitted.sampling.seed, 42u);
  EXPECT_TRUE(submitted.prompt_progress);
}

TEST_F(GenerationServiceTest, FinishReasonsOfTheEngine) {
  const struct {
    FinishReason engine;
    int32_t stop_token;
    v1::FinishReason wire;
  } cases[] = {{FinishReason::kEos, 257, v1::EOS},
               {FinishReason::kStopToken, 7, v1::STOP_TOKEN},
               {FinishReason::kTimeLimit, 0, v1::TIME_LIMIT}};
  size_t n = 0;
  for (const auto& test : cases) {
    const Stream stream = server_.Generate(TextRequest("x"), [&](PuppetEngine& engine) {
      const SequenceId id = engine.WaitForRequest(n).id;
      engine.GenerateText(id, "partial");
      engine.Finish(id, test.engine, absl::OkStatus(), test.stop_token);
    });
    ++n;
    EXPECT_TRUE(stream.status.ok());
    EXPECT_EQ(stream.text, "partial");
    EXPECT_EQ(stream.finished->reason(), test.wire);
    EXPECT_EQ(stream.finished->has_stop_token_id(), test.stop_token != 0);
    EXPECT_EQ(stream.finished->stop_token_id(), static_cast<uint32_t>(test.stop_token));
  }
}

TEST_F(GenerationServiceTest, AStopStringAcrossTokensEndsTheRequestInTheEngine) {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->add_stop_strings("END");
  const Stream stream = server_.Generate(request, [](PuppetEngine& engine) {
    engine.set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.GenerateText(id, "the END");
    engine.WaitForStop(id, 0);
    engine.GenerateText(id, "ing");  // what the engine did before it heard of it
    engine.EndSequence(id, 0, FinishReason::kStopped);
  });
  EXPECT_FALSE(server_.engine().was_cancelled(server_.engine().WaitForRequest(0).id));
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, "the ");
  EXPECT_EQ(stream.token_ids.size(), 7u);
  EXPECT_EQ(stream.finished->reason(), v1::STOP_STRING);
  EXPECT_EQ(stream.finished->stop_string(), "END");
  EXPECT_EQ(stream.finished->usage().generated_tokens(), 7u);
}

TEST_F(GenerationServiceTest, AStopStringInTheLastTokenBeatsTheEnginesReason) {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->add_stop_strings("!");
  request.mutable_stopping()->set_include_stop_string(true);
  const Stream stream = server_.Generate(request, [](PuppetEngine& engine) {
    engine.set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.GenerateText(id, "ok!");
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.text, "ok!");
  EXPECT_EQ(stream.finished->reason(), v1::STOP_STRING);
}

TEST_F(GenerationServiceTest, AStopStringThatTheEndOfTheTextCompletes) {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->add_stop_strings("a\xEF\xBF\xBD");
  const Stream stream = server_.Generate(request, [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.GenerateText(id, "ha\xE2");  // half a character
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.text, "h");
  EXPECT_EQ(stream.finished->reason(), v1::STOP_STRING);
  EXPECT_EQ(stream.finished->stop_string(), "a\xEF\xBF\xBD");
}

// ---- Messages that cannot be parsed ----

void ExpectMalformed(const grpc::Status& status, const std::string& type) {
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << type;
  EXPECT_THAT(status.error_message(), HasSubstr("request is no bst.v1." + type));
  const auto details = DetailOf<google::rpc::BadRequest>(status);
  ASSERT_TRUE(details.has_value());
  EXPECT_EQ(details->field_violations(0).field(), "request");
}

TEST(GenerationService, AMalformedRequestIsAnInvalidArgument) {
  RunningServer server(ConfigWithMetrics());
  v1::GenerateRequest spoilt = TextRequest("x");
  Spoil(spoilt, v1::GenerateRequest::kSamplingFieldNumber);
  for (const v1::GenerateRequest& request : {TextRequest("\xff"), spoilt}) {
    ExpectMalformed(server.Generate(request).status, "GenerateRequest");
    grpc::ClientContext context;
    v1::GenerateResult result;
    ExpectMalformed(server.generation().GenerateOnce(&context, request, &result),
                    "GenerateRequest");
  }
  EXPECT_EQ(server.engine().num_requests(), 0u);
  EXPECT_THAT(HttpGet(server.server().addresses().metrics, "/metrics"),
              HasSubstr("bst_requests_rejected_total{reason=\"invalid\"} 4"));
}

// A client that cancels at once resets the stream; its request, if it comes at all, is no mistake.
TEST(GenerationService, ARequestOfAClientThatHasLeftIsNotInvalid) {
  RunningServer server(ConfigWithMetrics());
  server.engine().AnswerWith({'y'});
  for (int i = 0; i < 300; ++i) {
    grpc::ClientContext context;
    const auto reader = server.generation().Generate(&context, TextRequest("x"));
    context.TryCancel();
    v1::GenerateEvent event;
    while (reader->Read(&event)) {
    }
    EXPECT_NE(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  const std::string metrics = HttpGet(server.server().addresses().metrics, "/metrics");
  EXPECT_THAT(metrics, HasSubstr("bst_requests_rejected_total{reason=\"invalid\"} 0\n"));
  EXPECT_THAT(metrics, testing::Not(HasSubstr("code=\"INVALID_ARGUMENT\"")));
}

TEST(GenerationService, SoItIsWithTheSmallCalls) {
  RunningServer server(ConfigWithMetrics());
  v1::TokenizeRequest text;
  text.set_text("\xff");
  grpc::ClientContext tokenize;
  v1::TokenizeResponse tokens;
  ExpectMalformed(server.generation().Tokenize(&tokenize, text, &tokens), "TokenizeRequest");

  v1::DetokenizeRequest ids;
  Spoil(ids, v1::DetokenizeRequest::kTokenIdsFieldNumber);
  grpc::ClientContext detokenize;
  v1::DetokenizeResponse answer;
  ExpectMalformed(server.generation().Detokenize(&detokenize, ids, &answer), "DetokenizeRequest");
  EXPECT_THAT(HttpGet(server.server().addresses().metrics, "/metrics"),
              HasSubstr("bst_requests_rejected_total{reason=\"invalid\"} 2\n"));
}

// ---- Several continuations ----

v1::GenerateRequest RequestOfThree() {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_sampling()->set_num_sequences(3);
  request.mutable_stopping()->add_stop_strings("END");
  return request;
}

// Continuation 1 ends with a stop string, 0 with eos, 2 with its last token.
void PlayThree(PuppetEngine& engine) {
  const SequenceId id = engine.WaitForRequest(0).id;
  EXPECT_EQ(engine.WaitForRequest(0).generate->num_sequences, 3);
  engine.GenerateText(id, "zero", 0);
  engine.GenerateText(id, "oneEN", 1);
  engine.GenerateText(id, "t", 2);
  engine.GenerateText(id, "D", 1);
  engine.WaitForStop(id, 1);
  engine.GenerateText(id, "wo", 2);
  engine.Generate(id, 257, -1, {}, 0);
  engine.EndSequence(id, 0, FinishReason::kEos, 257);
  engine.EndSequence(id, 2, FinishReason::kMaxTokens);
}

TEST_F(GenerationServiceTest, ContinuationsEndEachForItself) {
  const Stream stream = server_.Generate(RequestOfThree(), PlayThree);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_THAT(server_.engine().stopped(), testing::SizeIs(1));
  std::string texts[3];
  std::vector<uint32_t> ended;
  for (const v1::GenerateEvent& event : stream.events) {
    if (event.has_tokens()) {
      EXPECT_THAT(ended, testing::Not(testing::Contains(event.tokens().sequence_index())));
      texts[event.tokens().sequence_index()] += event.tokens().text();
    }
    if (event.has_sequence_finished()) ended.push_back(event.sequence_finished().sequence_index());
  }
  EXPECT_EQ(texts[0], "zero");
  EXPECT_EQ(texts[1], "one");
  EXPECT_EQ(texts[2], "two");
  EXPECT_THAT(ended, testing::UnorderedElementsAre(0, 1, 2));
  const v1::Finished& finished = *stream.finished;
  EXPECT_EQ(finished.reason(), v1::EOS);
  EXPECT_EQ(finished.stop_token_id(), 257u);
  EXPECT_EQ(finished.usage().generated_tokens(), 5u + 6u + 3u);
  ASSERT_EQ(finished.sequences_size(), 3);
  EXPECT_EQ(finished.sequences(0).reason(), v1::EOS);
  EXPECT_EQ(finished.sequences(1).reason(), v1::STOP_STRING);
  EXPECT_EQ(finished.sequences(1).stop_string(), "END");
  EXPECT_EQ(finished.sequences(1).generated_tokens(), 6u);
  EXPECT_EQ(finished.sequences(2).reason(), v1::MAX_TOKENS);
  // 40 ms of decoding: 4 gaps of the longest, "oneEND" has 5; 14 - 3 tokens after the first.
  EXPECT_NEAR(finished.timings().mean_inter_token_seconds(), 0.040 / 5, 1e-9);
  EXPECT_NEAR(finished.timings().tokens_per_second(), 11 / 0.040, 1e-6);
}

TEST_F(GenerationServiceTest, TheUnaryAnswerHasEveryContinuation) {
  std::thread player([this] { PlayThree(server_.engine()); });
  grpc::ClientContext context;
  v1::GenerateResult result;
  EXPECT_TRUE(server_.generation().GenerateOnce(&context, RequestOfThree(), &result).ok());
  player.join();
  EXPECT_EQ(result.text(), "zero");
  EXPECT_EQ(result.token_ids_size(), 5);
  ASSERT_EQ(result.continuations_size(), 3);
  EXPECT_EQ(result.continuations(0).text(), "zero");
  EXPECT_EQ(result.continuations(1).text(), "one");
  EXPECT_EQ(result.continuations(2).text(), "two");
  EXPECT_EQ(result.continuations(2).sequence_index(), 2u);
  EXPECT_EQ(result.continuations(1).finished().stop_string(), "END");
  EXPECT_EQ(result.finished().sequences_size(), 3);
}

TEST_F(GenerationServiceTest, AFailureCutsOffTheContinuationsThatStillRun) {
  const Stream stream = server_.Generate(RequestOfThree(), [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.GenerateText(id, "done", 1);
    engine.EndSequence(id, 1, FinishReason::kMaxTokens);
    engine.Finish(id, FinishReason::kError, absl::InternalError("NaN"));
  });
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INTERNAL);
  ASSERT_TRUE(stream.finished.has_value());
  EXPECT_EQ(stream.finished->reason(), v1::ERROR);
  EXPECT_EQ(stream.finished->sequences(1).reason(), v1::MAX_TOKENS);
  EXPECT_EQ(stream.finished->sequences(0).reason(), v1::ERROR);
  EXPECT_EQ(stream.finished->sequences(2).reason(), v1::ERROR);
}

TEST_F(GenerationServiceTest, OneContinuationHasNoEventsOfItsOwn) {
  server_.engine().AnswerWith({'o', 'k'});
  const Stream stream = server_.Generate(TextRequest("x"));
  for (const v1::GenerateEvent& event : stream.events) EXPECT_FALSE(event.has_sequence_finished());
  EXPECT_EQ(stream.finished->sequences_size(), 0);
}

TEST_F(GenerationServiceTest, PrioritiesReachTheEngine) {
  server_.engine().AnswerWith({'o'});
  v1::GenerateRequest request = TextRequest("x");
  request.set_priority(v1::HIGH);
  EXPECT_TRUE(server_.Generate(request).status.ok());
  request.clear_priority();
  EXPECT_TRUE(server_.Generate(request).status.ok());
  EXPECT_EQ(server_.engine().WaitForRequest(0).generate->priority, Priority::kHigh);
  EXPECT_EQ(server_.engine().WaitForRequest(1).generate->priority, Priority::kNormal);
}

TEST_F(GenerationServiceTest, NoMessageHoldsHalfACharacter) {
  const std::string text = "a€𝄞ß";
  const Stream stream = server_.Generate(TextRequest("x"), [&text](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.GenerateText(id, text);
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_EQ(stream.text, text);
  for (const v1::Tokens& message : stream.messages) {
    if (message.text().empty()) continue;
    EXPECT_NE(static_cast<unsigned char>(message.text().front()) & 0xC0, 0x80)
        << "starts inside a character";
  }
}

TEST_F(GenerationServiceTest, EchoLogprobsAndAlternatives) {
  v1::GenerateRequest request = TextRequest("hey");
  request.mutable_output()->set_echo(true);
  request.mutable_output()->set_top_logprobs(2);
  const Stream stream = server_.Generate(request, [](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.Generate(id, 'a', -0.25f, {{TokenId('a'), -0.25f}, {TokenId('b'), -2.5f}});
    engine.Finish(id, FinishReason::kMaxTokens);
  });
  EXPECT_TRUE(stream.events[1].has_tokens());
  EXPECT_EQ(stream.echo_text, "hey");
  EXPECT_EQ(stream.echo[0].token_ids_size(), 4);
  ASSERT_EQ(stream.logprobs.size(), 1u);
  EXPECT_EQ(stream.logprobs[0].logprob(), -0.25f);
  EXPECT_EQ(stream.logprobs[0].top(1).token_id(), static_cast<uint32_t>('b'));
  EXPECT_EQ(server_.engine().WaitForRequest(0).generate->top_logprobs, 2);
}

TEST_F(GenerationServiceTest, ASlowReaderGetsFewerAndFullerMessages) {
  constexpr int kTokens =
      200'000;  // of text alone more than gRPC buffers for a reader that does not read
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->set_max_new_tokens(kTokens);
  request.mutable_output()->set_top_logprobs(1);
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, request);
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  for (int i = 0; i < kTokens; ++i)
    server_.engine().Generate(id, 'a' + i % 26, -1, {{TokenId('a'), -1}});
  server_.engine().Finish(id,
                          FinishReason::kMaxTokens);  // nothing was read so far: Push does not wait
  Stream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) stream.Add(event);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(stream.token_ids.size(), static_cast<size_t>(kTokens));
  EXPECT_EQ(stream.text.size(), static_cast<size_t>(kTokens));
  EXPECT_EQ(stream.text.substr(0, 26), "abcdefghijklmnopqrstuvwxyz");
  // How many messages gRPC takes before it makes the writer wait is its own affair.
  EXPECT_LT(stream.messages.size(), static_cast<size_t>(kTokens) / 2);
  int fullest = 0;
  for (const v1::Tokens& message : stream.messages) {
    fullest = std::max(fullest, message.token_ids_size());
  }
  EXPECT_GT(fullest, 100);
  EXPECT_LE(fullest, 4096);
}

TEST_F(GenerationServiceTest, AReaderThatIsTooFarBehindEndsItsRequest) {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->set_max_new_tokens(1'000'000);
  request.mutable_output()->set_top_logprobs(20);
  const std::vector<TokenLogprob> top(20, {TokenId('a'), -1});
  PuppetEngine& engine = server_.engine();
  engine.set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, request);
  const SequenceId id = engine.WaitForRequest(0).id;
  int tokens = 0;
  for (; tokens < 1'000'000 && !engine.was_cancelled(id); ++tokens) {
    engine.Generate(id, 'a', -1, top);
  }
  ASSERT_TRUE(engine.was_cancelled(id));
  // No earlier than promised. No later, but for what the delivery thread had not seen.
  const size_t bytes = static_cast<size_t>(tokens) * (sizeof(TokenLogprob) + MemoryOf(top));
  EXPECT_GT(bytes, kMaxOutboxBytes / 100 * 99);  // text, and messages themselves, count besides
  EXPECT_LT(bytes, 4 * kMaxOutboxBytes);
  engine.Finish(id, FinishReason::kCancelled, absl::CancelledError("cancelled"));
  Stream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) stream.Add(event);
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("the reader is too slow"));
  EXPECT_FALSE(DetailOf<google::rpc::RetryInfo>(status).has_value());  // it would end the same way
  // What waited was dropped; what was under way, up to some messages of 4096 tokens, was not.
  EXPECT_GT(stream.token_ids.size(), 0u);
  EXPECT_LT(stream.token_ids.size(), static_cast<size_t>(tokens) / 4);
  ASSERT_TRUE(stream.finished.has_value());
  EXPECT_EQ(stream.finished->reason(), v1::ERROR);
}

// Unread output of `engine`'s request `id`: more than gRPC takes for a reader that does not read,
// less than kMaxOutboxBytes.
constexpr size_t kMuch = 100'000;
void GenerateMuch(PuppetEngine& engine, SequenceId id) {
  const std::vector<TokenLogprob> top(20, {TokenId('a'), -1});
  for (size_t i = 0; i < kMuch; ++i) engine.Generate(id, 'a', -1, top);
}

v1::GenerateRequest RequestOfMuch() {
  v1::GenerateRequest request = TextRequest("x", "much");
  request.mutable_stopping()->set_max_new_tokens(1'000'000);
  request.mutable_output()->set_top_logprobs(20);
  return request;
}

TEST_F(GenerationServiceTest, AContinuationWhoseTextWasDroppedIsNotComplete) {
  v1::GenerateRequest request = RequestOfMuch();
  request.mutable_sampling()->set_num_sequences(2);
  PuppetEngine& engine = server_.engine();
  engine.set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, request);
  const SequenceId id = engine.WaitForRequest(0).id;
  const std::vector<TokenLogprob> top(20, {TokenId('a'), -1});
  for (int i = 0; i < 100'000; ++i) engine.Generate(id, 'a', -1, top, 0);
  engine.EndSequence(id, 0, FinishReason::kMaxTokens);
  for (int i = 0; i < 1'000'000 && !engine.was_cancelled(id); ++i) {
    engine.Generate(id, 'b', -1, top, 1);
  }
  ASSERT_TRUE(engine.was_cancelled(id));
  engine.EndSequence(id, 1, FinishReason::kMaxTokens);  // before it heard of the cancellation: OK
  Stream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
    EXPECT_FALSE(event.has_sequence_finished());
    stream.Add(event);
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ASSERT_TRUE(stream.finished.has_value());
  ASSERT_EQ(stream.finished->sequences_size(), 2);
  for (const v1::SequenceFinished& sequence : stream.finished->sequences()) {
    EXPECT_EQ(sequence.reason(), v1::ERROR) << sequence.sequence_index();
  }
}

TEST_F(GenerationServiceTest, ACallThatIsNotReadToItsEndIsCounted) {
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, RequestOfMuch());
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  GenerateMuch(server_.engine(), id);
  EXPECT_EQ(server_.Load().unread_calls(), 0u);
  server_.engine().Finish(id, FinishReason::kMaxTokens);
  EXPECT_TRUE(server_.WaitForUnreadCalls(1));
  size_t tokens = 0;
  v1::GenerateEvent event;
  while (reader->Read(&event)) tokens += static_cast<size_t>(event.tokens().token_ids_size());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, kMuch);
  EXPECT_TRUE(server_.WaitForUnreadCalls(0));
}

// A call beside too much unread output of others.
Stream CallBesideUnreadOutput(RunningServer& server) {
  server.engine().AnswerWith({'y'});
  Stream stream = server.Generate(TextRequest("z"));
  // What a call keeps is counted a moment after the call.
  for (int i = 0; i < 1000 && stream.status.ok(); ++i) {
    stream = server.Generate(TextRequest("z"));
  }
  return stream;
}

void ExpectRefusedForUnreadOutput(const Stream& stream) {
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(stream.status.error_message(), testing::HasSubstr("readers are behind"));
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(stream.status).has_value());
}

TEST(UnreadOutput, OfAllReadersTogetherIsBounded) {
  ServerConfig config = LoopbackConfig();
  config.max_unread_bytes = 100'000;
  RunningServer server(config);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, RequestOfMuch());
  const SequenceId id = server.engine().WaitForRequest(0).id;
  GenerateMuch(server.engine(), id);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  EXPECT_TRUE(server.WaitForUnreadCalls(1));
  ExpectRefusedForUnreadOutput(CallBesideUnreadOutput(server));
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(server.WaitForUnreadCalls(0));
  EXPECT_TRUE(server.Generate(TextRequest("z")).status.ok());
}

// How a reader fares that takes each message in time, but not all of some 25, and another call
// beside it.
struct SlowReaderAndAnother {
  Stream refused;      // while the slow reader's output is unread
  grpc::Status slow;   // of the slow reader
  bool later = false;  // the other call is answered in the end
};

SlowReaderAndAnother ReadSlowly(absl::Duration write_timeout) {
  ServerConfig config = LoopbackConfig();
  config.max_unread_bytes = 100'000;
  config.write_timeout = write_timeout;
  RunningServer server(config);
  server.engine().set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, RequestOfMuch());
  const SequenceId id = server.engine().WaitForRequest(0).id;
  std::thread slow_reader([&reader, write_timeout] {
    v1::GenerateEvent event;
    while (reader->Read(&event)) absl::SleepFor(write_timeout / 10);
  });
  GenerateMuch(server.engine(), id);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  server.WaitForEnd("much");
  SlowReaderAndAnother fared;
  fared.refused = CallBesideUnreadOutput(server);
  fared.later = WaitUntil([&] { return server.Generate(TextRequest("z")).status.ok(); });
  slow_reader.join();
  fared.slow = reader->Finish();
  EXPECT_TRUE(server.WaitForUnreadCalls(0));
  return fared;
}

TEST(UnreadOutput, OfASlowSteadyReaderKeepsTheOthersOutForTheWriteTimeoutOnly) {
  SlowReaderAndAnother fared;
  // A machine too busy to pass a message on in time cuts the reader for that one message, perhaps
  // before the other call: a later try has more of it.
  for (const int seconds : {4, 12, 36}) {
    fared = ReadSlowly(absl::Seconds(seconds));
    if (!fared.refused.status.ok()) break;
  }
  ExpectRefusedForUnreadOutput(fared.refused);
  EXPECT_EQ(fared.slow.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(fared.later);
}

// A unary call whose client reads nothing of the answer.
class UnreadAnswer final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  UnreadAnswer(const std::string& address, const std::string& rpc,
               const google::protobuf::Message& request)
      : stub_(NarrowChannel(address, grpc::InsecureChannelCredentials())) {
    const std::string bytes = request.SerializeAsString();
    const grpc::Slice slice(bytes);
    request_ = grpc::ByteBuffer(&slice, 1);
    stub_.PrepareBidiStreamingCall(&context_, "/bst.v1.Generation/" + rpc, {}, this);
    StartWriteLast(&request_, {});
    StartCall();
  }
  ~UnreadAnswer() override {
    context_.TryCancel();
    done_.WaitForNotification();
  }
  void OnDone(const grpc::Status& status) override {
    code_ = status.error_code();
    done_.Notify();
  }
  // Reads the answer after all; returns how the call ended.
  grpc::StatusCode Read() {
    StartRead(&answer_);
    done_.WaitForNotification();
    return code_;
  }

 private:
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_, answer_;
  grpc::StatusCode code_ = grpc::StatusCode::UNKNOWN;  // constant once done_
  absl::Notification done_;
};

TEST(UnreadOutput, OfUnaryCallsCountsToo) {
  ServerConfig config = LoopbackConfig();
  config.max_unread_bytes = 100'000;
  RunningServer server(config);
  auto answer = std::make_unique<UnreadAnswer>(server.server().addresses().grpc, "GenerateOnce",
                                               RequestOfMuch());
  const SequenceId id = server.engine().WaitForRequest(0).id;
  GenerateMuch(server.engine(), id);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  server.WaitForEnd("much");
  EXPECT_TRUE(server.WaitForUnreadCalls(1));
  ExpectRefusedForUnreadOutput(CallBesideUnreadOutput(server));
  answer.reset();
  EXPECT_TRUE(server.WaitForUnreadCalls(0));
  EXPECT_TRUE(server.Generate(TextRequest("z")).status.ok());
}

ModelInfo ModelOfLongPrompts() {
  ModelInfo info = PuppetModelInfo();
  info.max_prompt_tokens = 1'000'000;
  return info;
}

// Its answer, a byte per token, is more than gRPC takes for a reader that does not read.
v1::TokenizeRequest TokenizeMuch() {
  v1::TokenizeRequest request;
  request.set_text(std::string(1'000'000, 'x'));
  return request;
}

TEST(UnreadOutput, OfCallsWithoutTheEngineCountsToo) {
  ServerConfig config = LoopbackConfig();
  config.max_unread_bytes = 100'000;
  RunningServer server(config, ModelOfLongPrompts());
  auto answer =
      std::make_unique<UnreadAnswer>(server.server().addresses().grpc, "Tokenize", TokenizeMuch());
  EXPECT_TRUE(server.WaitForUnreadCalls(1));
  ExpectRefusedForUnreadOutput(CallBesideUnreadOutput(server));
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  const grpc::Status refused = server.generation().Tokenize(&context, request, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("readers are behind"));
  answer.reset();
  EXPECT_TRUE(server.WaitForUnreadCalls(0));
  grpc::ClientContext later;
  EXPECT_TRUE(server.generation().Tokenize(&later, request, &response).ok());
}

TEST(UnreadOutput, OfCallsWithoutTheEngineADrainWaitsFor) {
  RunningServer server(LoopbackConfig(), ModelOfLongPrompts());
  UnreadAnswer answer(server.server().addresses().grpc, "Tokenize", TokenizeMuch());
  EXPECT_TRUE(server.WaitForUnreadCalls(1));
  grpc::ClientContext context;
  const auto watch = server.control().Drain(&context, v1::DrainRequest());
  v1::DrainProgress progress;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(watch->Read(&progress));  // the last would be the first
  context.TryCancel();
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // Nothing new comes in between.
  v1::TokenizeRequest request;
  v1::TokenizeResponse response;
  grpc::ClientContext late;
  EXPECT_EQ(server.generation().Tokenize(&late, request, &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  std::thread drain([&server] { server.server().Drain(); });
  absl::SleepFor(absl::Seconds(1));  // else it would be cut in a quarter of that
  EXPECT_EQ(answer.Read(), grpc::StatusCode::OK);
  drain.join();
}

TEST(UnreadOutput, ThePromptSentBackCountsToo) {
  ServerConfig config = LoopbackConfig();
  config.max_unread_bytes = 100'000;
  RunningServer server(config, ModelOfLongPrompts());
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Resize(1'000'000, 'x');
  request.mutable_output()->set_echo(true);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, request);
  server.engine().Finish(server.engine().WaitForRequest(0).id, FinishReason::kMaxTokens);
  EXPECT_TRUE(server.WaitForUnreadCalls(1));
  ExpectRefusedForUnreadOutput(CallBesideUnreadOutput(server));
  v1::GenerateEvent event;
  size_t tokens = 0;
  while (reader->Read(&event)) tokens += static_cast<size_t>(event.tokens().token_ids_size());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, 1'000'000u);
  EXPECT_TRUE(server.WaitForUnreadCalls(0));
  EXPECT_TRUE(server.Generate(TextRequest("z")).status.ok());
}

// Calls with large messages, all of which wait in the engine's Submit until they are let go.
class LargeMessagesTest : public testing::Test {
 protected:
  static ServerConfig Config() {
    ServerConfig config = ConfigWithMetrics();
    config.max_message_bytes = int64_t{4} * MessageReaders::kSmallBytes;  // 15 may wait, not 20
    return config;
  }

  LargeMessagesTest() {
    server_.engine().AnswerWith({'y'});
    server_.engine().set_before_submit([this] {
      ++held_;
      let_go_.WaitForNotification();
    });
  }
  ~LargeMessagesTest() override {
    LetGo();
    for (std::thread& client : clients_) client.join();
  }

  static std::string LargeText() { return std::string(MessageReaders::kSmallBytes + 1, 'x'); }

  void Call(int calls) {
    for (int i = 0; i < calls; ++i) {
      clients_.emplace_back([this] {
        // More than may wait to be read is refused; how many that are is the machine's to say.
        const grpc::StatusCode code =
            server_.Generate(TextRequest(LargeText())).status.error_code();
        EXPECT_TRUE(code == grpc::StatusCode::OK || code == grpc::StatusCode::RESOURCE_EXHAUSTED);
      });
    }
    EXPECT_TRUE(WaitUntil([&] { return held_ == MessageReaders::DefaultThreads(); }));
  }
  void LetGo() {
    if (!let_go_.HasBeenNotified()) let_go_.Notify();
  }

  std::atomic<int> held_ = 0;
  absl::Notification let_go_;
  RunningServer server_{Config()};
  std::vector<std::thread> clients_;
};

TEST_F(LargeMessagesTest, LeaveGrpcsThreadsToOthers) {
  Call(20);                                 // more than gRPC has threads
  absl::SleepFor(absl::Milliseconds(100));  // they have come, or some will come beside what follows
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    v1::ModelInfo info;
    const grpc::Status status = server_.generation().GetModelInfo(&context, {}, &info);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
}

TEST_F(LargeMessagesTest, WaitingToBeReadIsSeenAndCounted) {
  constexpr absl::Duration kWait = absl::Milliseconds(200);
  const int held = MessageReaders::DefaultThreads();
  const auto to_read = [this] { return HttpGet(server_.server().addresses().metrics, "/metrics"); };
  Call(held);
  clients_.emplace_back([this] { server_.Generate(TextRequest(LargeText())); });
  const std::string line = absl::StrCat("bst_messages_to_read ", held + 1, "\n");
  EXPECT_TRUE(WaitUntil([&] { return absl::StrContains(to_read(), line); }));
  absl::SleepFor(kWait);
  LetGo();
  absl::Duration longest;
  for (int n = 0; n <= held; ++n) {
    longest =
        std::max(longest, server_.engine().WaitForRequest(static_cast<size_t>(n)).generate->age);
  }
  EXPECT_GE(longest, kWait);
  EXPECT_TRUE(WaitUntil([&] { return absl::StrContains(to_read(), "bst_messages_to_read 0\n"); }));
}

TEST_F(LargeMessagesTest, OfWhichTooManyWaitAreRefused) {
  Call(20);
  v1::TokenizeRequest request;
  request.set_text(LargeText());
  const auto tokenize = [&] {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
    v1::TokenizeResponse response;
    return server_.generation().Tokenize(&context, request, &response);
  };
  grpc::Status refused;
  EXPECT_TRUE(WaitUntil([&] {
    refused = tokenize();
    return refused.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
  }));
  EXPECT_THAT(refused.error_message(), HasSubstr("messages wait to be read"));
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(refused).has_value());
  request.set_text("z");
  EXPECT_TRUE(WaitUntil([&] { return tokenize().ok(); }));  // a small one waits for nobody
  LetGo();
  EXPECT_TRUE(WaitUntil([&] { return server_.Generate(TextRequest("z")).status.ok(); }));
}

class WriteTimeoutTest : public testing::Test {
 protected:
  WriteTimeoutTest() { server_.engine().set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest); }

  static ServerConfig Config() {
    ServerConfig config = LoopbackConfig();
    config.write_timeout = kTimeout;
    return config;
  }

  static constexpr absl::Duration kTimeout = absl::Milliseconds(200);
  RunningServer server_{Config()};
};

TEST_F(WriteTimeoutTest, OutputThatNobodyReadsIsGoneSoonAfterItsRequest) {
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, RequestOfMuch());
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  GenerateMuch(server_.engine(), id);
  server_.engine().Finish(id, FinishReason::kMaxTokens);
  server_.WaitForEnd("much");
  EXPECT_TRUE(server_.WaitForUnreadCalls(0));
  Stream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) stream.Add(event);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_FALSE(stream.finished.has_value());
}

TEST_F(WriteTimeoutTest, ARequestWhoseReaderReadsNothingEnds) {
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, RequestOfMuch());
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  GenerateMuch(server_.engine(), id);
  server_.engine().WaitForCancel(id);
  server_.engine().Finish(id, FinishReason::kCancelled, absl::CancelledError("cancelled"));
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server_.WaitForEnd("much");
  EXPECT_TRUE(server_.WaitForUnreadCalls(0));
}

TEST(WriteTimeout, AnAnswerWithoutTheEngineThatNobodyReadsIsGoneSoon) {
  ServerConfig config = LoopbackConfig();
  config.write_timeout = absl::Seconds(3);  // in which the call is seen
  RunningServer server(config, ModelOfLongPrompts());
  const UnreadAnswer answer(server.server().addresses().grpc, "Tokenize", TokenizeMuch());
  EXPECT_TRUE(server.WaitForUnreadCalls(1));
  EXPECT_TRUE(server.WaitForUnreadCalls(0));
}

// Six tokens to a reader that takes each: alarms go off between two of them, and after several.
Stream GenerateSlowly(absl::Duration write_timeout) {
  ServerConfig config = LoopbackConfig();
  config.write_timeout = write_timeout;
  RunningServer server(config);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server.engine().WaitForRequest(0).id;
  Stream stream;
  v1::GenerateEvent event;
  bool goes_on = reader->Read(&event);
  for (int i = 0; i < 6 && goes_on; ++i) {
    server.engine().Generate(id, 'a');
    goes_on = reader->Read(&event);
    if (goes_on) stream.Add(event);
    absl::SleepFor(i == 0 ? 2 * write_timeout : write_timeout / 3);
  }
  server.engine().Finish(id, FinishReason::kMaxTokens);
  while (reader->Read(&event)) stream.Add(event);
  stream.status = reader->Finish();
  return stream;
}

TEST(WriteTimeout, AReaderThatTakesWhatThereIsMayWaitForMore) {
  Stream stream;
  // On a machine that is too busy to write a token in time a later try has more of it.
  for (absl::Duration timeout = absl::Milliseconds(200); timeout < absl::Minutes(1); timeout *= 4) {
    stream = GenerateSlowly(timeout);
    if (stream.status.ok()) break;
  }
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, "aaaaaa");
}

TEST_F(GenerationServiceTest, AnAnswerTooLargeForOneMessageEndsItsRequest) {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_output()->set_top_logprobs(20);
  request.mutable_stopping()->set_max_new_tokens(1'000'000);
  const std::vector<TokenLogprob> top(20, {TokenId('a'), -1});
  PuppetEngine& engine = server_.engine();
  engine.set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
  std::thread player([&] {
    const SequenceId id = engine.WaitForRequest(0).id;
    for (int i = 0; i < 1'000'000 && !engine.was_cancelled(id); ++i) {
      engine.Generate(id, 'a', -1, top);
    }
    engine.Finish(id, FinishReason::kCancelled, absl::CancelledError("cancelled"));
  });
  grpc::ClientContext context;
  v1::GenerateResult result;
  const grpc::Status status = server_.generation().GenerateOnce(&context, request, &result);
  player.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("stream"));
}

TEST_F(GenerationServiceTest, GenerateOnceAnswersAllAtOnce) {
  server_.engine().AnswerWith({'d', 'o', 'n', 'e'});
  v1::GenerateRequest request = TextRequest("x", "once");
  request.mutable_output()->set_logprobs(true);
  request.mutable_output()->set_echo(true);
  request.mutable_sampling()->set_seed(5);
  grpc::ClientContext context;
  v1::GenerateResult result;
  const grpc::Status status = server_.generation().GenerateOnce(&context, request, &result);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(result.request_id(), "once");
  EXPECT_EQ(result.seed(), 5u);
  EXPECT_EQ(result.text(), "done");
  EXPECT_EQ(result.prompt_text(), "x");
  EXPECT_THAT(result.token_ids(), ElementsAre('d', 'o', 'n', 'e'));
  EXPECT_EQ(result.logprobs_size(), 4);
  EXPECT_EQ(result.finished().reason(), v1::MAX_TOKENS);
  EXPECT_EQ(result.finished().usage().generated_tokens(), 4u);
}

TEST(GenerateOnce, ALargeAnswerHoldsUpNoStream) {
  RunningServer server(ConfigWithMetrics());
  const std::string metrics = server.server().addresses().metrics;
  PuppetEngine& engine = server.engine();
  const UnreadAnswer large(server.server().addresses().grpc, "GenerateOnce", RequestOfMuch());
  const SequenceId much = engine.WaitForRequest(0).id;
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, TextRequest("y"));
  const SequenceId other = engine.WaitForRequest(1).id;
  v1::GenerateEvent event;
  EXPECT_TRUE(reader->Read(&event) && event.has_accepted());
  GenerateMuch(engine, much);
  engine.Finish(much, FinishReason::kMaxTokens);
  engine.Generate(other, 'z');
  EXPECT_TRUE(reader->Read(&event) && event.has_tokens());
  // A call is counted when its answer is complete.
  const std::string counted = "rpc=\"GenerateOnce\"";
  EXPECT_THAT(HttpGet(metrics, "/metrics"), testing::Not(HasSubstr(counted)));
  EXPECT_TRUE(WaitUntil([&] { return absl::StrContains(HttpGet(metrics, "/metrics"), counted); }));
  engine.Finish(other, FinishReason::kMaxTokens);
  while (reader->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GenerationServiceTest, GenerateOnceFindsStopStrings) {
  server_.engine().AnswerWith({'a', 'b', 'c'});
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->add_stop_strings("bc");
  grpc::ClientContext context;
  v1::GenerateResult result;
  EXPECT_TRUE(server_.generation().GenerateOnce(&context, request, &result).ok());
  EXPECT_EQ(result.text(), "a");
  EXPECT_EQ(result.finished().stop_string(), "bc");
}

TEST_F(GenerationServiceTest, TokenizeAndDetokenize) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text("aé");
  tokenize.set_add_bos(true);
  v1::TokenizeResponse tokens;
  grpc::ClientContext first;
  EXPECT_TRUE(server_.generation().Tokenize(&first, tokenize, &tokens).ok());
  EXPECT_THAT(tokens.token_ids(), ElementsAre(256, 'a', 0xC3, 0xA9));
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext second;
  EXPECT_TRUE(server_.generation().Detokenize(&second, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "aé");
  detokenize.add_token_ids(259);
  grpc::ClientContext third;
  EXPECT_EQ(server_.generation().Detokenize(&third, detokenize, &text).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GenerationServiceTest, ModelInfo) {
  grpc::ClientContext context;
  v1::ModelInfo info;
  ASSERT_TRUE(server_.generation().GetModelInfo(&context, v1::GetModelInfoRequest(), &info).ok());
  EXPECT_EQ(info.name(), "puppet");
  EXPECT_EQ(info.vocab_size(), 259u);
  EXPECT_THAT(info.layers(), ElementsAre("transformer", "bst single_head s4d N=8 zoh"));
  EXPECT_EQ(info.state_bytes_per_sequence(), 1000u);
  EXPECT_EQ(info.bos_token_id(), 256u);
  EXPECT_EQ(info.limits().max_prompt_tokens(), 100'000u);
  EXPECT_EQ(info.limits().max_new_tokens(), 1'000'000u);
  EXPECT_EQ(info.limits().max_message_bytes(), 64u << 20);
  EXPECT_EQ(info.default_sampling().temperature(), 1);
  EXPECT_EQ(info.default_max_new_tokens(), 256u);
}

// ---- Status codes ----

TEST_F(GenerationServiceTest, InvalidArgumentNamesTheField) {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_sampling()->set_top_p(0);
  const Stream stream = server_.Generate(request);
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(stream.events.empty());
  const auto details = DetailOf<google::rpc::BadRequest>(stream.status);
  ASSERT_TRUE(details.has_value());
  EXPECT_EQ(details->field_violations(0).field(), "sampling.top_p");
  EXPECT_EQ(server_.engine().num_requests(), 0u);
  grpc::ClientContext context;
  v1::GenerateResult result;
  EXPECT_EQ(server_.generation().GenerateOnce(&context, request, &result).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

// All of them would not fit into the trailers.
TEST_F(GenerationServiceTest, ManyMistakesAreAnInvalidArgumentToo) {
  for (const uint32_t count : {250u, 300u}) {  // below and above the vocabulary's 259
    v1::GenerateRequest request = TextRequest("x");
    for (uint32_t id = 0; id < count; ++id) {
      (*request.mutable_sampling()->mutable_logit_bias())[1000 + id] = 1;
    }
    const Stream stream = server_.Generate(request);
    EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << count;
    EXPECT_TRUE(DetailOf<google::rpc::BadRequest>(stream.status).has_value()) << count;
  }
}

TEST_F(GenerationServiceTest, AFullQueueAsksForARetry) {
  server_.engine().RefuseWith(absl::ResourceExhaustedError("4 requests wait, limit 4"));
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, TextRequest("x"));
  v1::GenerateEvent event;
  EXPECT_FALSE(reader->Read(&event));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ASSERT_TRUE(DetailOf<google::rpc::RetryInfo>(status).has_value());
  EXPECT_EQ(DetailOf<google::rpc::RetryInfo>(status)->retry_delay().seconds(), 1);
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto pushback = trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, trailers.end());
  EXPECT_EQ(std::string(pushback->second.data(), pushback->second.size()), "1000");
}

TEST_F(GenerationServiceTest, ADrainingEngineIsUnavailable) {
  server_.engine().Drain();
  const Stream stream = server_.Generate(TextRequest("x"));
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(stream.status).has_value());
}

TEST_F(GenerationServiceTest, ADuplicateRequestIdIsRefusedWhileTheFirstIsInFlight) {
  grpc::ClientContext context;
  const auto first = server_.generation().Generate(&context, TextRequest("x", "same"));
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  EXPECT_EQ(server_.Generate(TextRequest("y", "same")).status.error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
  server_.engine().Finish(id, FinishReason::kMaxTokens);
  v1::GenerateEvent event;
  while (first->Read(&event)) {
  }
  EXPECT_TRUE(first->Finish().ok());
  server_.engine().AnswerWith({'k'});
  EXPECT_TRUE(server_.Generate(TextRequest("z", "same")).status.ok());  // free again
}

TEST_F(GenerationServiceTest, AFailureAfterAcceptanceEndsWithErrorAndItsStatus) {
  const struct {
    absl::Status engine;
    grpc::StatusCode wire;
  } cases[] = {{absl::InternalError("NaN in the logits"), grpc::StatusCode::INTERNAL},
               {absl::DeadlineExceededError("queue_timeout"), grpc::StatusCode::DEADLINE_EXCEEDED},
               {absl::UnavailableError("shutting down"), grpc::StatusCode::UNAVAILABLE}};
  size_t n = 0;
  for (const auto& test : cases) {
    const Stream stream = server_.Generate(TextRequest("x"), [&](PuppetEngine& engine) {
      engine.Finish(engine.WaitForRequest(n).id, FinishReason::kError, test.engine);
    });
    ++n;
    EXPECT_EQ(stream.status.error_code(), test.wire);
    ASSERT_TRUE(stream.finished.has_value());
    EXPECT_EQ(stream.finished->reason(), v1::ERROR);
  }
}

TEST_F(GenerationServiceTest, AnOversizedMessageIsRefusedByGrpcWithoutRetryInfo) {
  ServerConfig config = LoopbackConfig();
  config.max_message_bytes = 2000;
  RunningServer small(config);
  small.engine().AnswerWith({'k'});
  EXPECT_TRUE(small.Generate(TextRequest(std::string(1000, 'x'))).status.ok());
  const Stream stream = small.Generate(TextRequest(std::string(2001, 'x')));
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_FALSE(DetailOf<google::rpc::RetryInfo>(stream.status).has_value());
}

TEST_F(GenerationServiceTest, ACompressedMessageIsRefusedBeforeItIsInflated) {
  server_.engine().AnswerWith({'k'});
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  const auto reader =
      server_.generation().Generate(&context, TextRequest(std::string(10'000, 'x')));
  v1::GenerateEvent event;
  EXPECT_FALSE(reader->Read(&event));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("'gzip' is disabled"));
  EXPECT_EQ(server_.engine().num_requests(), 0u);
}

// ---- Cancellation ----

TEST_F(GenerationServiceTest, AClientThatCancelsFreesTheEngine) {
  grpc::ClientContext context;
  const auto reader = server_.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  server_.engine().Generate(id, 'a');
  v1::GenerateEvent event;
  EXPECT_TRUE(reader->Read(&event));
  context.TryCancel();
  server_.engine().WaitForCancel(id);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerationServiceTest, ACancelledUnaryCallFreesTheEngine) {
  grpc::ClientContext context;
  v1::GenerateResult result;
  std::thread canceller([&] {
    const SequenceId id = server_.engine().WaitForRequest(0).id;
    context.TryCancel();
    server_.engine().WaitForCancel(id);
  });
  EXPECT_EQ(server_.generation().GenerateOnce(&context, TextRequest("x"), &result).error_code(),
            grpc::StatusCode::CANCELLED);
  canceller.join();
}

TEST_F(GenerationServiceTest, ADeadlineFreesTheEngine) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const auto reader = server_.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  server_.engine().WaitForCancel(id);
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

}  // namespace
}  // namespace bst
