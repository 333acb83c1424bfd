// The report as one HTML file: its numbers, and charts drawn by a script in the file itself. It
// refers to nothing outside.
//
// Threads     Free function.
// Tested by   tests/clients/stress/report_test.cc
#pragma once

#include <string>

#include "clients/stress/json_report.h"

namespace bst::stress {

// `report` is what RunJson or SweepJson gave.
std::string HtmlReport(const Json& report);

}  // namespace bst::stress
