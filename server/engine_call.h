// EngineCall: the life of one request between its RPC and the engine: outbox, cancellation and
// accounts.
//
//   engine thread    Push -> outbox; posts the call if it is not posted yet
//   delivery thread  Advance -> the RPC takes the events and writes
//   gRPC thread      OnCancel -> Cancel -> Engine::Cancel; OnWriteDone -> Advance; OnReadDone ->
//                    AppendPrompt
//
// Invariants  (1) Between Submit and FinishedEvent the request id is registered, hence can be
//                 aborted.
//             (2) The first cause of a cancellation stays.
// Memory      What waits for the reader is bounded by the request's tokens, and by kMaxOutboxBytes:
//             a request whose reader is further behind ends with kResourceExhausted, and what
//             waited is dropped. ServerConfig::write_timeout bounds how long one message waits, and
//             max_unread_bytes what finished requests keep together (Frontend::CheckUnread).
// Ownership   Shared by its RPC (until OnDone), the engine (until FinishedEvent) and the delivery
//             thread (while posted).
// Threads     Thread-safe.
// Tested by   tests/server/generation_service_test.cc, tests/server/server_test.cc
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "bst/v1/generation.pb.h"
#include "engine/engine.h"
#include "engine/token_sink.h"
#include "server/active_requests.h"
#include "server/delivery_thread.h"
#include "server/frontend.h"
#include "server/write_watch.h"

namespace grpc {
class CallbackServerContext;
}

namespace bst {

// The tokens of one continuation stay far below it. With 20 alternatives each it is 300,000 tokens.
inline constexpr size_t kMaxOutboxBytes = size_t{64} << 20;

// How a request ended, as the wire says it.
struct Ending {
  v1::FinishReason reason = v1::ERROR;
  absl::Status status;  // OK, or what the RPC ends with
};

// Whether the RPC has all it was asked for.
enum class Completeness { kIncomplete, kComplete };

class EngineCall : public TokenSink,
                   public Deliverable,
                   public Abortable,
                   public std::enable_shared_from_this<EngineCall> {
 public:
  void Push(SequenceEvent event) final ABSL_LOCKS_EXCLUDED(mutex_);
  void Abort() final { Cancel(CancelCause::kAbort); }
  CancelCause cancel_cause() const final ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends the request in the engine; FinishedEvent follows. Before Submit: as soon as it is
  // submitted.
  void Cancel(CancelCause cause) ABSL_LOCKS_EXCLUDED(mutex_);

 protected:
  // The RPC of `context`, which is gRPC's and lives until OnDone, is open from now on. `rpc`: the
  // method's name, for logs and metrics.
  EngineCall(Frontend& frontend, grpc::CallbackServerContext& context, const char* rpc);
  // Once the request is over: `bytes` of it wait for the reader. No-op before, and after CloseRpc,
  // when the delivery thread may still come.
  void AccountUnread(size_t bytes, Readable readable = Readable::kYes) ABSL_LOCKS_EXCLUDED(mutex_);
  // The RPC is done (gRPC's OnDone): the frontend may be gone afterwards.
  void CloseRpc() ABSL_LOCKS_EXCLUDED(mutex_);

  // Refuses the RPC before it was queued.
  virtual void Reject(const absl::Status& status) = 0;

  // The request that comes in one `message`, which is gRPC's: past the gate to `read`. At once, or
  // if it is large when its turn comes on a thread of MessageReaders, and it can still be served;
  // else to Reject.
  void ReadRequest(const grpc::ByteBuffer& message,
                   std::function<void(const ServedModel&, const grpc::ByteBuffer&)> read);

  // Hands the request to the engine. The times of one that ReadRequest read count from the start.
  // Errors: those of Engine::Submit; kAlreadyExists for a request id in flight.
  template <typename Request>
  absl::Status Submit(const ServedModel& model, Request request) ABSL_LOCKS_EXCLUDED(mutex_);

  // More of the prompt of a request that was submitted with prompt_open. Errors: those of
  // Engine::AppendPrompt. REQUIRES: Submit returned OK.
  absl::Status AppendPrompt(std::vector<TokenId> tokens, PromptEnd end) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends one continuation; also before Submit returns.
  void StopSequence(int sequence_index) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the request in the engine because of something in it that came later; the RPC then ends
  // with `why`. False, and no-op, after another cause or when it has ended.
  bool Refuse(absl::Status why) ABSL_LOCKS_EXCLUDED(mutex_);

  // The events since the last call. After FinishedEvent the request id is free again.
  std::vector<SequenceEvent> TakeEvents() ABSL_LOCKS_EXCLUDED(mutex_);

  // Why gRPC cancelled the call.
  CancelCause CauseOfCancellation() const;
  // The status of such a call that the engine has not heard of; `event`: what had not happened yet.
  absl::Status LeftBefore(const char* event) const;
  // Whether somebody still waits for the request. Errors: those of LeftBefore.
  absl::Status CheckWanted() const;
  // Whether a request that was admitted is still to be read, which may come much later.
  // Errors: those of Frontend::CheckQueue and CheckWanted.
  absl::Status CheckBeforeReading() const;

  // Ends the request if its reader is too far behind. `bytes`: what was taken and not written.
  // True, once: they must be dropped, and all output that still comes, or the reader would find a
  // gap; the request does not end with OK then. A request that has ended keeps its last output.
  bool BoundOutbox(size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // How `finished` reads on the wire. A complete answer overrides how the engine ended, but not
  // that output was dropped.
  Ending EndingOf(const FinishedEvent& finished, Completeness completeness) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Before the request is checked: a refusal is logged with its id, if that is well formed.
  void NoteRequestId(const std::string& id);
  // Counts the RPC that was refused with `status` before it was queued.
  void AccountRejected(const absl::Status& status);
  // Counts and logs the finished RPC.
  void AccountFinished(const Ending& ending, const FinishedEvent& finished,
                       int64_t generated_tokens);

  Frontend& frontend() { return frontend_; }
  grpc::CallbackServerContext& context() const { return context_; }
  WriteWatch& watch() { return *watch_; }
  const std::string& request_id() const { return request_id_; }

 private:
  // Ends the request, if it has not ended, because of its reader.
  void EndForStall(Stall why) ABSL_LOCKS_EXCLUDED(mutex_);

  Frontend& frontend_;
  grpc::CallbackServerContext& context_;
  const char* const rpc_;
  const std::shared_ptr<WriteWatch> watch_;  // shared with the alarm's callback
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool came_at_start_ = false;  // ReadRequest had all of the request
  std::string request_id_;      // set by NoteRequestId and Submit, constant afterwards
  Engine* engine_ = nullptr;    // set by Submit, constant afterwards

  mutable absl::Mutex mutex_;
  std::vector<SequenceEvent> outbox_ ABSL_GUARDED_BY(mutex_);
  bool posted_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;    // FinishedEvent was taken
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;   // CloseRpc was called
  bool dropped_ ABSL_GUARDED_BY(mutex_) = false;  // BoundOutbox returned true
  std::optional<SequenceId> id_ ABSL_GUARDED_BY(mutex_);
  CancelCause cause_ ABSL_GUARDED_BY(mutex_) = CancelCause::kNone;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);         // kRefused: why
  std::vector<int> stop_early_ ABSL_GUARDED_BY(mutex_);  // StopSequence before id_ was known
};

// The continuations of a request that have tokens, as the engine made them.
struct Continuations {
  int64_t longest = 0;  // tokens
  int64_t count = 0;
};

// Pieces of the wire that all RPCs with events share.
v1::FinishReason WireReason(FinishReason reason);
v1::Usage UsageOf(const FinishedEvent& finished, int64_t generated_tokens);
v1::Timings TimingsOf(const FinishedEvent& finished, const Continuations& continuations = {});
v1::Accepted AcceptedOf(const AcceptedEvent& accepted, const std::string& request_id);
v1::PrefillProgress ProgressOf(const PrefillProgressEvent& progress);

}  // namespace bst
