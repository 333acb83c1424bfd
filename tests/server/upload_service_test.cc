// GenerateUpload over loopback, with a puppet for an engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/generation_service.h"
#include "server/message_readers.h"
#include "server/upload_reactor.h"
#include "tests/server/http_get.h"
#include "tests/server/running_server.h"
#include "tests/support/sanitized.h"
#include "tests/support/wait_until.h"

namespace bst {
namespace {

using testing::HasSubstr;

using UploadStream =
    std::unique_ptr<grpc::ClientReaderWriter<v1::GenerateUploadPart, v1::GenerateEvent>>;

v1::GenerateUploadPart First(const v1::GenerateRequest& request = {}) {
  v1::GenerateUploadPart part;
  *part.mutable_request() = request;
  return part;
}
v1::GenerateUploadPart Text(const std::string& text) {
  v1::GenerateUploadPart part;
  part.set_text(text);
  return part;
}
v1::GenerateUploadPart Ids(size_t count, uint32_t id) {
  v1::GenerateUploadPart part;
  for (size_t i = 0; i < count; ++i) part.mutable_token_ids()->add_ids(id);
  return part;
}

std::string TextOf(const std::vector<PuppetEngine::Appended>& appended) {
  std::string text;
  for (const auto& part : appended) {
    for (const TokenId token : part.tokens) {
      if (token.value() < 256) text += static_cast<char>(token.value());
    }
  }
  return text;
}

class UploadServiceTest : public testing::Test {
 protected:
  void Open() { stream_ = server_.generation().GenerateUpload(&context_); }
  // Reads to the end.
  Stream Drain() {
    Stream result;
    v1::GenerateEvent event;
    while (stream_->Read(&event)) result.Add(event);
    result.status = stream_->Finish();
    return result;
  }
  // Sends parts and the end of the prompt, whatever becomes of them.
  Stream Send(const std::vector<v1::GenerateUploadPart>& parts) {
    Open();
    for (const auto& part : parts) {
      if (!stream_->Write(part)) break;
    }
    stream_->WritesDone();
    return Drain();
  }
  PuppetEngine& engine() { return server_.engine(); }

  RunningServer server_;
  grpc::ClientContext context_;
  UploadStream stream_;
};

TEST_F(UploadServiceTest, ThePromptReachesTheEngineWhileItArrives) {
  v1::GenerateRequest request = TextRequest("Once ", "mine");
  request.mutable_output()->set_echo(true);
  Open();
  stream_->Write(First(request));
  const PuppetEngine::Request submitted = engine().WaitForRequest(0);
  EXPECT_TRUE(submitted.generate->prompt_open);
  EXPECT_EQ(submitted.generate->prompt.size(), 6u);  // bos
  stream_->Write(Text("upon"));
  EXPECT_EQ(TextOf(engine().WaitForAppended(submitted.id, 1)), "upon");
  engine().Progress(submitted.id, 10, 10);
  v1::GenerateEvent event;
  Stream head;
  while (head.progress.empty() && stream_->Read(&event)) head.Add(event);
  EXPECT_EQ(head.accepted->request_id(), "mine");
  EXPECT_EQ(head.progress.front().total_tokens(), 10u);  // and the client has not finished
  stream_->WritesDone();
  EXPECT_EQ(engine().WaitForAppended(submitted.id, 2).back().end, PromptEnd::kComplete);
  engine().GenerateText(submitted.id, "ok");
  engine().Finish(submitted.id, FinishReason::kMaxTokens);
  const Stream tail = Drain();
  EXPECT_TRUE(tail.status.ok()) << tail.status.error_message();
  EXPECT_EQ(tail.text, "ok");
  EXPECT_EQ(head.echo_text + tail.echo_text, "Once upon");
}

TEST_F(UploadServiceTest, ProgressIsForClientsThatWantIt) {
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_output()->set_prompt_progress(false);
  std::thread player([this] {
    const SequenceId id = engine().WaitForRequest(0).id;
    engine().WaitForAppended(id, 1);
    engine().Progress(id, 2, 2);
    engine().Finish(id, FinishReason::kMaxTokens);
  });
  const Stream stream = Send({First(request)});
  player.join();
  EXPECT_TRUE(stream.status.ok());
  EXPECT_TRUE(stream.progress.empty());
}

TEST_F(UploadServiceTest, ReadsNoMoreWhileTooMuchIsUnread) {
  RunningServer server(LoopbackConfig(), [] {
    ModelInfo info = PuppetModelInfo();
    info.max_prompt_tokens = 10'000'000;
    return info;
  }());
  grpc::ClientContext context;
  UploadStream stream = server.generation().GenerateUpload(&context);
  constexpr size_t kPart = 100'000;
  std::thread writer([&stream] {
    stream->Write(First());
    for (int i = 0; i < 6; ++i) stream->Write(Ids(kPart, 'x'));
    stream->WritesDone();
  });
  const SequenceId id = server.engine().WaitForRequest(0).id;
  // Three parts are more than may be unread; the fourth has to wait. Each is large: a sign of life
  // when it came, and its tokens.
  EXPECT_EQ(server.engine().WaitForAppended(id, 6).size(), 6u);
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(server.engine().AppendedTo(id).size(), 6u);
  server.engine().Progress(id, 3 * kPart - kMaxUnreadTokens - 1, 3 * kPart);
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(server.engine().AppendedTo(id).size(), 6u);
  server.engine().Progress(id, 3 * kPart - kMaxUnreadTokens, 3 * kPart);
  EXPECT_EQ(server.engine().WaitForAppended(id, 8).size(), 8u);
  for (size_t read = 4; read <= 6; ++read) {
    server.engine().Progress(id, static_cast<int64_t>(read * kPart), 6 * kPart);
  }
  EXPECT_EQ(server.engine().WaitForAppended(id, 13).back().end, PromptEnd::kComplete);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  writer.join();
  v1::GenerateEvent event;
  while (stream->Read(&event)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
}

// It might wait for slots that others hold who wait for room in the queue: so it is read until its
// turn can come, and no further.
TEST_F(UploadServiceTest, AFillingQueueReadsNoMoreThanABlockAhead) {
  ServerConfig config = LoopbackConfig();
  config.engine.max_queue_tokens = 1000;
  RunningServer server(config);
  const auto window = static_cast<size_t>(server.engine().info().window);
  server.engine().set_queue_tokens(501);
  grpc::ClientContext context;
  const UploadStream stream = server.generation().GenerateUpload(&context);
  stream->Write(First());
  stream->Write(Ids(window, 'x'));  // Not a block: its last token might be the prompt's.
  stream->Write(Ids(1, 'x'));
  stream->Write(Ids(1, 'y'));
  stream->WritesDone();
  const SequenceId id = server.engine().WaitForRequest(0).id;
  EXPECT_EQ(server.engine().WaitForAppended(id, 2).size(), 2u);
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(server.engine().AppendedTo(id).size(), 2u);
  server.engine().Progress(id, 1, static_cast<int64_t>(window) + 1);  // It has started.
  EXPECT_EQ(server.engine().WaitForAppended(id, 4).back().end, PromptEnd::kComplete);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  v1::GenerateEvent event;
  while (stream->Read(&event)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
}

// Refused for what others hold: RESOURCE_EXHAUSTED that asks to come back.
void ExpectComeBackLater(const Stream& stream, const grpc::ClientContext& context) {
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(stream.status).has_value());
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  ASSERT_TRUE(stream.finished.has_value());
  EXPECT_EQ(stream.finished->reason(), v1::ERROR);
}

TEST_F(UploadServiceTest, APartThatFindsTheQueueFullEndsTheRequestWithAdvice) {
  Open();
  stream_->Write(First(TextRequest("a")));
  const SequenceId id = engine().WaitForRequest(0).id;
  engine().RefuseToAppendWith(absl::ResourceExhaustedError("queue is full"));
  stream_->Write(Text("b"));
  ExpectComeBackLater(Drain(), context_);
  EXPECT_TRUE(engine().was_cancelled(id));
}

v1::GenerateUploadPart Garbage() {
  v1::GenerateUploadPart part;
  Spoil(part, v1::GenerateUploadPart::kTokenIdsFieldNumber);
  return part;
}

void ExpectMalformedPart(const Stream& stream) {
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(stream.status.error_message(), HasSubstr("part is no bst.v1.GenerateUploadPart"));
  const auto details = DetailOf<google::rpc::BadRequest>(stream.status);
  ASSERT_TRUE(details.has_value());
  EXPECT_EQ(details->field_violations(0).field(), "part");
}

// It is not the end of the prompt, which would be answered as if the client had asked for less.
TEST_F(UploadServiceTest, APartThatCannotBeParsedEndsTheRequest) {
  size_t n = 0;
  for (const auto& bad : {Text("\xff"), Text("half a character: \xe2\x82"), Garbage()}) {
    grpc::ClientContext context;
    stream_ = server_.generation().GenerateUpload(&context);
    stream_->Write(First(TextRequest("a")));
    const SequenceId id = engine().WaitForRequest(n++).id;
    stream_->Write(bad);
    const Stream stream = Drain();
    ExpectMalformedPart(stream);
    EXPECT_TRUE(engine().was_cancelled(id));
    EXPECT_THAT(engine().AppendedTo(id), testing::IsEmpty());
    ASSERT_TRUE(stream.finished.has_value());
    EXPECT_EQ(stream.finished->reason(), v1::ERROR);
  }
}

TEST_F(UploadServiceTest, AFirstPartThatCannotBeParsedIsRefused) {
  const Stream stream = Send({First(TextRequest("\xff"))});
  ExpectMalformedPart(stream);
  EXPECT_EQ(engine().num_requests(), 0u);
}

TEST_F(UploadServiceTest, WhatALaterPartIsRefusedForIsCounted) {
  RunningServer server(ConfigWithMetrics(), [] {
    ModelInfo info = PuppetModelInfo();
    info.max_prompt_tokens = 10;
    return info;
  }());
  size_t n = 0;
  for (const auto& bad : {Ids(11, 'x'), Ids(1, 259)}) {
    grpc::ClientContext context;
    stream_ = server.generation().GenerateUpload(&context);
    stream_->Write(First());
    server.engine().WaitForRequest(n++);
    stream_->Write(bad);
    EXPECT_EQ(Drain().status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  const std::string metrics = HttpGet(server.server().addresses().metrics, "/metrics");
  EXPECT_THAT(metrics, HasSubstr("bst_requests_rejected_total{reason=\"too_long\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("bst_requests_rejected_total{reason=\"invalid\"} 1\n"));
}

TEST_F(UploadServiceTest, WhatComesAfterItsEndIsNotRefused) {
  RunningServer server(ConfigWithMetrics());
  grpc::ClientContext context;
  stream_ = server.generation().GenerateUpload(&context);
  stream_->Write(First());  // no prompt: its end would be one that is empty
  server.engine().Finish(server.engine().WaitForRequest(0).id, FinishReason::kCancelled,
                         absl::DeadlineExceededError("queue_timeout passed"));
  EXPECT_EQ(Drain().status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(server.WaitForUnreadCalls(0));  // gRPC is done with it, and its last read
  EXPECT_THAT(HttpGet(server.server().addresses().metrics, "/metrics"),
              HasSubstr("bst_requests_rejected_total{reason=\"invalid\"} 0\n"));
}

// A text without a space has no place where it can be cut: the server holds all of it.
TEST_F(UploadServiceTest, TextThatCannotBeCutIsBoundedOfAllUploadsTogether) {
  if (kSanitized)
    GTEST_SKIP() << "two versions of Protobuf cannot be loaded: sentencepiece_model.cc";
  ServerConfig config = LoopbackConfig();
  config.engine.max_queue_tokens = 5000;  // so 20,000 bytes
  RunningServer server(config, [] {
    ModelInfo info = PuppetModelInfo();
    info.tokenizer_type = "sentencepiece";
    info.tokenizer_path = "models/bst-books-4m/tokenizer.model";
    info.vocab_size = 4096;
    return info;
  }());
  const std::string word(12'000, 'x');
  grpc::ClientContext first_context, second_context;
  const UploadStream first = server.generation().GenerateUpload(&first_context);
  first->Write(First());
  first->Write(Text(word));
  const SequenceId first_id = server.engine().WaitForRequest(0).id;
  EXPECT_TRUE(server.engine().WaitForAppended(first_id, 1).front().tokens.empty());

  stream_ = server.generation().GenerateUpload(&second_context);
  stream_->Write(First());
  for (int i = 0; i < 10; ++i) stream_->Write(Text("Words that can be cut cost nothing. "));
  const SequenceId second_id = server.engine().WaitForRequest(1).id;
  EXPECT_EQ(server.engine().WaitForAppended(second_id, 10).size(), 10u);
  stream_->Write(Text(word));
  ExpectComeBackLater(Drain(), second_context);
  EXPECT_TRUE(server.engine().was_cancelled(second_id));

  first->Write(Text(word));  // Alone it may hold what it likes.
  first->WritesDone();
  // The words, a sign of life when the end came, and the end.
  EXPECT_EQ(server.engine().WaitForAppended(first_id, 4).back().end, PromptEnd::kComplete);
  server.engine().Finish(first_id, FinishReason::kMaxTokens);
  v1::GenerateEvent event;
  while (first->Read(&event)) {
  }
  EXPECT_TRUE(first->Finish().ok());
}

TEST_F(UploadServiceTest, APartThatWaitsToBeReadIsASignOfLifeAtOnce) {
  Open();
  stream_->Write(First());
  const SequenceId id = engine().WaitForRequest(0).id;
  std::atomic<int> held = 0;
  absl::Notification let_go;
  engine().AnswerWith({'y'});
  engine().set_before_submit([&] {
    ++held;
    let_go.WaitForNotification();
  });
  const std::string large(MessageReaders::kSmallBytes + 1, 'x');
  std::vector<std::thread> others;
  for (int i = 0; i < MessageReaders::DefaultThreads(); ++i)
    others.emplace_back([&] { server_.Generate(TextRequest(large)); });
  EXPECT_TRUE(WaitUntil([&] { return held == MessageReaders::DefaultThreads(); }));
  stream_->Write(Text(large));
  EXPECT_THAT(engine().WaitForAppended(id, 1).front().tokens, testing::IsEmpty());
  EXPECT_EQ(engine().AppendedTo(id).size(), 1u);
  let_go.Notify();
  EXPECT_EQ(TextOf(engine().WaitForAppended(id, 2)), large);
  for (std::thread& other : others) other.join();
  engine().Finish(id, FinishReason::kMaxTokens);
  stream_->WritesDone();
  Drain();
}

// Or a text without spaces would run into the timeout while it arrives, and one of crumbs never.
TEST_F(UploadServiceTest, TextThatIsNoTokensYetIsASignOfLifeForEachBlock) {
  if (kSanitized)
    GTEST_SKIP() << "two versions of Protobuf cannot be loaded: sentencepiece_model.cc";
  RunningServer server(LoopbackConfig(), [] {
    ModelInfo info = PuppetModelInfo();
    info.tokenizer_type = "sentencepiece";
    info.tokenizer_path = "models/bst-books-4m/tokenizer.model";
    info.vocab_size = 4096;
    return info;
  }());
  grpc::ClientContext context;
  const UploadStream stream = server.generation().GenerateUpload(&context);
  stream->Write(First(TextRequest("One word and a")));
  const SequenceId id = server.engine().WaitForRequest(0).id;
  server.engine().Progress(id, 1, 1);
  v1::GenerateEvent event;
  while (stream->Read(&event) && !event.has_prefill_progress()) {
  }
  stream->Write(Text("n"));
  stream->Write(Text(std::string(7, 'n')));  // A block is 8.
  EXPECT_THAT(server.engine().WaitForAppended(id, 1).front().tokens, testing::IsEmpty());
  stream->Write(Text("n"));
  stream->Write(Text("d the "));
  EXPECT_THAT(server.engine().WaitForAppended(id, 2)[1].tokens, testing::Not(testing::IsEmpty()));
  // Also beside tokens, and when some of it came with them.
  stream->Write(Text("a word nnnnn"));
  EXPECT_THAT(server.engine().WaitForAppended(id, 3)[2].tokens, testing::Not(testing::IsEmpty()));
  stream->Write(Text("nnn"));
  EXPECT_THAT(server.engine().WaitForAppended(id, 4)[3].tokens, testing::IsEmpty());
  // A large part is one when it comes, too; crumbs behind much text are none.
  stream->Write(Text(std::string(MessageReaders::kSmallBytes + 1, 'n')));
  for (const auto& part :
       {server.engine().WaitForAppended(id, 6)[4], server.engine().AppendedTo(id)[5]})
    EXPECT_THAT(part.tokens, testing::IsEmpty());
  for (int i = 0; i < 4; ++i) stream->Write(Text("n"));
  stream->Write(Text("d the "));
  EXPECT_THAT(server.engine().WaitForAppended(id, 7)[6].tokens, testing::Not(testing::IsEmpty()));
  stream->WritesDone();
  server.engine().WaitForAppended(id, 8);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  while (stream->Read(&event)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(UploadServiceTest, TheFirstPartMustBeTheRequest) {
  for (const auto& parts :
       {std::vector<v1::GenerateUploadPart>{Text("x")}, {v1::GenerateUploadPart()}, {}}) {
    grpc::ClientContext context;
    const UploadStream stream = server_.generation().GenerateUpload(&context);
    for (const auto& part : parts) stream->Write(part);
    stream->WritesDone();
    v1::GenerateEvent event;
    EXPECT_FALSE(stream->Read(&event));
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    const auto details = DetailOf<google::rpc::BadRequest>(status);
    ASSERT_TRUE(details.has_value());
    EXPECT_EQ(details->field_violations(0).field(), "part");
  }
  EXPECT_EQ(engine().num_requests(), 0u);
}

TEST_F(UploadServiceTest, AWrongRequestIsRefusedBeforeItIsQueued) {
  v1::GenerateRequest request;
  request.mutable_sampling()->set_top_p(2);
  const Stream stream = Send({First(request), Text("x")});
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(stream.events.empty());
  EXPECT_EQ(engine().num_requests(), 0u);
}

TEST_F(UploadServiceTest, AWrongPartEndsTheRequest) {
  const struct {
    std::vector<v1::GenerateUploadPart> parts;
    const char* message;
  } cases[] = {
      {{First(), Text("a"), Ids(1, 1)}, "part is token_ids, must be text"},
      {{First(), Ids(3, 1), Ids(1, 300)}, "token_ids.ids[3] is 300"},
      {{First(TextRequest("a")), First()}, "part is request, which only the first may be"},
      {{First(), v1::GenerateUploadPart()}, "part is not set"},
      {{First(), Ids(100'001, 1)}, "token_ids.ids has at least 100001 tokens, limit 100000"},
      {{First()}, "prompt is empty"},
      {{First(), Text("")}, "text is empty"},
  };
  size_t n = 0;
  for (const auto& test : cases) {
    grpc::ClientContext context;
    stream_ = server_.generation().GenerateUpload(&context);
    for (const auto& part : test.parts) stream_->Write(part);
    stream_->WritesDone();
    const Stream stream = Drain();
    EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << test.message;
    EXPECT_THAT(stream.status.error_message(), HasSubstr(test.message));
    EXPECT_TRUE(DetailOf<google::rpc::BadRequest>(stream.status).has_value()) << test.message;
    ASSERT_TRUE(stream.finished.has_value()) << test.message;
    EXPECT_EQ(stream.finished->reason(), v1::ERROR);
    EXPECT_TRUE(engine().was_cancelled(engine().WaitForRequest(n).id));
    ++n;
  }
}

TEST_F(UploadServiceTest, ARequestThatEndsBeforeItsPromptEndsTheStream) {
  Open();
  stream_->Write(First(TextRequest("x")));
  engine().Finish(engine().WaitForRequest(0).id, FinishReason::kError,
                  absl::DeadlineExceededError("no more of the prompt came within 60 s"));
  const Stream stream = Drain();  // without the end of the prompt
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(stream.finished->reason(), v1::ERROR);
}

TEST_F(UploadServiceTest, PartsAfterTheEndOfTheRequestAreNotWaitedFor) {
  Open();
  stream_->Write(First(TextRequest("x")));
  engine().Finish(engine().WaitForRequest(0).id, FinishReason::kMaxTokens);
  for (int i = 0; i < 100 && stream_->Write(Text(std::string(100'000, 'x'))); ++i) {
  }
  EXPECT_TRUE(Drain().status.ok());
}

TEST_F(UploadServiceTest, AClientThatGoesAwayInTheMiddleFreesTheEngine) {
  Open();
  stream_->Write(First(TextRequest("x")));
  stream_->Write(Text("y"));
  const SequenceId id = engine().WaitForRequest(0).id;
  engine().WaitForAppended(id, 1);
  context_.TryCancel();
  engine().WaitForCancel(id);
  EXPECT_EQ(Drain().status.error_code(), grpc::StatusCode::CANCELLED);
}

// gRPC tells of it as of the end of the parts, and seldom before it knows of the cancellation: once
// in thousands of calls on a busy machine the request runs for a moment. Unseen, all would.
TEST_F(UploadServiceTest, AClientThatLeavesHasNotCompletedItsPrompt) {
  engine().set_on_cancel(PuppetEngine::OnCancel::kLeaveToTest);
  int completed = 0;
  for (size_t i = 0; i < 200; ++i) {
    grpc::ClientContext context;
    stream_ = server_.generation().GenerateUpload(&context);
    stream_->Write(First(TextRequest("x")));
    const SequenceId id = engine().WaitForRequest(i).id;
    context.TryCancel();
    EXPECT_EQ(Drain().status.error_code(), grpc::StatusCode::CANCELLED);
    engine().WaitForCancel(id);
    completed += engine().AppendedTo(id).empty() ? 0 : 1;
    engine().Finish(id, FinishReason::kCancelled, absl::CancelledError("cancelled"));
  }
  EXPECT_LE(completed, 2);
}

TEST_F(UploadServiceTest, AClientThatLeavesBeforeItsFirstPartMadeNoMistake) {
  RunningServer server(ConfigWithMetrics());
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    stream_ = server.generation().GenerateUpload(&context);
    absl::SleepFor(absl::Milliseconds(20));  // so that the server has seen the call
    context.TryCancel();
    EXPECT_EQ(Drain().status.error_code(), grpc::StatusCode::CANCELLED);
  }
  server.server().Drain();  // waits for what is counted last
  const std::string metrics = HttpGet(server.server().addresses().metrics, "/metrics");
  EXPECT_THAT(metrics, HasSubstr("bst_requests_total{code=\"CANCELLED\",finish_reason=\"\","
                                 "rpc=\"GenerateUpload\"}"));
  EXPECT_THAT(metrics, testing::Not(HasSubstr("code=\"INVALID_ARGUMENT\"")));
}

TEST_F(UploadServiceTest, ClientsWithoutAKeyAreRefusedBeforeTheirFirstPart) {
  const std::string path = absl::StrCat(testing::TempDir(), "/upload_keys_", getpid());
  std::ofstream(path) << "secret\n";
  ServerConfig config = LoopbackConfig();
  config.auth_token_file = path;
  RunningServer server(config);
  grpc::ClientContext context;
  const UploadStream stream = server.generation().GenerateUpload(&context);
  v1::GenerateEvent event;
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

// The engine, which has a timeout for the parts after it, does not know of the call yet.
TEST_F(UploadServiceTest, AFirstPartThatNeverComesIsGivenUp) {
  ServerConfig config = LoopbackConfig();
  config.engine.upload_timeout = absl::Milliseconds(100);
  RunningServer server(config);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  const absl::Time begin = absl::Now();
  stream_ = server.generation().GenerateUpload(&context);
  const Stream silent = Drain();
  EXPECT_EQ(silent.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(silent.status.error_message(), HasSubstr("first part did not come within 100ms"));
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(100));
  EXPECT_EQ(server.engine().num_requests(), 0u);
}

TEST_F(UploadServiceTest, AFirstPartThatComesInTimeIsNotGivenUpLater) {
  // On a machine that is too busy to bring it in time a later try has more of it.
  for (absl::Duration limit = absl::Milliseconds(100); limit < absl::Minutes(1); limit *= 4) {
    ServerConfig config = LoopbackConfig();
    config.engine.upload_timeout = limit;
    RunningServer server(config);
    grpc::ClientContext context;
    stream_ = server.generation().GenerateUpload(&context);
    stream_->Write(First(TextRequest("x")));
    v1::GenerateEvent accepted;
    if (!stream_->Read(&accepted)) {
      EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
      continue;
    }
    const SequenceId id = server.engine().WaitForRequest(0).id;
    absl::SleepFor(2 * limit);  // the timer goes off, if it is still set
    stream_->WritesDone();
    EXPECT_EQ(server.engine().WaitForAppended(id, 1).back().end, PromptEnd::kComplete);
    server.engine().Finish(id, FinishReason::kMaxTokens);
    EXPECT_TRUE(Drain().status.ok());
    return;
  }
  FAIL() << "a first part takes a minute";
}

// The timer and the first part at the same moment: one of them ends it, once.
TEST_F(UploadServiceTest, AFirstPartThatComesWithItsTimerIsTakenOrGivenUp) {
  ServerConfig config = LoopbackConfig();
  config.engine.upload_timeout = absl::Milliseconds(2);
  RunningServer server(config);
  server.engine().AnswerWith({'y'});
  for (int i = 0; i < 200; ++i) {
    grpc::ClientContext context;
    stream_ = server.generation().GenerateUpload(&context);
    absl::SleepFor(absl::Microseconds(1000 + 10 * i));
    stream_->Write(First(TextRequest("x")));
    stream_->WritesDone();
    const Stream stream = Drain();
    if (stream.status.ok()) {
      EXPECT_EQ(stream.text, "y");
    } else {
      EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
      EXPECT_TRUE(stream.events.empty());
    }
  }
  const absl::Time begin = absl::Now();
  server.server().Drain();  // waits for an RPC that never ends
  EXPECT_LT(absl::Now() - begin, config.grace / 2);
}

TEST_F(UploadServiceTest, ADrainDoesNotWaitForFirstParts) {
  Open();
  absl::SleepFor(absl::Milliseconds(200));  // The server has seen it by then, or refuses it.
  const absl::Time begin = absl::Now();
  server_.server().Drain();  // has 10 s for what runs
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
  const Stream silent = Drain();
  EXPECT_EQ(silent.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(silent.status).has_value());
}

TEST_F(UploadServiceTest, ADrainingServerRefusesUploads) {
  engine().Drain();
  const Stream stream = Send({First(TextRequest("x"))});
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace bst
