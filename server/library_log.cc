#include "server/library_log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "engine/base/log.h"

namespace bst {
namespace {

void LogOfLibrary(const char* library, LogLevel level, std::string_view file, int line,
                  std::string_view text) {
  constexpr size_t kMaxBytes = 300;
  std::string message(text.substr(0, kMaxBytes));
  std::replace_if(
      message.begin(), message.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  file.remove_prefix(file.rfind('/') + 1);  // npos + 1 is 0
  Log(level, library, {{"file", file}, {"line", line}, {"message", message}});
}

void LogOfGrpc(gpr_log_func_args* args) {
  LogOfLibrary("grpc",
               args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kInfo,
               args->file, args->line, args->message);
}

void LogOfProtobuf(google::protobuf::LogLevel level, const char* file, int line,
                   const std::string& message) {
  LogOfLibrary("protobuf",
               level >= google::protobuf::LOGLEVEL_ERROR ? LogLevel::kWarning : LogLevel::kInfo,
               file, line, message);
}

}  // namespace

void RouteLibraryLogs() {
  gpr_set_log_function(LogOfGrpc);
  google::protobuf::SetLogHandler(LogOfProtobuf);
}

}  // namespace bst
