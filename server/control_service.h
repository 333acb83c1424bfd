// ControlService: the RPCs of bst.v1.Control, for operators.
//
// Threads     Thread-safe. Handlers run on gRPC threads and do not wait.
// Tested by   tests/server/control_service_test.cc
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bst/v1/control.grpc.pb.h"
#include "server/frontend.h"
#include "server/health_service.h"

namespace bst {

// gRPC hands over bytes: see wire_message.h.
using RawControl = v1::Control::WithRawCallbackMethod_GetServerInfo<
    v1::Control::WithRawCallbackMethod_GetLoad<v1::Control::WithRawCallbackMethod_Abort<
        v1::Control::WithRawCallbackMethod_Drain<v1::Control::Service>>>>;

class ControlService final : public RawControl {
 public:
  // Both outlive the service.
  ControlService(Frontend& frontend, HealthMonitor& health)
      : frontend_(frontend), health_(health) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Drain(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;

 private:
  // What a unary call brought, and where its answer goes.
  struct Call {
    grpc::CallbackServerContext& context;
    const grpc::ByteBuffer& request;
    grpc::ByteBuffer& response;
  };

  template <typename Request, typename Response, typename Body>
  grpc::ServerUnaryReactor* Answer(const Call& call, Body body);
  // The model whose engine is to drain. Errors: those of Frontend::Admit; kInvalidArgument.
  absl::StatusOr<const ServedModel*> AdmitDrain(grpc::CallbackServerContext& context,
                                                const grpc::ByteBuffer& request) const;

  Frontend& frontend_;
  HealthMonitor& health_;
  const absl::Time start_time_ = absl::Now();
};

}  // namespace bst
