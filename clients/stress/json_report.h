// The report as JSON. The names of the first part are those of vLLM's serving benchmark
// (`vllm bench serve`), so that what reads its files reads these; the rest is our own.
//
// Threads     Free functions.
// Tested by   tests/clients/stress/report_test.cc
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "clients/stress/request_record.h"
#include "clients/stress/run_result.h"

namespace bst::stress {

using Json = nlohmann::ordered_json;

Json RunJson(const Subject& subject, const RunResult& result);

// The fields of RunJson for the highest load that held (the lowest, if none did), and "sweep".
Json SweepJson(const Subject& subject, const SweepResult& sweep);

// One line of --requests-out.
Json RequestJson(const RequestRecord& record);

}  // namespace bst::stress
