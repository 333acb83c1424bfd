// AnswerReactor: a unary RPC that the server answers itself, without the engine.
//
// A drain of the server lets it finish, and an answer that is not small waits for its client as the
// output of requests does: under WriteWatch, in ActiveRequests' accounts.
//
// Ownership   Owns itself until gRPC's OnDone.
// Threads     Answer on any thread.
// Tested by   tests/server/generation_service_test.cc
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/status/status.h"
#include "server/frontend.h"
#include "server/write_watch.h"

namespace bst {

class AnswerReactor final : public grpc::ServerUnaryReactor {
 public:
  // Opens the RPC of `context`, which with `response` is gRPC's and lives until OnDone. `rpc`: the
  // method's name, for logs.
  static AnswerReactor& Open(Frontend& frontend, grpc::CallbackServerContext& context,
                             const char* rpc, grpc::ByteBuffer& response);

  // Ends the RPC with `status` and, if that is OK, what `response` holds by now. REQUIRES: once;
  // the reactor may be gone afterwards.
  void Answer(const absl::Status& status);

  void OnDone() override;

 private:
  AnswerReactor(Frontend& frontend, grpc::CallbackServerContext& context, const char* rpc,
                grpc::ByteBuffer& response);

  Frontend& frontend_;
  grpc::CallbackServerContext& context_;
  grpc::ByteBuffer& response_;
  const std::shared_ptr<WriteWatch> watch_;  // shared with the alarm's callback
  std::unique_ptr<AnswerReactor> self_;
};

}  // namespace bst
