#include "server/control_service.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/server/running_server.h"

namespace bst {
namespace {

class ControlServiceTest : public testing::Test {
 protected:
  grpc::Status Abort(const std::string& request_id) {
    v1::AbortRequest request;
    if (!request_id.empty()) request.set_request_id(request_id);
    grpc::ClientContext context;
    v1::AbortResponse response;
    return server_.control().Abort(&context, request, &response);
  }

  RunningServer server_;
};

TEST_F(ControlServiceTest, ServerInfo) {
  grpc::ClientContext context;
  v1::ServerInfo info;
  ASSERT_TRUE(server_.control().GetServerInfo(&context, v1::GetServerInfoRequest(), &info).ok());
  EXPECT_FALSE(info.version().empty());
  EXPECT_EQ(info.grpc_address(), server_.server().addresses().grpc);
  EXPECT_EQ(info.metrics_address(), server_.server().addresses().metrics);
  EXPECT_EQ(info.control_address(), server_.server().addresses().control);
  EXPECT_EQ(info.model(), "puppet");
  EXPECT_GT(info.start_time_seconds(), 1.7e9);
}

TEST_F(ControlServiceTest, Load) {
  grpc::ClientContext stream_context;
  const auto reader = server_.generation().Generate(&stream_context, TextRequest("x"));
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  grpc::ClientContext context;
  v1::Load load;
  ASSERT_TRUE(server_.control().GetLoad(&context, v1::GetLoadRequest(), &load).ok());
  EXPECT_EQ(load.running(), 1u);
  EXPECT_EQ(load.slots_total(), 4u);
  EXPECT_TRUE(load.healthy());
  EXPECT_FALSE(load.draining());
  EXPECT_EQ(load.unread_calls(), 0u);
  server_.engine().Finish(id, FinishReason::kMaxTokens);
}

TEST_F(ControlServiceTest, AbortEndsTheStreamWithCancelled) {
  EXPECT_EQ(Abort("").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Abort("unknown").error_code(), grpc::StatusCode::NOT_FOUND);
  const Stream stream = server_.Generate(TextRequest("x", "victim"), [this](PuppetEngine& engine) {
    const SequenceId id = engine.WaitForRequest(0).id;
    engine.GenerateText(id, "some");
    EXPECT_TRUE(Abort("victim").ok());
    engine.WaitForCancel(id);
  });
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(stream.text, "some");
  ASSERT_TRUE(stream.finished.has_value());
  EXPECT_EQ(stream.finished->reason(), v1::CANCELLED);
  EXPECT_EQ(stream.finished->usage().generated_tokens(), 4u);
  EXPECT_EQ(Abort("victim").error_code(), grpc::StatusCode::NOT_FOUND);
}

// Copied into the answer it would not fit into the trailers.
TEST_F(ControlServiceTest, AnIdThatNoRequestCanHaveIsAnInvalidArgument) {
  for (const std::string& id : {std::string(20'000, 'x'), std::string("a b")}) {
    const grpc::Status status = Abort(id);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    const auto details = DetailOf<google::rpc::BadRequest>(status);
    ASSERT_TRUE(details.has_value());
    EXPECT_EQ(details->field_violations(0).field(), "request_id");
  }
  EXPECT_EQ(Abort(std::string(128, 'x')).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ControlServiceTest, AMalformedRequestIsAnInvalidArgument) {
  const grpc::Status status = Abort("\xff");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message().find("request is no bst.v1.AbortRequest"), 0u)
      << status.error_message();
}

TEST_F(ControlServiceTest, DrainCountsDownToNothing) {
  grpc::ClientContext stream_context;
  const auto stream = server_.generation().Generate(&stream_context, TextRequest("x"));
  const SequenceId id = server_.engine().WaitForRequest(0).id;

  grpc::ClientContext context;
  const auto drain = server_.control().Drain(&context, v1::DrainRequest());
  v1::DrainProgress progress;
  ASSERT_TRUE(drain->Read(&progress));
  EXPECT_EQ(progress.running(), 1u);
  EXPECT_EQ(server_.Generate(TextRequest("y")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  server_.engine().Finish(id, FinishReason::kMaxTokens);
  while (drain->Read(&progress)) {
  }
  EXPECT_TRUE(drain->Finish().ok());
  EXPECT_EQ(progress.running(), 0u);
}

TEST_F(ControlServiceTest, ADrainWaitsForOutputThatIsNotReadYet) {
  grpc::ClientContext stream_context;
  v1::GenerateRequest request = TextRequest("x");
  request.mutable_stopping()->set_max_new_tokens(1'000'000);
  request.mutable_output()->set_top_logprobs(20);
  const auto stream = server_.generation().Generate(&stream_context, request);
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  const std::vector<TokenLogprob> top(20, {TokenId('a'), -1});
  // More than gRPC takes for a reader that does not read.
  for (int i = 0; i < 100'000; ++i) server_.engine().Generate(id, 'a', -1, top);
  server_.engine().Finish(id, FinishReason::kMaxTokens);

  grpc::ClientContext context;
  const auto drain = server_.control().Drain(&context, v1::DrainRequest());
  v1::DrainProgress progress;
  for (int i = 0; i < 2; ++i) {  // Nothing runs, so the first would be the last.
    ASSERT_TRUE(drain->Read(&progress));
    EXPECT_EQ(progress.running() + progress.waiting(), 0u);
  }
  v1::GenerateEvent event;
  while (stream->Read(&event)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
  while (drain->Read(&progress)) {
  }
  EXPECT_TRUE(drain->Finish().ok());
}

TEST_F(ControlServiceTest, ACompressedMessageIsRefused) {
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::AbortRequest request;
  request.set_request_id(std::string(10'000, 'x'));
  v1::AbortResponse response;
  EXPECT_EQ(server_.control().Abort(&context, request, &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ControlServiceTest, ACancelledDrainEnds) {
  grpc::ClientContext stream_context;
  const auto stream = server_.generation().Generate(&stream_context, TextRequest("x"));
  const SequenceId id = server_.engine().WaitForRequest(0).id;
  grpc::ClientContext context;
  const auto drain = server_.control().Drain(&context, v1::DrainRequest());
  v1::DrainProgress progress;
  ASSERT_TRUE(drain->Read(&progress));
  context.TryCancel();
  EXPECT_EQ(drain->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server_.engine().Finish(id, FinishReason::kMaxTokens);
}

TEST(ControlServiceOff, IsNotOnTheDataPort) {
  ServerConfig config = LoopbackConfig();
  config.control_listen = "";
  RunningServer server(config);
  EXPECT_EQ(server.server().addresses().control, "");
  const auto control = v1::Control::NewStub(
      grpc::CreateChannel(server.server().addresses().grpc, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::Load load;
  EXPECT_EQ(control->GetLoad(&context, v1::GetLoadRequest(), &load).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace bst
