#include "server/control_service.h"

#include <grpcpp/alarm.h>

#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/grpc_status.h"
#include "server/request_validation.h"
#include "server/version.h"
#include "server/wire_message.h"

namespace bst {
namespace {

constexpr std::chrono::milliseconds kDrainReportInterval(200);

// Reports the requests in flight: now, then after an alarm, until there are none and their clients
// have taken what they wrote. A cancelled call is noticed at its next write.
//
// When that is comes from ActiveRequests: the engine's numbers are read one after the other, and a
// request may be in none of them while it starts.
//
// Ownership   Owns itself until gRPC's OnDone.
class DrainReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // Both outlive the call.
  DrainReactor(const Engine& engine, const ActiveRequests& active)
      : engine_(engine), active_(active) {}

  void Start(std::shared_ptr<DrainReactor> self) {
    self_ = std::move(self);
    Report();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    if (is_over_) return Finish(grpc::Status::OK);
    // A new alarm each time: the old one may still be returning from the callback that led here.
    alarm_ = std::make_unique<grpc::Alarm>();
    alarm_->Set(std::chrono::system_clock::now() + kDrainReportInterval,
                [this](bool) { Report(); });
  }

  void OnDone() override { self_.reset(); }

 private:
  void Report() {
    is_over_ = active_.unfinished() == 0;
    const EngineLoad load = engine_.load();
    v1::DrainProgress message;
    message.set_running(static_cast<uint32_t>(load.running));
    message.set_waiting(static_cast<uint32_t>(load.waiting));
    bytes_ = BytesOf(message);
    StartWrite(&bytes_);
  }

  const Engine& engine_;
  const ActiveRequests& active_;
  std::shared_ptr<DrainReactor> self_;
  grpc::ByteBuffer bytes_;  // of the message being written
  bool is_over_ = false;    // that is the last one
  std::unique_ptr<grpc::Alarm> alarm_;
};

// A stream that ends at once.
class RefusalReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  void Start(std::shared_ptr<RefusalReactor> self, const grpc::Status& status) {
    self_ = std::move(self);
    Finish(status);
  }
  void OnDone() override { self_.reset(); }

 private:
  std::shared_ptr<RefusalReactor> self_;
};

}  // namespace

// Runs `body(request, response)`, which returns absl::Status, if the credentials are right, and
// finishes the RPC with it.
template <typename Request, typename Response, typename Body>
grpc::ServerUnaryReactor* ControlService::Answer(const Call& call, Body body) {
  const auto run = [&]() -> absl::Status {
    BST_RETURN_IF_ERROR(frontend_.CheckCredentials(call.context));
    BST_ASSIGN_OR_RETURN(const Request request, ParseMessage<Request>(call.request, "request"));
    Response response;
    BST_RETURN_IF_ERROR(body(request, response));
    call.response = BytesOf(response);
    return absl::OkStatus();
  };
  grpc::ServerUnaryReactor* const reactor = call.context.DefaultReactor();
  reactor->Finish(ToGrpcStatus(run(), call.context));
  return reactor;
}

grpc::ServerUnaryReactor* ControlService::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* bytes,
                                                        grpc::ByteBuffer* answer) {
  const auto describe = [this](const v1::GetServerInfoRequest&,
                               v1::ServerInfo& response) -> absl::Status {
    const Addresses addresses = frontend_.addresses();
    response.set_version(kVersion);
    response.set_start_time_seconds(absl::ToDoubleSeconds(start_time_ - absl::UnixEpoch()));
    response.set_grpc_address(addresses.grpc);
    response.set_metrics_address(addresses.metrics);
    response.set_control_address(addresses.control);
    if (const ServedModel* const model = frontend_.model(); model != nullptr) {
      response.set_model(model->engine->info().name);
      response.set_backend(model->engine->info().backend);
    }
    return absl::OkStatus();
  };
  return Answer<v1::GetServerInfoRequest, v1::ServerInfo>({*context, *bytes, *answer}, describe);
}

grpc::ServerUnaryReactor* ControlService::GetLoad(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* bytes,
                                                  grpc::ByteBuffer* answer) {
  const auto measure = [&](const v1::GetLoadRequest&, v1::Load& response) -> absl::Status {
    BST_ASSIGN_OR_RETURN(const ServedModel* const model, frontend_.Admit(*context));
    const EngineLoad load = model->engine->load();
    response.set_running(static_cast<uint32_t>(load.running));
    response.set_waiting(static_cast<uint32_t>(load.waiting));
    response.set_queue_tokens(static_cast<uint64_t>(load.queue_tokens));
    response.set_slots_total(static_cast<uint32_t>(load.slots_total));
    response.set_slots_used(static_cast<uint32_t>(load.slots_used));
    response.set_steps(static_cast<uint64_t>(load.steps));
    response.set_healthy(load.healthy);
    response.set_draining(load.draining);
    response.set_unread_calls(static_cast<uint32_t>(frontend_.active().unread()));
    return absl::OkStatus();
  };
  return Answer<v1::GetLoadRequest, v1::Load>({*context, *bytes, *answer}, measure);
}

grpc::ServerUnaryReactor* ControlService::Abort(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* bytes,
                                                grpc::ByteBuffer* answer) {
  const auto abort = [this](const v1::AbortRequest& request, v1::AbortResponse&) -> absl::Status {
    const std::string& id = request.request_id();
    BST_RETURN_IF_ERROR(ValidateRequestId(id));  // so that it fits into the answer
    if (frontend_.active().Abort(id)) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("no request ", id, " is in flight"));
  };
  return Answer<v1::AbortRequest, v1::AbortResponse>({*context, *bytes, *answer}, abort);
}

absl::StatusOr<const ServedModel*> ControlService::AdmitDrain(
    grpc::CallbackServerContext& context, const grpc::ByteBuffer& request) const {
  BST_ASSIGN_OR_RETURN(const ServedModel* const model, frontend_.Admit(context));
  BST_RETURN_IF_ERROR(ParseMessage<v1::DrainRequest>(request, "request").status());
  return model;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ControlService::Drain(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const absl::StatusOr<const ServedModel*> model = AdmitDrain(*context, *request);
  if (!model.ok()) {
    auto refusal = std::make_shared<RefusalReactor>();
    refusal->Start(refusal, ToGrpcStatus(model.status(), *context));
    return refusal.get();
  }
  frontend_.Drain();
  health_.Refresh();
  auto reactor = std::make_shared<DrainReactor>(*(*model)->engine, frontend_.active());
  reactor->Start(reactor);
  return reactor.get();
}

}  // namespace bst
