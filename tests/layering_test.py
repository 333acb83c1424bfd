"""The arrows between folders, checked on the #include lines.

A folder may include itself and what its row lists; nothing includes tests. Also here: what no source
of ours may call, whatever folder it stands in, and what the first comment of a header says.
"""

import ast
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent

BASE = {"engine/base"}
TENSOR = BASE | {"engine/tensor"}
BACKEND = TENSOR | {"engine/backend"}
STATE = BACKEND | {"engine/state"}
CHECKPOINT = BACKEND | {"engine/checkpoint"}
FACE = {"engine/engine.h", "engine/generate_request.h", "engine/token_sink.h"}

# Most specific prefix first. "engine/" is the face of the library and the engine thread: it names all.
ARROWS = [
    ("engine/base/", BASE),
    ("engine/tensor/", TENSOR),
    ("engine/backend/", BACKEND),
    ("engine/checkpoint/", CHECKPOINT),
    ("engine/state/", STATE),
    ("engine/sampling/", BACKEND | {"engine/sampling"}),
    ("engine/tokenizer/", BASE | {"engine/tokenizer"}),
    ("engine/scheduler/", STATE | {"engine/scheduler"}),
    ("engine/model/", CHECKPOINT | STATE | {"engine/model"}),
    ("engine/", {"engine"}),
    ("server/", {"server", "proto", "engine/tokenizer", "engine/base", "engine/sampling/sampling_params.h"} | FACE),
    ("clients/", {"clients", "proto"}),
]

# Within engine/ only these files may name more than one of scheduler, model and sampling.
MANY_NOUNS = {"engine/engine.cc", "engine/step_runner.cc", "engine/step_runner.h"}
# Plain values, which do not count.
PLAIN = {"engine/sampling/sampling_params.h", "engine/scheduler/priority.h"}

INCLUDE = re.compile(r'^\s*#include\s+"((?:engine|server|clients|tests|proto)/[^"]+)"', re.M)
ANY_INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.M)
CUDA = re.compile(r"cuda|cublas|cufft|curand|cusparse|cutlass|nvrtc|nvtx|mma\.h|cooperative_groups")
# name -> why not
BANNED = {
    r"\bgetenv\s*\(": "behaviour must not depend on environment variables",
    r"\bstd::cout\b": "programs print with printf or a stream they were given",
    r"\bthread_local\b": "state belongs to an object",
    r"\bsystem\s*\(": "no shell",
    r"\brand\s*\(\s*\)": "random numbers are seeded",
}
EXIT = re.compile(r"\b(?:std::)?_?exit\s*\(")


def sources():
    for folder in ("engine", "server", "clients"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".h", ".cc", ".inl", ".cu", ".cuh"):
                yield path.relative_to(ROOT).as_posix(), path.read_text()


def allowed(include, targets):
    return any(include == t or include.startswith(t.rstrip("/") + "/") for t in targets)


class LayeringTest(unittest.TestCase):
    def test_arrows_point_one_way(self):
        wrong, seen = [], 0
        for name, text in sources():
            targets = next(t for prefix, t in ARROWS if name.startswith(prefix))
            for include in INCLUDE.findall(text):
                seen += 1
                if not allowed(include, targets):
                    wrong.append(f"{name} includes {include}")
        self.assertGreater(seen, 100, "the test no longer finds the includes")
        self.assertEqual(wrong, [])

    def test_only_the_engine_thread_names_scheduler_model_and_sampling_together(self):
        wrong = []
        for name, text in sources():
            if not name.startswith("engine/") or name.count("/") > 1 or name in MANY_NOUNS:
                continue
            nouns = {i.split("/")[1] for i in set(INCLUDE.findall(text)) - PLAIN} & {"scheduler", "model", "sampling"}
            if len(nouns) > 1:
                wrong.append(f"{name} names {sorted(nouns)}")
        self.assertEqual(wrong, [])

    def test_grpc_protobuf_and_prometheus_stay_in_the_server_and_clients(self):
        wrong = [f"{name} includes {i}" for name, text in sources() if name.startswith("engine/")
                 for i in ANY_INCLUDE.findall(text) if re.match("grpc|google/|prometheus|bst/", i)]
        self.assertEqual(wrong, [])

    def test_cuda_headers_stay_in_its_backend(self):
        found = [(name, i) for name, text in sources() for i in ANY_INCLUDE.findall(text) if CUDA.match(i)]
        self.assertIn(("engine/backend/cuda/device.h", "cuda_runtime.h"), found)
        self.assertEqual([f"{n} includes {i}" for n, i in found if not n.startswith("engine/backend/cuda/")], [])

    def test_headers_say_their_threads_and_their_tests(self):
        wrong, seen = [], 0
        for name, text in sources():
            if not name.endswith((".h", ".cuh")):
                continue
            comment = re.match(r"(?://[^\n]*\n)*", text)[0]
            if not re.search(r"^// Threads +\S", comment, re.M):
                wrong.append(f"{name} does not say its threads")
            tested = re.search(r"^// Tested by +(.*(?:\n//  +.*)*)", comment, re.M)
            if not tested:
                wrong.append(f"{name} does not say what tests it")
                continue
            folder = "tests"
            # A bare name is beside the path before it.
            for test in re.findall(r"tests/[\w/]+(?:\.\w+)?|\w+\.(?:cc|py)\b", tested[1]):
                path = ROOT / (test if test.startswith("tests/") else f"{folder}/{test}")
                folder = path.parent.relative_to(ROOT).as_posix()
                seen += 1
                if not path.exists():
                    wrong.append(f"{name} names {test}, which does not exist")
        self.assertGreater(seen, 150, "the test no longer finds the names")
        self.assertEqual(wrong, [])

    def test_comments_have_at_most_a_hundred_columns(self):
        """clang-format leaves comments as they are: it would run their tables and sections together."""
        wrong = [f"{name}:{number}" for name, text in sources()
                 for number, line in enumerate(text.splitlines(), 1) if len(line) > 100 and "//" in line]
        self.assertEqual(wrong, [])

    def test_the_python_client_depends_on_proto_alone(self):
        allowed_modules = sys.stdlib_module_names | {"grpc", "google", "bst_client"}
        wrong, seen = [], 0
        for path in sorted((ROOT / "clients/python/bst_client").glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                    [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
                seen += len(names)
                # typing_extensions: for type checkers alone.
                wrong += [f"{path.name} imports {n}" for n in names
                          if n.split(".")[0] not in allowed_modules | {"typing_extensions"}]
        self.assertGreater(seen, 20, "the test no longer finds the imports")
        self.assertEqual(wrong, [])

    def test_nothing_calls_what_is_banned(self):
        wrong = []
        for name, text in sources():
            code = re.sub(r"//[^\n]*", "", text)
            for pattern, why in BANNED.items():
                if re.search(pattern, code):
                    wrong.append(f"{name}: {pattern}: {why}")
            # A signal handler has nobody to return to.
            if EXIT.search(code) and not name.endswith("main.cc") and name != "server/shutdown_signal.cc":
                wrong.append(f"{name}: exit: only a main may end the process")
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    sys.exit(unittest.main())
