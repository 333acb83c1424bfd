#include "engine/base/log.h"

#include <unistd.h>

#include <atomic>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace bst {
namespace {

std::atomic<LogFormat> log_format{LogFormat::kText};

char LevelLetter(LogLevel level) {
  switch (level) {
    case LogLevel::kInfo:
      return 'I';
    case LogLevel::kWarning:
      return 'W';
    case LogLevel::kError:
      return 'E';
  }
  return '?';
}

std::string JsonString(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      absl::StrAppendFormat(&out, "\\u%04x", byte);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string JsonNumber(const std::string& value) {
  return absl::ascii_isdigit(static_cast<unsigned char>(value.back())) ? value
                                                                       : "null";  // inf, nan
}

// Text values are quoted only where a space, a quote or a control character would split the line.
std::string TextValue(const std::string& value) {
  for (const char c : value) {
    if (c == ' ' || c == '"' || c == '=' || static_cast<unsigned char>(c) < 0x20)
      return JsonString(value);
  }
  return value.empty() ? "\"\"" : value;
}

}  // namespace

void SetLogFormat(LogFormat format) { log_format.store(format, std::memory_order_relaxed); }

std::string FormatLogLine(LogFormat format, LogLevel level, std::string_view time,
                          std::string_view event, std::initializer_list<LogField> fields) {
  std::string line;
  if (format == LogFormat::kJson) {
    line = absl::StrFormat(R"({"level":"%c","time":"%s","event":%s)", LevelLetter(level),
                           std::string(time), JsonString(event));
    for (const LogField& field : fields) {
      absl::StrAppend(&line, ",", JsonString(field.key()), ":",
                      field.quoted() ? JsonString(field.value()) : JsonNumber(field.value()));
    }
    return line + "}";
  }
  line = absl::StrFormat("%c %s %s", LevelLetter(level), std::string(time), std::string(event));
  for (const LogField& field : fields) {
    absl::StrAppend(&line, " ", field.key(), "=",
                    field.quoted() ? TextValue(field.value()) : field.value());
  }
  return line;
}

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  const std::string line =
      FormatLogLine(log_format.load(std::memory_order_relaxed), level, time, event, fields) + "\n";
  // One write per line, so that lines of several threads do not mix. Nobody can be told of a
  // failure.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace bst
