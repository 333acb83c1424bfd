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

class ControlService final : public v1::Control::CallbackService {
 public:
  // Both outlive the service.
  ControlService(Frontend& frontend, HealthMonitor& health)
      : frontend_(frontend), health_(health) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::ServerInfo* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const v1::GetLoadRequest* request, v1::Load* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;
  grpc::ServerWriteReactor<v1::DrainProgress>* Drain(grpc::CallbackServerContext* context,
                                                     const v1::DrainRequest* request) override;

 private:
  template <typename Body>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext& context, Body body);

  Frontend& frontend_;
  HealthMonitor& health_;
  const absl::Time start_time_ = absl::Now();
};

}  // namespace bst
