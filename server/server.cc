#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/read_file.h"
#include "engine/base/status_macros.h"
#include "server/control_service.h"
#include "server/generation_service.h"
#include "server/health_service.h"

namespace bst {
namespace {

// How long streams get to write their last messages once the engine has ended them.
constexpr absl::Duration kFlushTime = absl::Seconds(2);
// How long gRPC gets to send what it has taken, the ends of streams above all. Calls that stay
// open, those that watch the health, are cut after it.
constexpr std::chrono::milliseconds kCloseTime(250);
// Clients may ping this often, also without calls; more often is answered with GOAWAY.
constexpr int kMinClientPingMs = 10'000;
// How long the server waits for the answer to its ping.
constexpr int kServerPingTimeoutMs = 20'000;
constexpr int kReflectionThreads = 8;

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  constexpr size_t kMaxPemBytes = size_t{1} << 20;
  absl::StatusOr<std::string> text = ReadTextFile(path, kMaxPemBytes);
  if (!text.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", text.status().message()));
  }
  if (text->empty()) return absl::InvalidArgumentError(absl::StrCat(path, " is empty"));
  return text;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(
    const ServerConfig& config) {
  if (config.tls_cert.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      config.tls_client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                   : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  BST_ASSIGN_OR_RETURN(const std::string key, ReadPem(config.tls_key));
  BST_ASSIGN_OR_RETURN(const std::string cert, ReadPem(config.tls_cert));
  options.pem_key_cert_pairs.push_back({key, cert});
  if (!config.tls_client_ca.empty()) {
    BST_ASSIGN_OR_RETURN(options.pem_root_certs, ReadPem(config.tls_client_ca));
  }
  return grpc::SslServerCredentials(options);
}

// errno of listening there; 0: it can be done.
int BindError(const addrinfo& info) {
  const int fd = socket(info.ai_family, info.ai_socktype | SOCK_CLOEXEC, info.ai_protocol);
  if (fd < 0) return errno;
  const int reuse = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
  const bool is_free = bind(fd, info.ai_addr, info.ai_addrlen) == 0 && listen(fd, 1) == 0;
  const int error = is_free ? 0 : errno;
  close(fd);
  return error;
}

// What keeps gRPC, which does not say it, from listening there: the system's word, if it has one.
std::string WhyNotBound(const HostPort& address, bool has_tls) {
  std::string host = address.host;
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);  // IPv6
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int unresolved =
      getaddrinfo(host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (unresolved == EAI_SYSTEM) return std::generic_category().message(errno);
  if (unresolved != 0) return gai_strerror(unresolved);
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, &freeaddrinfo);
  int first_error = 0;  // of the addresses of one name one that can be listened at is enough
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    const int error = BindError(*info);
    if (error == EADDRINUSE) return std::generic_category().message(error);
    if (error == 0) {
      first_error = 0;
      break;
    }
    if (first_error == 0) first_error = error;
  }
  if (first_error != 0) return std::generic_category().message(first_error);
  return has_tls ? "--tls_key, --tls_cert or --tls_client_ca are no PEM, or do not belong together"
                 : "gRPC gives no reason";
}

struct BoundServer {
  std::unique_ptr<grpc::Server> server;
  std::string address;  // HOST:PORT, the port that was bound
};

absl::StatusOr<BoundServer> Bind(const std::string& address, const ServerConfig& config,
                                 const std::vector<grpc::Service*>& services) {
  BST_ASSIGN_OR_RETURN(const HostPort host_port, ParseHostPort(address));
  BST_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                       MakeCredentials(config));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, credentials, &port);
  for (grpc::Service* const service : services) builder.RegisterService(service);
  // Reflection is a synchronous service: each of its streams is a thread, for as long as its client
  // likes. What exceeds this is RESOURCE_EXHAUSTED; our own services have no such threads.
  builder.SetResourceQuota(grpc::ResourceQuota("bst").SetMaxThreads(kReflectionThreads));
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.max_message_bytes));
  // gRPC inflates the whole of a message before it looks at its size, and a key is checked later
  // still: a megabyte of gzip would become a gigabyte.
  builder.AddChannelArgument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET,
                             1 << GRPC_COMPRESS_NONE);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // two servers on one port: an error
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                             static_cast<int>(absl::ToInt64Milliseconds(config.ping_interval)));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kServerPingTimeoutMs);
  // Or the pings stop after two while no message flows, as in a long prefill.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  BoundServer bound;
  bound.server = builder.BuildAndStart();
  if (bound.server == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen at ", address, ": ",
                                               WhyNotBound(host_port, !config.tls_cert.empty())));
  }
  bound.address = absl::StrCat(host_port.host, ":", port);
  return bound;
}

// Waits for the end of the warm-up request.
class WarmUpSink final : public TokenSink {
 public:
  void Push(SequenceEvent event) override {
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      status_ = finished->status;
      finished_.Notify();
    }
  }
  absl::Status Wait() {
    finished_.WaitForNotification();
    return status_;
  }

 private:
  absl::Status status_;
  absl::Notification finished_;
};

// Runs a prompt and a few tokens, so that the first client does not pay for pages and buffers that
// are touched for the first time.
absl::Status WarmUp(Engine& engine) {
  GenerateRequest request;
  request.request_id = "warm-up";
  request.prompt.resize(
      static_cast<size_t>(std::min<int64_t>(engine.info().max_prompt_tokens, 64)));
  request.sampling = SamplingParams();
  request.sampling.temperature = 0;
  request.stopping.max_new_tokens = 4;
  request.stopping.ignore_eos = true;
  auto sink = std::make_shared<WarmUpSink>();  // shared with the engine until its FinishedEvent
  BST_RETURN_IF_ERROR(engine.Submit(std::move(request), sink).status());
  BST_RETURN_IF_ERROR(sink->Wait());
  engine.WaitIdle(absl::InfiniteFuture());
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const ModelInfo& info) {
  if (info.tokenizer_type == "byte") return Tokenizer::Byte(info.vocab_size);
  return Tokenizer::SentencePiece(info.tokenizer_path, info.vocab_size);
}

// As a value of the ready line, which is split at spaces: %XX for bytes that would spoil it.
std::string LineValue(std::string_view text) {
  std::string value;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool is_plain = byte > ' ' && byte != 0x7f && byte != '%';
    absl::StrAppend(&value, is_plain ? std::string(1, c) : absl::StrFormat("%%%02X", byte));
  }
  return value;
}

}  // namespace

// In the order of construction; destroyed from the end.
struct Server::Parts {
  Parts(const ServerConfig& server_config, AuthTokens auth)
      : frontend(server_config, std::move(auth)),
        health({"bst.v1.Generation"}),
        control_health({"bst.v1.Control"}),
        monitor({&health, &control_health}, server_config.stall_limit),
        generation(frontend),
        control(frontend, monitor) {}

  Frontend frontend;
  HealthService health;
  HealthService control_health;
  HealthMonitor monitor;
  GenerationService generation;
  ControlService control;
  std::unique_ptr<grpc::Server> grpc_server;
  std::unique_ptr<grpc::Server> control_server;  // null: off
};

Server::Server(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Server::~Server() {
  const auto now = std::chrono::system_clock::now();
  if (parts_->grpc_server != nullptr) parts_->grpc_server->Shutdown(now);
  if (parts_->control_server != nullptr) parts_->control_server->Shutdown(now);
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerConfig& config) {
  BST_RETURN_IF_ERROR(Validate(config));
  AuthTokens auth;
  if (!config.auth_token_file.empty()) {
    BST_ASSIGN_OR_RETURN(auth, AuthTokens::Load(config.auth_token_file));
  }
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto parts = std::make_unique<Parts>(config, std::move(auth));
  Parts& p = *parts;
  std::unique_ptr<Server> server(
      new Server(std::move(parts)));  // private constructor; cleans up from here on

  Addresses addresses;
  BST_ASSIGN_OR_RETURN(BoundServer grpc_server,
                       Bind(config.listen, config, {&p.generation, &p.health}));
  p.grpc_server = std::move(grpc_server.server);
  addresses.grpc = grpc_server.address;
  if (!config.control_listen.empty()) {
    BST_ASSIGN_OR_RETURN(BoundServer control_server,
                         Bind(config.control_listen, config, {&p.control, &p.control_health}));
    p.control_server = std::move(control_server.server);
    addresses.control = control_server.address;
  }
  if (!config.metrics_listen.empty()) {
    BST_ASSIGN_OR_RETURN(addresses.metrics, p.frontend.metrics().Listen(config.metrics_listen));
  }
  p.frontend.set_addresses(addresses);
  return server;
}

EngineObserver& Server::observer() { return parts_->frontend.metrics(); }

absl::Status Server::Serve(std::unique_ptr<Engine> engine) {
  ServedModel model;
  BST_ASSIGN_OR_RETURN(model.tokenizer, MakeTokenizer(engine->info()));
  BST_RETURN_IF_ERROR(WarmUp(*engine));
  model.engine = std::move(engine);
  const Engine& served = *model.engine;
  parts_->frontend.metrics().Publish(served);  // first: it counts no request from before
  parts_->frontend.Publish(std::move(model));
  parts_->monitor.Watch(served);
  return absl::OkStatus();
}

Addresses Server::addresses() const { return parts_->frontend.addresses(); }

std::string Server::ReadyLine() const {
  const Addresses bound = addresses();
  const ModelInfo& info = parts_->frontend.model()->engine->info();
  const auto or_off = [](const std::string& address) {
    return address.empty() ? std::string("off") : address;
  };
  // "cpu (avx512, 2 threads)" -> "cpu": the line's values have no spaces.
  return absl::StrCat("ready grpc=", bound.grpc, " metrics=", or_off(bound.metrics),
                      " control=", or_off(bound.control), " model=", LineValue(info.name),
                      " backend=", info.backend.substr(0, info.backend.find(' ')));
}

void Server::Drain() {
  Engine& engine = *parts_->frontend.model()->engine;
  const absl::Time deadline = absl::Now() + parts_->frontend.config().grace;
  parts_->frontend.Drain();
  parts_->monitor.Refresh();
  const EngineLoad load = engine.load();
  Log(LogLevel::kInfo, "drain", {{"running", load.running}, {"waiting", load.waiting}});
  absl::Duration flush_time = kFlushTime;
  const bool finished = engine.WaitIdle(deadline);
  if (finished) {
    flush_time =
        std::max(deadline - absl::Now(), kFlushTime);  // readers that are behind may read on
  } else {
    engine.Shutdown();
  }
  const bool flushed = parts_->frontend.active().WaitUntilNoneOpen(flush_time);
  Log(LogLevel::kInfo, "drained",
      {{"finished", finished ? "true" : "false"}, {"flushed", flushed ? "true" : "false"}});
  const auto close = std::chrono::system_clock::now() + kCloseTime;
  parts_->grpc_server->Shutdown(close);
  if (parts_->control_server != nullptr) parts_->control_server->Shutdown(close);
}

}  // namespace bst
