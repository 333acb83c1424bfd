#include "server/grpc_log.h"

#include <grpc/support/log.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "engine/base/log.h"

namespace bst {
namespace {

void LogOfGrpc(gpr_log_func_args* args) {
  constexpr size_t kMaxBytes = 300;
  std::string message(std::string_view(args->message).substr(0, kMaxBytes));
  std::replace_if(
      message.begin(), message.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  std::string_view file = args->file;
  file.remove_prefix(file.rfind('/') + 1);  // npos + 1 is 0
  Log(args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kInfo, "grpc",
      {{"file", file}, {"line", args->line}, {"message", message}});
}

}  // namespace

void RouteGrpcLog() { gpr_set_log_function(LogOfGrpc); }

}  // namespace bst
