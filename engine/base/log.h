// One line per event on stderr: `I 2026-01-31T12:00:00.000Z event key=value ...`, or one JSON
// object.
//
// Never a prompt, a completion or a secret. Nothing logs inside a step; numbers belong to metrics.
// Threads     Thread-safe: a line is written with one write(2).
// Tested by   tests/engine/base/log_test.cc
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace bst {

enum class LogLevel { kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

// One `key=value` of a line. Numbers keep their type in JSON; those that are not finite are null.
class LogField {
 public:
  LogField(std::string_view key, std::string_view value)
      : key_(key), value_(value), quoted_(true) {}
  LogField(std::string_view key, const char* value) : LogField(key, std::string_view(value)) {}
  LogField(std::string_view key, const std::string& value)
      : LogField(key, std::string_view(value)) {}
  template <typename Number>
  requires std::is_arithmetic_v<Number> LogField(std::string_view key, Number value)
      : key_(key), value_(absl::StrCat(value)), quoted_(false) {}

  const std::string& key() const { return key_; }
  const std::string& value() const { return value_; }
  bool quoted() const { return quoted_; }  // A string, not a number.

 private:
  std::string key_;
  std::string value_;
  bool quoted_;
};

// Set once by main before other threads start; text until then.
void SetLogFormat(LogFormat format);

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// The line that Log writes, without the newline. Exposed for the test.
std::string FormatLogLine(LogFormat format, LogLevel level, std::string_view time,
                          std::string_view event, std::initializer_list<LogField> fields);

}  // namespace bst
