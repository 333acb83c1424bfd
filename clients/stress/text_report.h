// The report for people: what a run printed to a terminal ends with, and the line while it runs.
//
// Threads     Free functions; LiveLine thread-compatible.
// Tested by   tests/clients/stress/report_test.cc
#pragma once

#include <cstdio>
#include <string>

#include "clients/stress/recorder.h"
#include "clients/stress/run_result.h"

namespace bst::stress {

std::string RunText(const Subject& subject, const RunResult& result);

// The head of the table of a sweep, and one of its rows.
std::string SweepHeadText(bool is_rate);
std::string SweepRowText(const SweepPoint& point);

// "  12.0 s  sent 120  running 8  OK 110  other 2  1234 tok/s  TTFT p50 12.1 ms p99 80.0 ms"
std::string ProgressText(double seconds, size_t running, const Recorder::Live& live,
                         double tokens_per_second);

// Shows progress on stderr while it lives, on a terminal only.
class LiveLine {
 public:
  LiveLine();
  ~LiveLine() { Clear(); }

  void Show(double seconds, size_t running, const Recorder::Live& live);
  void Clear();

 private:
  const bool is_terminal_;
  bool is_shown_ = false;
  double last_seconds_ = 0;
  uint64_t last_tokens_ = 0;
};

}  // namespace bst::stress
