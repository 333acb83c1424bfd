#include "clients/common/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace bst::client {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string WriteTemporary(const std::string& name, const std::string& text) {
  const std::string path =
      testing::TempDir() + "/bst_connection_test_" + std::to_string(getpid()) + "_" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

// What the UsageError of `function` says; empty: there is none.
template <typename Function>
std::string Complaint(const Function& function) {
  try {
    function();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

std::string KeyOf(const std::string& text) {
  Connection connection;
  connection.token_file = WriteTemporary("key", text);
  return connection.ReadKey();
}

TEST(ConnectionTest, TheKeyIsTheFirstLineWithoutBlanksAroundIt) {
  EXPECT_EQ(Connection().ReadKey(), "");
  for (const char* const text : {"s3cret~", "s3cret~\n", "s3cret~\r\nmore\n", " \ts3cret~\t \n"})
    EXPECT_EQ(KeyOf(text), "s3cret~") << text;
}

TEST(ConnectionTest, AKeyThatIsNoHeaderIsRefusedAndNotShown) {
  for (const char* const text :
       {"s3\tcret", "s3 cret", "\xef\xbb\xbfs3cret", "s3cret\x7f", "\x01"}) {
    const std::string complaint = Complaint([text] { KeyOf(text); });
    EXPECT_THAT(complaint, HasSubstr("_key is no key")) << text;
    EXPECT_THAT(complaint, Not(HasSubstr("cret")));
  }
  for (const char* const text : {"", "\nkey", " \t \n"})
    EXPECT_THAT(Complaint([text] { KeyOf(text); }), HasSubstr("no key in the first line of"));
}

TEST(ConnectionTest, AFileThatCannotBeReadIsNamed) {
  const std::string bytes("a\0\r\n\xff", 5);
  EXPECT_EQ(ReadFile(WriteTemporary("bytes", bytes)), bytes);
  EXPECT_EQ(ReadFile(WriteTemporary("empty", "")), "");
  const std::string folder = testing::TempDir();
  EXPECT_EQ(Complaint([&folder] { ReadFile(folder); }),
            "cannot read " + folder + ": Is a directory");
  EXPECT_EQ(Complaint([&folder] { ReadFile(folder + "nonexistent"); }),
            "cannot read " + folder + "nonexistent: No such file or directory");
}

TEST(ConnectionTest, WhatIsNoPemIsRefusedByItsName) {
  const std::string pem = WriteTemporary("pem", "-----BEGIN CERTIFICATE-----\n");
  const std::string other = WriteTemporary("other", "no certificate");
  Connection no_ca, no_cert, no_key;
  no_ca.tls_ca = other;
  no_cert.tls_cert = no_key.tls_key = other;
  no_cert.tls_key = no_key.tls_cert = pem;
  for (const Connection* const connection : {&no_ca, &no_cert, &no_key}) {
    EXPECT_THAT(Complaint([connection] { connection->MakeChannel(); }),
                HasSubstr("_other is no PEM file"));
  }
}

TEST(ConnectionTest, AServerIsAHostAndAPort) {
  Connection connection;
  for (const char* const server :
       {"", "localhost", "localhost:", "http://localhost:50051", "https://localhost:50051"}) {
    connection.server = server;
    EXPECT_THAT(Complaint([&connection] { connection.MakeChannel(); }), HasSubstr("HOST:PORT"));
  }
  for (const char* const server : {"localhost:50051", "[::1]:50051", "dns:///bst.svc:50051",
                                   "unix:/run/bst.sock", "ipv4:127.0.0.1:1,127.0.0.1:2"}) {
    connection.server = server;
    EXPECT_NE(connection.MakeChannel(), nullptr) << server;
  }
}

TEST(ConnectionTest, AKeyWithoutACertificateIsWrongUsage) {
  Connection connection;
  connection.tls_key = WriteTemporary("pem", "-----BEGIN PRIVATE KEY-----\n");
  EXPECT_THAT(Complaint([&connection] { connection.MakeChannel(); }), HasSubstr("go together"));
}

}  // namespace
}  // namespace bst::client
