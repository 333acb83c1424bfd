#include "server/answer_reactor.h"

#include <grpcpp/server_context.h>

#include "server/grpc_status.h"

namespace bst {
namespace {

// gRPC takes as much for a client that reads nothing: the window of a stream is 64 KB.
constexpr size_t kSmallAnswerBytes = size_t{16} << 10;

}  // namespace

AnswerReactor& AnswerReactor::Open(Frontend& frontend, grpc::CallbackServerContext& context,
                                   const char* rpc, grpc::ByteBuffer& response) {
  std::unique_ptr<AnswerReactor> owned(new AnswerReactor(frontend, context, rpc, response));
  AnswerReactor& reactor = *owned;  // private constructor
  reactor.self_ = std::move(owned);
  return reactor;
}

AnswerReactor::AnswerReactor(Frontend& frontend, grpc::CallbackServerContext& context,
                             const char* rpc, grpc::ByteBuffer& response)
    : frontend_(frontend),
      context_(context),
      response_(response),
      watch_(std::make_shared<WriteWatch>(
          context, frontend.config().write_timeout,
          [&frontend, &context, rpc](Stall why) { frontend.LogCut(rpc, "", context, why); })) {
  frontend_.active().OpenRpc();
}

void AnswerReactor::Answer(const absl::Status& status) {
  if (response_.Length() > kSmallAnswerBytes) {
    frontend_.active().EnterUnread(watch_);
    frontend_.active().SetUnreadBytes(*watch_, static_cast<int64_t>(response_.Length()),
                                      Readable::kYes);
    watch_->Begin();
  }
  Finish(ToGrpcStatus(status, context_));
}

void AnswerReactor::OnDone() {
  watch_->Close();
  frontend_.active().LeaveUnread(*watch_);
  frontend_.active().CloseRpc();
  self_.reset();
}

}  // namespace bst
