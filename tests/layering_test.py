"""The arrows between folders, checked on the #include lines.

A folder may include itself and what its row lists; nothing includes tests. Also here: what no source
of ours may call, whatever folder it stands in.
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

INCLUDE = re.compile(r'^\s*#include\s+"((?:engine|server|clients|tests|proto)/[^"]+)"', re.M)
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
            nouns = {i.split("/")[1] for i in INCLUDE.findall(text)} & {"scheduler", "model", "sampling"}
            nouns.discard("sampling") if "sampling_params.h" in text else None
            if len(nouns) > 1:
                wrong.append(f"{name} names {sorted(nouns)}")
        self.assertEqual(wrong, [])

    def test_grpc_protobuf_and_prometheus_stay_in_the_server_and_clients(self):
        wrong = [n for n, text in sources()
                 if n.startswith("engine/") and re.search(r"#include\s+[<\"](grpc|google/protobuf|prometheus)", text)]
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
            if EXIT.search(code) and not name.endswith("main.cc"):
                wrong.append(f"{name}: exit: only a main may end the process")
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    sys.exit(unittest.main())
