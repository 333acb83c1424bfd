// RunningServer: a Server on free loopback ports with a PuppetEngine behind it, and stubs to call
// it.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "bst/v1/control.grpc.pb.h"
#include "bst/v1/generation.grpc.pb.h"
#include "engine/base/check.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/server.h"
#include "tests/support/puppet_engine.h"
#include "tests/support/wait_until.h"

namespace bst {

// Without metrics over HTTP: that server takes two seconds to stop.
inline ServerConfig LoopbackConfig() {
  ServerConfig config;
  config.engine.model_directory = "puppet";
  config.listen = config.control_listen = "127.0.0.1:0";
  config.metrics_listen = "";
  config.grace = absl::Seconds(10);
  return config;
}

inline ServerConfig ConfigWithMetrics() {
  ServerConfig config = LoopbackConfig();
  config.metrics_listen = "127.0.0.1:0";
  return config;
}

// What a stream of events came to.
struct Stream {
  std::vector<v1::GenerateEvent> events;
  grpc::Status status;

  std::optional<v1::Accepted> accepted;
  std::vector<v1::PrefillProgress> progress;
  std::vector<v1::Tokens> messages, echo;
  std::vector<uint32_t> token_ids;
  std::vector<v1::TokenLogprob> logprobs;
  std::string text, echo_text;
  std::optional<v1::Finished> finished;

  void Add(const v1::GenerateEvent& event) {
    EXPECT_FALSE(finished.has_value()) << "an event after Finished: " << event.ShortDebugString();
    events.push_back(event);
    if (event.has_accepted()) accepted = event.accepted();
    if (event.has_prefill_progress()) progress.push_back(event.prefill_progress());
    if (event.has_tokens() && event.tokens().is_prompt()) {
      echo.push_back(event.tokens());
      echo_text += event.tokens().text();
    } else if (event.has_tokens()) {
      messages.push_back(event.tokens());
      text += event.tokens().text();
      token_ids.insert(token_ids.end(), event.tokens().token_ids().begin(),
                       event.tokens().token_ids().end());
      logprobs.insert(logprobs.end(), event.tokens().logprobs().begin(),
                      event.tokens().logprobs().end());
    }
    if (event.has_finished()) finished = event.finished();
  }
};

// A connection of its own, of a client that takes no more than what it reads.
inline std::shared_ptr<grpc::Channel> NarrowChannel(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // no connection of another test
  arguments.SetSslTargetNameOverride("localhost");
  // Or the window of a stream that nobody reads grows, and with time all of it counts as read.
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

class RunningServer {
 public:
  explicit RunningServer(const ServerConfig& config = LoopbackConfig(),
                         ModelInfo info = PuppetModelInfo()) {
    absl::StatusOr<std::unique_ptr<Server>> started = Server::Start(config);
    BST_CHECK(started.ok(), std::string(started.status().message()));
    server_ = *std::move(started);
    auto puppet = std::make_unique<PuppetEngine>(&server_->observer(), std::move(info));
    engine_ = puppet.get();
    const absl::Status served = server_->Serve(std::move(puppet));
    BST_CHECK(served.ok(), std::string(served.message()));
    ConnectWith(grpc::InsecureChannelCredentials());
  }

  void ConnectWith(const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    const Addresses bound = server_->addresses();
    const auto channel = NarrowChannel(bound.grpc, credentials);
    generation_ = v1::Generation::NewStub(channel);
    health_ = grpc::health::v1::Health::NewStub(channel);
    if (!bound.control.empty()) {
      control_ = v1::Control::NewStub(NarrowChannel(bound.control, credentials));
    }
  }

  Server& server() { return *server_; }
  PuppetEngine& engine() { return *engine_; }
  v1::Generation::Stub& generation() { return *generation_; }
  v1::Control::Stub& control() { return *control_; }
  grpc::health::v1::Health::Stub& health() { return *health_; }

  v1::Load Load() {
    grpc::ClientContext context;
    v1::Load load;
    const grpc::Status status = control_->GetLoad(&context, v1::GetLoadRequest(), &load);
    BST_CHECK(status.ok(), status.error_message());
    return load;
  }
  // Waits until the request has ended also for its RPC, which nothing but the registry can tell.
  void WaitForEnd(const std::string& request_id) {
    v1::AbortRequest request;
    request.set_request_id(request_id);
    EXPECT_TRUE(WaitUntil([&] {
      grpc::ClientContext context;
      v1::AbortResponse response;
      return !control_->Abort(&context, request, &response).ok();
    })) << request_id
        << " has not ended";
  }
  // Waits until so many calls are unread.
  ::testing::AssertionResult WaitForUnreadCalls(uint32_t calls) {
    return WaitUntil([&] { return Load().unread_calls() == calls; })
           << ": " << Load().unread_calls() << " calls are unread";
  }

  // Runs Generate to its end. `play` pulls the engine's strings meanwhile.
  Stream Generate(const v1::GenerateRequest& request,
                  const std::function<void(PuppetEngine&)>& play = {}) {
    std::thread player;
    if (play) player = std::thread([this, &play] { play(*engine_); });
    grpc::ClientContext context;
    Stream stream;
    const auto reader = generation_->Generate(&context, request);
    v1::GenerateEvent event;
    while (reader->Read(&event)) stream.Add(event);
    stream.status = reader->Finish();
    if (player.joinable()) player.join();
    return stream;
  }

 private:
  std::unique_ptr<Server> server_;
  PuppetEngine* engine_ = nullptr;  // the server's
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Control::Stub> control_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

inline v1::GenerateRequest TextRequest(const std::string& text,
                                       const std::string& request_id = "") {
  v1::GenerateRequest request;
  request.set_text(text);
  if (!request_id.empty()) request.set_request_id(request_id);
  return request;
}

// Makes `message` one that cannot be parsed: in its field `number`, which is a message or a string,
// stand bytes that are neither.
inline void Spoil(google::protobuf::Message& message, int number) {
  message.GetReflection()->MutableUnknownFields(&message)->AddLengthDelimited(number, "\xff");
}

// The detail of that type in `status`, if it has one.
template <typename Detail>
std::optional<Detail> DetailOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& any : details.details()) {
    if (Detail detail; any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

}  // namespace bst
