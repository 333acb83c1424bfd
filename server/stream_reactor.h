// StreamReactor: one RPC with a stream of answers that the engine feeds: events -> messages ->
// writes. `Base` is gRPC's reactor, of bytes: ServerWriteReactor, or ServerBidiReactor where
// requests come in a stream too.
//
// At most one write is in flight. While it is, events are taken in and merged, so a slow reader
// gets fewer, fuller messages, and a stop string is found when its last token comes, not when the
// reader gets there. A reader that is too far behind, or takes no message for too long, loses the
// stream: see EngineCall and WriteWatch.
//
// Ownership   Owns itself (self_) from Start until gRPC's OnDone, the last reaction.
// Threads     Thread-safe. Reactions come on gRPC threads, Advance on any.
// Tested by   tests/server/generation_service_test.cc, tests/server/score_service_test.cc
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/engine_call.h"
#include "server/grpc_status.h"
#include "server/wire_message.h"

namespace bst {

template <typename Message, typename Base = grpc::ServerWriteReactor<grpc::ByteBuffer>>
class StreamReactor : public Base, public EngineCall {
 public:
  void Advance() override ABSL_LOCKS_EXCLUDED(write_mutex_) {
    enum class Next { kNothing, kWrite, kFinish } next = Next::kNothing;
    std::optional<Message> message;
    {
      absl::MutexLock lock(&write_mutex_);
      for (SequenceEvent& event : TakeEvents()) Handle(std::move(event));
      if (BoundOutbox(PendingBytes())) DropOutput();
      AccountUnread(UnreadBytes());
      if (writing_ || finishing_) return;
      if (!reader_gone_) message = NextMessage();
      if (message.has_value()) {
        writing_ = true;
        next = Next::kWrite;
      } else if (end_.has_value() && finish_holds_ == 0) {
        finishing_ = true;
        next = Next::kFinish;
      }
    }
    // Outside the lock: whoever set writing_ or finishing_ is the only one here.
    if (next == Next::kWrite) {
      bytes_ = BytesOf(*message);
      watch().Begin();
      this->StartWrite(&bytes_);
    }
    if (next == Next::kFinish) this->Finish(ToGrpcStatus(*end_, context()));
  }

  void OnWriteDone(bool ok) final ABSL_LOCKS_EXCLUDED(write_mutex_) {
    watch().End();
    {
      absl::MutexLock lock(&write_mutex_);
      writing_ = false;
      reader_gone_ |= !ok;
    }
    if (!ok) Cancel(CauseOfCancellation());
    Advance();
  }

  void OnCancel() final {
    {
      absl::MutexLock lock(&write_mutex_);
      reader_gone_ = true;
    }
    Cancel(CauseOfCancellation());
  }

  void OnDone() override {
    CloseRpc();
    self_.reset();
  }

 protected:
  StreamReactor(Frontend& frontend, grpc::CallbackServerContext& context, const char* rpc)
      : EngineCall(frontend, context, rpc) {}

  // From now on the reactor lives until OnDone.
  void OwnItself(std::shared_ptr<StreamReactor> self) { self_ = std::move(self); }

  void Reject(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(write_mutex_) {
    AccountRejected(status);
    {
      absl::MutexLock lock(&write_mutex_);
      end_ = status;
    }
    Advance();
  }

  // Takes one event in; FinishedEvent must lead to End.
  virtual void Handle(SequenceEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) = 0;
  // Memory of what was taken in and is not written yet: of what the engine made, and of all.
  virtual size_t PendingBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) = 0;
  virtual size_t UnreadBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    return PendingBytes();
  }
  // Forgets it, and takes in no more of it; what ends the stream stays.
  virtual void DropOutput() ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) = 0;
  // What to write next, if anything is ready.
  virtual std::optional<Message> NextMessage() ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) = 0;
  // The RPC ends with `status` once all messages are written.
  void End(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex_) {
    end_ = std::move(status);
  }

  // Whether the RPC will finish, at the latest when all is written.
  bool HasEnded() ABSL_LOCKS_EXCLUDED(write_mutex_) {
    absl::MutexLock lock(&write_mutex_);
    return end_.has_value();
  }

  // Keeps the RPC from finishing while a read is being started, which must not come after that.
  // False: it is finishing.
  bool HoldFinish() ABSL_LOCKS_EXCLUDED(write_mutex_) {
    absl::MutexLock lock(&write_mutex_);
    if (finishing_) return false;
    ++finish_holds_;
    return true;
  }
  // REQUIRES: HoldFinish returned true. Nothing may follow: it may finish.
  void ReleaseFinish() ABSL_LOCKS_EXCLUDED(write_mutex_) {
    {
      absl::MutexLock lock(&write_mutex_);
      --finish_holds_;
    }
    Advance();
  }

  absl::Mutex write_mutex_;

 private:
  std::shared_ptr<StreamReactor> self_;
  grpc::ByteBuffer bytes_;  // being written while writing_
  bool writing_ ABSL_GUARDED_BY(write_mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(write_mutex_) = false;
  int finish_holds_ ABSL_GUARDED_BY(write_mutex_) = 0;
  bool reader_gone_ ABSL_GUARDED_BY(write_mutex_) = false;
  std::optional<absl::Status> end_;  // guarded by write_mutex_ until finishing_, constant then
};

}  // namespace bst
