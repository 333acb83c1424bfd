#include "clients/stress/html_report.h"

#include <nlohmann/json.hpp>

#include "clients/stress/report_template.h"

namespace bst::stress {
namespace {

constexpr std::string_view kPlace = "@REPORT@";

// JSON that may stand in a <script>: nothing in it closes the element or opens a comment.
std::string ScriptSafe(const std::string& json) {
  std::string safe;
  for (const char c : json) {
    if (c == '<') {
      safe += "\\u003c";
    } else {
      safe += c;
    }
  }
  return safe;
}

}  // namespace

std::string HtmlReport(const Json& report) {
  std::string html(kReportTemplate);
  html.replace(html.find(kPlace), kPlace.size(),
               ScriptSafe(report.dump(-1, ' ', true, Json::error_handler_t::replace)));
  return html;
}

}  // namespace bst::stress
