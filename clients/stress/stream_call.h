// StreamCall: one Generate stream, from the send to its status, by gRPC's callbacks.
//
// Ownership   Owns itself from Start until OnDone returned; whoever holds the shared pointer beyond
//             that holds a finished call.
// Threads     Events come on gRPC's threads, one at a time. Cut is thread-safe.
// Tested by   tests/e2e/stress_test.py
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "bst/v1/generation.grpc.pb.h"
#include "clients/stress/recorder.h"
#include "clients/stress/request_record.h"
#include "clients/stress/traffic.h"

namespace bst::stress {

// Seconds since the start of a run.
class RunClock {
 public:
  double Now() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class StreamCall final : public grpc::ClientReadReactor<v1::GenerateEvent>,
                         public std::enable_shared_from_this<StreamCall> {
 public:
  // Whom a call tells what happens; outlives it until Done.
  class Host {
   public:
    virtual ~Host() = default;
    virtual const RunClock& clock() const = 0;
    virtual Recorder& recorder() = 0;
    // Runs `action` at that time, on a thread of the host.
    virtual void At(double seconds, std::function<void()> action) = 0;
    // The last thing a call does.
    virtual void Done(std::shared_ptr<StreamCall> call) = 0;
  };

  // `record` brings what earlier attempts left in it. `keep_output`: tokens and log-probabilities
  // go into the record.
  StreamCall(Host& host, std::shared_ptr<const RequestPlan> plan, RequestRecord record,
             bool keep_output);

  // Sends the request. `key` may be empty.
  void Start(v1::Generation::Stub& stub, const std::string& key);

  // Ends the stream because the run is over.
  void Cut();

  // After Done.
  RequestRecord& record() { return record_; }
  const std::shared_ptr<const RequestPlan>& plan() const { return plan_; }

 private:
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  void CancelAsPlanned();
  void TakeTokens(const v1::Tokens& tokens);
  void TakeFinished(const v1::Finished& finished);
  void TakeStatus(const grpc::Status& status);
  void FlushSamples();

  Host& host_;
  const std::shared_ptr<const RequestPlan> plan_;
  const bool keep_output_;
  std::shared_ptr<StreamCall> self_;  // from Start to OnDone
  grpc::ClientContext context_;
  v1::GenerateEvent event_;
  std::atomic<bool> was_cancelled_ = false, was_cut_ = false;
  std::atomic<double> cut_seconds_ = 0;  // when was_cut_

  RequestRecord record_;
  bool has_finished_ = false;
  uint64_t usage_tokens_ = 0;
  double first_token_seconds_ = 0, last_token_seconds_ = 0, last_flush_seconds_ = 0;
  double last_message_seconds_ = 0;   // of any kind; before the first: the send of this attempt
  std::vector<TokenSample> samples_;  // not yet with the recorder
};

}  // namespace bst::stress
