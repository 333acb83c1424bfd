// ReadEvents: the events of one streaming call, from the first to its status.
//
// Threads     Runs on the calling thread, to the end of the call.
// Tested by   tests/e2e/cli_test.py
#pragma once

#include <grpcpp/support/status.h>

#include <optional>

namespace bst::cli {

// Hands every event of `reader`, a stream of GenerateEvents or ScoreEvents, to `handle`. The status
// is the call's, or INTERNAL where the stream ends with OK and no Finished event. `before_finish`
// is called when there are no more events.
template <typename Event, typename Reader, typename Handle, typename BeforeFinish>
grpc::Status ReadEvents(Reader& reader, const Handle& handle, const BeforeFinish& before_finish) {
  Event event;
  bool finished = false;
  while (reader.Read(&event)) {
    finished |= event.has_finished();
    handle(event);
  }
  before_finish();
  grpc::Status status = reader.Finish();
  if (status.ok() && !finished) {
    return {grpc::StatusCode::INTERNAL, "the stream ended without a Finished event"};
  }
  return status;
}

template <typename Event, typename Reader, typename Handle>
grpc::Status ReadEvents(Reader& reader, const Handle& handle) {
  return ReadEvents<Event>(reader, handle, [] {});
}

}  // namespace bst::cli
