#include "server/server.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/server/http_get.h"
#include "tests/server/running_server.h"
#include "tests/server/self_signed_certificate.h"

namespace bst {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

std::string TempPath(const std::string& name) {
  return testing::TempDir() + "/bst_server_test_" + std::to_string(getpid()) + "_" + name;
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(Server, TheReadyLineNamesEveryPort) {
  RunningServer with_control(ConfigWithMetrics());
  EXPECT_THAT(
      with_control.server().ReadyLine(),
      MatchesRegex("ready grpc=127\\.0\\.0\\.1:[1-9][0-9]* metrics=127\\.0\\.0\\.1:[1-9][0-9]* "
                   "control=127\\.0\\.0\\.1:[1-9][0-9]* model=puppet backend=puppet"));
  ServerConfig config = LoopbackConfig();
  config.control_listen = "";
  RunningServer without(config);
  EXPECT_THAT(without.server().ReadyLine(), HasSubstr(" metrics=off control=off model="));
}

TEST(Server, TheReadyLineHasNoSpacesWithinAValue) {
  ModelInfo info = PuppetModelInfo();
  info.name = "my mod\u00e8l\t100%";
  RunningServer server(LoopbackConfig(), info);
  EXPECT_THAT(server.server().ReadyLine(), HasSubstr(" model=my%20mod\u00e8l%09100%25 backend="));
}

TEST(Server, ATakenPortIsAnError) {
  RunningServer first;
  for (const auto member :
       {&ServerConfig::listen, &ServerConfig::control_listen, &ServerConfig::metrics_listen}) {
    ServerConfig config = LoopbackConfig();
    config.*member = first.server().addresses().grpc;
    const absl::Status status = Server::Start(config).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(first.server().addresses().grpc));
    const bool is_http = member == &ServerConfig::metrics_listen;  // that library does not say why
    EXPECT_THAT(std::string(status.message()), HasSubstr(is_http ? "" : "Address already in use"));
  }
}

TEST(Server, AnAddressOfAnotherMachineIsAnError) {
  ServerConfig config = LoopbackConfig();
  config.listen = "192.0.2.1:0";  // of documentation: RFC 5737
  EXPECT_THAT(std::string(Server::Start(config).status().message()),
              HasSubstr("cannot listen at 192.0.2.1:0: Cannot assign requested address"));
}

TEST(Server, FilesThatCannotBeReadAreErrors) {
  ServerConfig config = LoopbackConfig();
  config.auth_token_file = "/nonexistent";
  EXPECT_EQ(Server::Start(config).status().code(), absl::StatusCode::kInvalidArgument);
  config = LoopbackConfig();
  config.tls_cert = config.tls_key = "/nonexistent";
  EXPECT_EQ(Server::Start(config).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Server, AWarmUpThatFailsIsReported) {
  const auto server = Server::Start(LoopbackConfig());
  ASSERT_TRUE(server.ok());
  auto engine = std::make_unique<PuppetEngine>();
  engine->RefuseWith(absl::InternalError("no device"));
  EXPECT_EQ((*server)->Serve(std::move(engine)).code(), absl::StatusCode::kInternal);
}

// ---- Credentials ----

// A call of any method: one empty message, then whatever comes, to the end.
class EmptyCall final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  EmptyCall(RunningServer& server, const google::protobuf::MethodDescriptor& method)
      : path_("/" + method.service()->full_name() + "/" + method.name()) {
    const bool is_control = method.service()->name() == "Control";
    const Addresses bound = server.server().addresses();
    stub_ = std::make_unique<grpc::GenericStub>(
        NarrowChannel(is_control ? bound.control : bound.grpc, grpc::InsecureChannelCredentials()));
  }

  grpc::Status Run(grpc::ClientContext& context) {
    stub_->PrepareBidiStreamingCall(&context, path_, {}, this);
    StartWriteLast(&empty_, {});
    StartRead(&answer_);
    StartCall();
    done_.WaitForNotification();
    return status_;
  }

  void OnReadDone(bool ok) override {
    if (ok) StartRead(&answer_);
  }
  void OnDone(const grpc::Status& status) override {
    status_ = status;
    done_.Notify();
  }

 private:
  const std::string path_;
  std::unique_ptr<grpc::GenericStub> stub_;
  const grpc::Slice no_bytes_;
  grpc::ByteBuffer empty_{&no_bytes_, 1};
  grpc::ByteBuffer answer_;
  grpc::Status status_;
  absl::Notification done_;
};

class ServerAuthTest : public testing::Test {
 protected:
  static ServerConfig Config() {
    ServerConfig config = LoopbackConfig();
    config.auth_token_file = TempPath("keys");
    std::ofstream(config.auth_token_file) << "alpha\nbeta\n";
    return config;
  }
  template <typename Call>
  static grpc::StatusCode CodeWith(const std::string& authorization, Call call) {
    grpc::ClientContext context;
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    return call(context).error_code();
  }

  RunningServer server_{Config()};
};

TEST_F(ServerAuthTest, EveryRpcAsksForAKey) {
  server_.engine().AnswerWith({'k'});
  const auto generate = [this](grpc::ClientContext& context) {
    const auto reader = server_.generation().Generate(&context, TextRequest("x"));
    v1::GenerateEvent event;
    while (reader->Read(&event)) {
    }
    return reader->Finish();
  };
  const auto once = [this](grpc::ClientContext& context) {
    v1::GenerateResult result;
    return server_.generation().GenerateOnce(&context, TextRequest("x"), &result);
  };
  const auto info = [this](grpc::ClientContext& context) {
    v1::ModelInfo response;
    return server_.generation().GetModelInfo(&context, v1::GetModelInfoRequest(), &response);
  };
  const auto abort = [this](grpc::ClientContext& context) {
    v1::AbortResponse response;
    return server_.control().Abort(&context, v1::AbortRequest(), &response);
  };
  for (const auto* const service :
       {v1::GenerateRequest::descriptor()->file()->FindServiceByName("Generation"),
        v1::GetLoadRequest::descriptor()->file()->FindServiceByName("Control")}) {
    ASSERT_NE(service, nullptr);
    ASSERT_GT(service->method_count(), 0);
    for (int i = 0; i < service->method_count(); ++i) {
      const auto call = [&](grpc::ClientContext& context) {
        return EmptyCall(server_, *service->method(i)).Run(context);
      };
      const std::string& name = service->method(i)->full_name();
      EXPECT_EQ(CodeWith("", call), grpc::StatusCode::UNAUTHENTICATED) << name;
      EXPECT_EQ(CodeWith("alpha", call), grpc::StatusCode::UNAUTHENTICATED) << name;
      EXPECT_EQ(CodeWith("Bearer gamma", call), grpc::StatusCode::PERMISSION_DENIED) << name;
    }
  }
  EXPECT_EQ(server_.engine().num_requests(), 0u);
  EXPECT_FALSE(server_.engine().load().draining);
  EXPECT_EQ(CodeWith("Bearer alpha", generate), grpc::StatusCode::OK);
  EXPECT_EQ(CodeWith("Bearer beta", once), grpc::StatusCode::OK);
  EXPECT_EQ(CodeWith("Bearer beta", info), grpc::StatusCode::OK);
  EXPECT_EQ(CodeWith("Bearer beta", abort), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServerAuthTest, HealthStaysOpen) {
  EXPECT_EQ(CodeWith("",
                     [this](grpc::ClientContext& context) {
                       grpc::health::v1::HealthCheckResponse response;
                       return server_.health().Check(
                           &context, grpc::health::v1::HealthCheckRequest(), &response);
                     }),
            grpc::StatusCode::OK);
}

// ---- TLS ----

class ServerTlsTest : public testing::Test {
 protected:
  static grpc::StatusCode InfoCode(RunningServer& server) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::ModelInfo info;
    return server.generation()
        .GetModelInfo(&context, v1::GetModelInfoRequest(), &info)
        .error_code();
  }

  const CertificateFiles server_files_ = WriteSelfSignedCertificate(TempPath("server"));
  const CertificateFiles client_files_ = WriteSelfSignedCertificate(TempPath("client"));
};

TEST_F(ServerTlsTest, ServesThoseWhoTrustTheCertificate) {
  ServerConfig config = LoopbackConfig();
  config.tls_cert = server_files_.cert;
  config.tls_key = server_files_.key;
  RunningServer server(config);
  EXPECT_EQ(InfoCode(server), grpc::StatusCode::UNAVAILABLE);  // plain text
  server.ConnectWith(grpc::SslCredentials({ReadAll(server_files_.cert), "", ""}));
  EXPECT_EQ(InfoCode(server), grpc::StatusCode::OK);
  server.ConnectWith(
      grpc::SslCredentials({ReadAll(client_files_.cert), "", ""}));  // another authority
  EXPECT_EQ(InfoCode(server), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTlsTest, AsksForAClientCertificateWhenTold) {
  ServerConfig config = LoopbackConfig();
  config.tls_cert = server_files_.cert;
  config.tls_key = server_files_.key;
  config.tls_client_ca = client_files_.cert;
  RunningServer server(config);
  const std::string trusted = ReadAll(server_files_.cert);
  server.ConnectWith(grpc::SslCredentials({trusted, "", ""}));
  EXPECT_EQ(InfoCode(server), grpc::StatusCode::UNAVAILABLE);
  server.ConnectWith(
      grpc::SslCredentials({trusted, ReadAll(client_files_.key), ReadAll(client_files_.cert)}));
  EXPECT_EQ(InfoCode(server), grpc::StatusCode::OK);
}

// ---- Keepalive ----

// A client that speaks HTTP/2 by hand: answers pings and counts them.
class PingCounter {
 public:
  explicit PingCounter(const std::string& address) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in target = {};
    target.sin_family = AF_INET;
    target.sin_port =
        htons(static_cast<uint16_t>(std::stoi(address.substr(address.find(':') + 1))));
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&target), sizeof(target)), 0);
    Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettings, 0, ""));
  }
  ~PingCounter() { close(fd_); }

  // The frame's type, or nothing when the server has closed. Pings are answered.
  std::optional<uint8_t> Next() {
    const std::string head = Receive(9);
    if (head.size() < 9) return std::nullopt;
    const auto byte = [&head](size_t i) { return static_cast<uint8_t>(head[i]); };
    const std::string payload = Receive(size_t{byte(0)} << 16 | size_t{byte(1)} << 8 | byte(2));
    if (byte(3) == kPing && (byte(4) & kAck) == 0) Send(Frame(kPing, kAck, payload));
    return byte(3);
  }
  void Ping() { Send(Frame(kPing, 0, "12345678")); }

  static constexpr uint8_t kSettings = 4, kPing = 6, kGoAway = 7;

 private:
  static constexpr uint8_t kAck = 1;

  static std::string Frame(uint8_t type, uint8_t flags, const std::string& payload) {
    const auto size = static_cast<char>(payload.size());
    return std::string{0, 0, size, static_cast<char>(type), static_cast<char>(flags), 0, 0, 0, 0} +
           payload;
  }
  void Send(const std::string& bytes) {
    [[maybe_unused]] const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  std::string Receive(size_t size) {
    std::string bytes(size, '\0');
    if (size > 0 && recv(fd_, bytes.data(), size, MSG_WAITALL) != static_cast<ssize_t>(size)) {
      return "";
    }
    return bytes;
  }

  const int fd_;
};

TEST(ServerKeepalive, PingsForAsLongAsTheConnectionIsSilent) {
  ServerConfig config = LoopbackConfig();
  config.ping_interval = absl::Milliseconds(50);
  RunningServer server(config);
  PingCounter client(server.server().addresses().grpc);
  int pings = 0;
  while (pings < 6) {  // gRPC stops after two where it is not told otherwise
    const std::optional<uint8_t> frame = client.Next();
    ASSERT_TRUE(frame.has_value() && *frame != PingCounter::kGoAway) << "after " << pings;
    pings += *frame == PingCounter::kPing ? 1 : 0;
  }
}

TEST(ServerKeepalive, AClientThatPingsAllTheTimeIsSentAway) {
  RunningServer server;
  PingCounter client(server.server().addresses().grpc);
  std::optional<uint8_t> frame;
  for (int i = 0; i < 10; ++i) client.Ping();
  while ((frame = client.Next()).has_value() && *frame != PingCounter::kGoAway) {
  }
  EXPECT_EQ(frame, PingCounter::kGoAway);
}

// ---- Reflection ----

// Asks for the list of services; the messages are written out, as no header has them:
// ServerReflectionRequest.list_services is field 7, a string.
TEST(ServerReflection, ListsTheServices) {
  RunningServer server;
  const auto channel =
      grpc::CreateChannel(server.server().addresses().grpc, grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const auto stream = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  stream->StartCall(nullptr);
  ASSERT_TRUE(wait());
  const grpc::Slice slice(std::string("\x3a\x01*"));
  stream->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer answer;
  stream->Read(&answer, nullptr);
  ASSERT_TRUE(wait());
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  EXPECT_THAT(text, HasSubstr("bst.v1.Generation"));
  EXPECT_THAT(text, HasSubstr("grpc.health.v1.Health"));
  context.TryCancel();
  grpc::Status status;
  stream->Finish(&status, nullptr);
  wait();
  queue.Shutdown();
}

// ---- Metrics ----

TEST(ServerMetrics, CountWhatHappened) {
  RunningServer server(ConfigWithMetrics());
  server.engine().AnswerWith({'o', 'k'});
  EXPECT_TRUE(server.Generate(TextRequest("hello")).status.ok());
  server.Generate(TextRequest(""));
  server.Generate(TextRequest(std::string(200'000, 'x')));
  const std::string answer = HttpGet(server.server().addresses().metrics, "/metrics");
  for (const char* const part :
       {"HTTP/1.1 200 OK",
        "bst_requests_total{code=\"OK\",finish_reason=\"MAX_TOKENS\",rpc=\"Generate\"} 1\n",
        "bst_requests_total{code=\"INVALID_ARGUMENT\",finish_reason=\"\",rpc=\"Generate\"} 2\n",
        "bst_requests_rejected_total{reason=\"invalid\"} 1\n",
        "bst_requests_rejected_total{reason=\"too_long\"} 1\n", "bst_generation_tokens_total 2\n",
        "bst_time_to_first_token_seconds_count 1\n",
        "bst_state_slots{state=\"free\",tier=\"device\"} 4\n", "process_resident_memory_bytes "}) {
    EXPECT_THAT(answer, HasSubstr(part));
  }
}

TEST(ServerMetrics, CancellationsKnowTheirCause) {
  RunningServer server(ConfigWithMetrics());
  server.engine().set_stage_before_tokens(RequestStats::Stage::kPrefill);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server.engine().WaitForRequest(0).id;
  context.TryCancel();
  server.engine().WaitForCancel(id);
  EXPECT_TRUE(server.engine().WaitIdle(absl::InfiniteFuture()));
  reader->Finish();
  server.server().Drain();  // waits for what is counted last
  // The HTTP port outlives the drain.
  EXPECT_THAT(HttpGet(server.server().addresses().metrics, "/metrics"),
              HasSubstr("bst_requests_cancelled_total{cause=\"client\",stage=\"prefill\"} 1\n"));
}

TEST(ServerMetrics, AFullQueueIsToldByWhatIsFull) {
  ServerConfig config = ConfigWithMetrics();
  config.engine.max_sequences = 1;
  config.engine.max_queue = 0;
  RunningServer server(config);
  server.engine().RefuseWith(absl::ResourceExhaustedError("tokens"));
  server.Generate(TextRequest("x"));
  server.engine().RefuseWith(absl::OkStatus());
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server.engine().WaitForRequest(0).id;
  // Refused before its prompt is looked at: no engine and no tokenizer sees it.
  EXPECT_EQ(server.Generate(TextRequest("")).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  server.engine().Finish(id, FinishReason::kMaxTokens);
  const std::string answer = HttpGet(server.server().addresses().metrics, "/metrics");
  EXPECT_THAT(answer, HasSubstr("bst_requests_rejected_total{reason=\"queue_tokens\"} 1\n"));
  EXPECT_THAT(answer, HasSubstr("bst_requests_rejected_total{reason=\"queue_requests\"} 1\n"));
}

// ---- Drain ----

TEST(ServerDrain, IsDoneAtOnceWhenIdle) {
  ServerConfig config = LoopbackConfig();
  config.grace = absl::Hours(1);
  RunningServer server(config);
  server.engine().AnswerWith({'k'});
  EXPECT_TRUE(server.Generate(TextRequest("x")).status.ok());
  server.server().Drain();  // would take an hour
  EXPECT_FALSE(server.Generate(TextRequest("x")).status.ok());
}

TEST(ServerDrain, IsNotHeldUpByAWatcherOfItsHealth) {
  RunningServer server;
  grpc::ClientContext context;
  const auto reader = server.health().Watch(&context, grpc::health::v1::HealthCheckRequest());
  grpc::health::v1::HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  server.server().Drain();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(reader->Finish().ok());
}

TEST(ServerDrain, RunningStreamsFinishAndNewOnesAreRefused) {
  RunningServer server;
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server.engine().WaitForRequest(0).id;
  std::thread drain([&] { server.server().Drain(); });
  grpc::ClientContext watch_context;
  const auto watch = server.health().Watch(&watch_context, grpc::health::v1::HealthCheckRequest());
  grpc::health::v1::HealthCheckResponse response;
  while (watch->Read(&response) &&
         response.status() != grpc::health::v1::HealthCheckResponse::NOT_SERVING) {
  }
  EXPECT_EQ(server.Generate(TextRequest("y")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  server.engine().GenerateText(id, "whole");
  server.engine().Finish(id, FinishReason::kMaxTokens);
  Stream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) stream.Add(event);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(stream.text, "whole");
  drain.join();
}

TEST(ServerDrain, WhatIsLeftAfterTheGracePeriodEndsWithUnavailable) {
  ServerConfig config = LoopbackConfig();
  config.grace = absl::Milliseconds(50);
  RunningServer server(config);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, TextRequest("x"));
  const SequenceId id = server.engine().WaitForRequest(0).id;
  server.engine().GenerateText(id, "half");
  std::thread drain([&] { server.server().Drain(); });
  Stream stream;
  v1::GenerateEvent event;
  while (reader->Read(&event)) stream.Add(event);
  const grpc::Status status = reader->Finish();
  drain.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(status).has_value());
  EXPECT_EQ(stream.text, "half");
  ASSERT_TRUE(stream.finished.has_value());
  EXPECT_EQ(stream.finished->reason(), v1::ERROR);
}

}  // namespace
}  // namespace bst
