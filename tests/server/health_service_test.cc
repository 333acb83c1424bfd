#include "server/health_service.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/server/running_server.h"

namespace bst {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class HealthServiceTest : public testing::Test {
 protected:
  // The status, or what the call failed with.
  static std::string Check(grpc::health::v1::Health::Stub& stub, const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    grpc::ClientContext context;
    HealthCheckResponse response;
    const grpc::Status status = stub.Check(&context, request, &response);
    if (!status.ok()) return "code " + std::to_string(status.error_code());
    return HealthCheckResponse::ServingStatus_Name(response.status());
  }
  std::string Check(const std::string& service) { return Check(server_.health(), service); }

  RunningServer server_;
};

TEST_F(HealthServiceTest, KnownServicesServe) {
  EXPECT_EQ(Check(""), "SERVING");
  EXPECT_EQ(Check("bst.v1.Generation"), "SERVING");
  EXPECT_EQ(Check("bst.v1.Unknown"), "code 5");
  const auto control = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
      server_.server().addresses().control, grpc::InsecureChannelCredentials()));
  EXPECT_EQ(Check(*control, "bst.v1.Control"), "SERVING");
}

TEST_F(HealthServiceTest, WatchTellsEveryChange) {
  HealthCheckRequest request;
  request.set_service("bst.v1.Generation");
  grpc::ClientContext context;
  const auto reader = server_.health().Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_.engine().set_healthy(false);
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Check(""), "NOT_SERVING");
  server_.engine().set_healthy(true);
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_.engine().Drain();
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(HealthMonitorTest, NotServingWhenStepsStopAndAgainWhenTheyGoOn) {
  ServerConfig config = LoopbackConfig();
  config.stall_limit = absl::Milliseconds(300);
  RunningServer server(config);
  grpc::ClientContext context, watch_context;
  const auto reader = server.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server.engine().WaitForRequest(0).id;
  const auto watch = server.health().Watch(&watch_context, HealthCheckRequest());
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  ASSERT_TRUE(watch->Read(&response));  // the puppet's strings hang still
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  server.engine().GenerateText(id, "a");
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  watch_context.TryCancel();
  watch->Finish();
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(HealthServiceTest, ALongNameOfAServiceIsNotSentBack) {
  HealthCheckRequest request;
  HealthCheckResponse response;
  request.set_service(std::string(100'000, 'x'));
  grpc::ClientContext context;
  EXPECT_EQ(server_.health().Check(&context, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthServiceTest, WatchOfAnUnknownServiceStaysOpen) {
  HealthCheckRequest request;
  request.set_service("nobody");
  grpc::ClientContext context;
  const auto reader = server_.health().Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(HealthServiceTest, NotServingUntilTheModelIsThere) {
  const auto loading = Server::Start(LoopbackConfig());
  ASSERT_TRUE(loading.ok()) << loading.status();
  const auto channel =
      grpc::CreateChannel((*loading)->addresses().grpc, grpc::InsecureChannelCredentials());
  const auto health = grpc::health::v1::Health::NewStub(channel);
  EXPECT_EQ(Check(*health, ""), "NOT_SERVING");
  const auto generation = v1::Generation::NewStub(channel);
  grpc::ClientContext context;
  v1::ModelInfo info;
  const grpc::Status status = generation->GetModelInfo(&context, v1::GetModelInfoRequest(), &info);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(status).has_value());
  ASSERT_TRUE((*loading)->Serve(std::make_unique<PuppetEngine>()).ok());
  EXPECT_EQ(Check(*health, ""), "SERVING");
}

}  // namespace
}  // namespace bst
