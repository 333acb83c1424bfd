#include "clients/common/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <system_error>

namespace bst::client {
namespace {

// What is no PEM would fail every handshake without a word about the file.
std::string ReadPem(const std::string& path) {
  std::string text = ReadFile(path);
  if (text.find("-----BEGIN ") == std::string::npos)
    throw UsageError(path + " is no PEM file: it has no line -----BEGIN ...");
  return text;
}

// What gRPC makes of these says nothing of the mistake.
void CheckServer(const std::string& server) {
  const bool is_url = server.rfind("http://", 0) == 0 || server.rfind("https://", 0) == 0;
  // Names that gRPC resolves by a scheme of their own (dns:///, unix:, ipv4:) are its to check.
  const size_t colon = server.rfind(':');
  const bool has_port = colon != std::string::npos && colon + 1 < server.size();
  if (is_url || !has_port) {
    throw UsageError("--server is '" + server +
                     "', not HOST:PORT (without http://), as 127.0.0.1:50051");
  }
}

CLI::Validator AtLeastZero(bool or_more, const char* description) {
  const auto check = [or_more](const std::string& text) -> std::string {
    double value = 0;
    if (!CLI::detail::lexical_cast(text, value) || !std::isfinite(value))
      return text + " is no number";
    if (value > 0 || (or_more && value == 0)) return "";
    return text + (or_more ? " is negative" : " is not above 0");
  };
  return CLI::Validator(check, description);
}

}  // namespace

CLI::Validator NotNegative() { return AtLeastZero(/*or_more=*/true, "NONNEGATIVE"); }
CLI::Validator Positive() { return AtLeastZero(/*or_more=*/false, "POSITIVE"); }

void Connection::AddFlags(CLI::App& app) {
  app.add_option("--server", server,
                 "HOST:PORT, or a name that gRPC resolves to several: dns:///NAME:PORT")
      ->capture_default_str();
  app.add_option("--token-file", token_file,
                 "File whose first line is the key to show to the server");
  app.add_flag("--tls", tls, "Use TLS with the system's certificate authorities");
  app.add_option("--tls-ca", tls_ca, "PEM file with the authorities to trust; implies --tls");
  app.add_option("--tls-cert", tls_cert, "PEM file with this client's certificate; implies --tls");
  app.add_option("--tls-key", tls_key, "PEM file with the key of --tls-cert; implies --tls");
  app.add_option("--tls-server-name", tls_server_name,
                 "Name to expect in the server's certificate; implies --tls");
}

std::shared_ptr<grpc::Channel> Connection::MakeChannel(grpc::ChannelArguments arguments) const {
  CheckServer(server);
  arguments.SetMaxReceiveMessageSize(-1);
  // Notices a server that vanished, also where nothing is sent for long: gRPC's own limit is two
  // pings without data.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // gRPC's own limit, 120 s, keeps a client away long after the server is back.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetLoadBalancingPolicyName("round_robin");  // gRPC's default: the first that answers
  if (!tls_server_name.empty()) arguments.SetSslTargetNameOverride(tls_server_name);
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  // Any flag of TLS asks for it: the bearer key must not go out in the clear by mistake.
  if (tls || !tls_ca.empty() || !tls_cert.empty() || !tls_key.empty() || !tls_server_name.empty()) {
    if (tls_cert.empty() != tls_key.empty())
      throw UsageError("--tls-cert and --tls-key go together");
    grpc::SslCredentialsOptions options;
    if (!tls_ca.empty()) options.pem_root_certs = ReadPem(tls_ca);
    if (!tls_cert.empty()) {
      options.pem_cert_chain = ReadPem(tls_cert);
      options.pem_private_key = ReadPem(tls_key);
    }
    credentials = grpc::SslCredentials(options);
  } else {
    credentials = grpc::InsecureChannelCredentials();
  }
  return grpc::CreateCustomChannel(server, credentials, arguments);
}

std::string Connection::ReadKey() const {
  if (token_file.empty()) return "";
  const std::string text = ReadFile(token_file);
  const std::string line = text.substr(0, text.find_first_of("\r\n"));
  const size_t begin = std::min(line.find_first_not_of(" \t"), line.size());
  const std::string key = line.substr(begin, line.find_last_not_of(" \t") + 1 - begin);
  if (key.empty()) throw UsageError("no key in the first line of " + token_file);
  // gRPC ends the process over a header with other bytes, and prints it. The key must not be shown.
  if (!std::all_of(key.begin(), key.end(), [](char c) { return c >= 0x21 && c <= 0x7e; }))
    throw UsageError("the first line of " + token_file +
                     " is no key: it has other characters than printable ASCII, or blanks");
  return key;
}

void AddKey(const std::string& key, grpc::ClientContext& context) {
  if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
}

std::string ReadFile(const std::string& path) {
  const bool is_stdin = path == "-";
  const auto fail = [&](int error) {
    throw UsageError("cannot read " + (is_stdin ? "the standard input" : path) + ": " +
                     std::generic_category().message(error));
  };
  std::FILE* const file = is_stdin ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) fail(errno);
  std::string text;
  char piece[1 << 16];
  while (const size_t count = std::fread(piece, 1, sizeof(piece), file)) text.append(piece, count);
  // A directory can be opened; a closed standard input says so when it is read.
  const int error = std::ferror(file) != 0 ? errno : 0;
  if (!is_stdin) std::fclose(file);
  if (error != 0) fail(error);
  return text;
}

grpc::StatusCode CodeOf(const grpc::Status& status) {
  // A proxy that lost its server after the headers went out can only reset the stream (HTTP/2
  // NO_ERROR or INTERNAL_ERROR), which gRPC calls INTERNAL. What a server has to say comes in
  // trailers instead.
  const bool is_reset = status.error_message() == "Received RST_STREAM with error code 0" ||
                        status.error_message() == "Received RST_STREAM with error code 2";
  return status.error_code() == grpc::StatusCode::INTERNAL && is_reset
             ? grpc::StatusCode::UNAVAILABLE
             : status.error_code();
}

std::string CodeName(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::OK:
      return "OK";
    case grpc::StatusCode::CANCELLED:
      return "CANCELLED";
    case grpc::StatusCode::INVALID_ARGUMENT:
      return "INVALID_ARGUMENT";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::NOT_FOUND:
      return "NOT_FOUND";
    case grpc::StatusCode::ALREADY_EXISTS:
      return "ALREADY_EXISTS";
    case grpc::StatusCode::PERMISSION_DENIED:
      return "PERMISSION_DENIED";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::FAILED_PRECONDITION:
      return "FAILED_PRECONDITION";
    case grpc::StatusCode::ABORTED:
      return "ABORTED";
    case grpc::StatusCode::OUT_OF_RANGE:
      return "OUT_OF_RANGE";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "UNIMPLEMENTED";
    case grpc::StatusCode::INTERNAL:
      return "INTERNAL";
    case grpc::StatusCode::UNAVAILABLE:
      return "UNAVAILABLE";
    case grpc::StatusCode::DATA_LOSS:
      return "DATA_LOSS";
    case grpc::StatusCode::UNAUTHENTICATED:
      return "UNAUTHENTICATED";
    default:
      return "UNKNOWN";
  }
}

}  // namespace bst::client
