// Frontend: what all RPCs share, and the gate they pass first.
//
// The server listens before the model is loaded, so that probes get an answer; until Publish every
// request is refused with kUnavailable.
//
// Ownership   Owns the engine and the tokenizer from Publish on, and what counts and carries
//             events. Outlives every RPC: the gRPC servers are shut down first.
// Threads     Thread-safe.
// Tested by   tests/server/server_test.cc, tests/server/generation_service_test.cc
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/active_requests.h"
#include "server/auth_tokens.h"
#include "server/delivery_thread.h"
#include "server/held_text.h"
#include "server/message_readers.h"
#include "server/metrics_exporter.h"
#include "server/server_config.h"
#include "server/write_watch.h"

namespace grpc {
class CallbackServerContext;
}

namespace bst {

struct ServedModel {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Engine> engine;
};

// Where the server can be reached, HOST:PORT with the ports that were bound; empty: off.
struct Addresses {
  std::string grpc, metrics, control;
};

class Frontend {
 public:
  Frontend(ServerConfig config, AuthTokens auth);
  ~Frontend();

  // Requests are served with `model` from now on. REQUIRES: once.
  void Publish(ServedModel model);

  // Whether the call may go on, and the model to serve it with.
  // Errors: kUnauthenticated, kPermissionDenied; kUnavailable while the model is loading.
  absl::StatusOr<const ServedModel*> Admit(const grpc::CallbackServerContext& context) const;
  // Admit for a request that will be queued, so that one that cannot be served costs no
  // tokenisation. Errors: also those of CheckQueue.
  absl::StatusOr<const ServedModel*> AdmitToQueue(const grpc::CallbackServerContext& context) const;
  // Whether the queue could take one more at all; Submit has the last word.
  // Errors: kUnavailable while draining; kResourceExhausted. REQUIRES: a model is served.
  absl::Status CheckQueue() const;
  // Whether a text may be tokenised, or tokens made one, whose answer waits for its reader.
  // Errors: kUnavailable while draining; kResourceExhausted while readers are behind.
  // REQUIRES: a model is served.
  absl::Status CheckAnswer() const;
  // Whether a message of so many bytes may be read: small ones at once, and so always.
  // Errors: kResourceExhausted when too many wait to be read.
  absl::Status CheckReaders(size_t bytes) const;
  // The credentials alone.
  absl::Status CheckCredentials(const grpc::CallbackServerContext& context) const;

  // No request is taken from now on: the engine drains, and calls whose request has not come yet
  // end with kUnavailable. REQUIRES: a model is served.
  void Drain();

  // Counts a request that was refused with `status`: before it was queued, or for a later part of
  // it.
  void CountRejected(const absl::Status& status);
  // Counts and logs a call that ended without the engine: refused, or nothing to generate. `start`:
  // when it came; `request_id`: empty where it has none, or none that is well formed, or was
  // refused before that was read.
  void AccountCall(const char* rpc, const std::string& request_id, const absl::Status& status,
                   std::chrono::steady_clock::time_point start);
  // Where readers are behind: cuts those that had the write timeout for what they read, since
  // others are refused for it. One that takes a message now and then would keep them out for as
  // long as it likes.
  void CutOverdueReaders();
  // Logs a call that is cut because of its reader.
  void LogCut(const char* rpc, const std::string& request_id,
              const grpc::CallbackServerContext& context, Stall why) const;

  // nullptr while loading.
  const ServedModel* model() const { return published_.load(std::memory_order_acquire); }
  const ServerConfig& config() const { return config_; }
  ActiveRequests& active() { return active_; }
  MetricsExporter& metrics() { return metrics_; }
  DeliveryThread& delivery() { return delivery_; }
  // For what takes long, which no stream may wait for.
  DeliveryThread& slow_delivery() { return slow_delivery_; }
  HeldText& held_text() { return held_text_; }
  MessageReaders& readers() { return readers_; }
  // Whether half of the prompt tokens that may wait do.
  bool QueueIsFilling() const;

  void set_addresses(Addresses addresses) ABSL_LOCKS_EXCLUDED(mutex_);
  Addresses addresses() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status CheckUnread() const;
  bool UnreadIsFull() const;
  bool RequestsAreFull(const EngineLoad& load) const;

  const ServerConfig config_;
  const AuthTokens auth_;
  mutable absl::Mutex mutex_;
  Addresses addresses_ ABSL_GUARDED_BY(mutex_);
  ActiveRequests active_;
  HeldText held_text_;
  MetricsExporter metrics_;  // reads active_
  DeliveryThread slow_delivery_;
  DeliveryThread delivery_;  // after slow_delivery_, to which it posts to its end
  ServedModel model_;        // after what its engine calls
  std::atomic<const ServedModel*> published_{nullptr};
  MessageReaders readers_;  // last: they use all the others
};

}  // namespace bst
