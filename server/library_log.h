// What the gRPC and Protobuf libraries say about themselves -> lines of our log.
//
// Their messages may quote what came over the wire: they are cut, and stripped of all but printable
// ASCII.
//
// Threads     Thread-safe.
// Tested by   tests/e2e/reliability_log_test.py
#pragma once

namespace bst {

// From now on, for the whole process. Until then the libraries write to stderr in formats of their
// own. Not while another thread may be using them.
void RouteLibraryLogs();

}  // namespace bst
