"""The Dockerfile by its text: what every target of it has to have. tests/e2e/image_test builds one of them."""

from __future__ import annotations

import json
import re
import subprocess
import unittest
from dataclasses import dataclass, field

from deploy_files import ROOT, load

UID = "10001"


@dataclass
class Stage:
    """One FROM and what follows it, as (instruction, rest) with continued lines joined."""

    name: str
    base: str  # the image at the bottom
    steps: list[tuple[str, str]] = field(default_factory=list)  # those of the stage that it is based on come first

    def values(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]

    def packages(self) -> list[str]:
        """What apt-get installs."""
        return [word for run in self.values("RUN")
                for words in re.findall(r"apt-get install -y --no-install-recommends ([^&]*)", run)
                for word in words.split()]


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            inherited = stages.get(base, Stage("", ""))
            stages[name] = stage = Stage(name, inherited.base or base, list(inherited.steps))
        else:
            stage.steps.append((instruction, rest))
    return stages


class DockerfileTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.stages = read_stages()
        cls.targets = {name: cls.stages[name] for name in ("cuda", "cpu")}

    def test_stages(self) -> None:
        """One that builds for each that is shipped, which has nothing of the first but what it COPYs."""
        self.assertEqual({name: self.copied_from(stage) for name, stage in self.stages.items()},
                         {"build": set(), "server": set(), "build-cuda": set(), "cuda": {"build-cuda"},
                          "cpu": {"build"}})
        # `docker build` without --target takes the last one.
        self.assertEqual(list(self.stages)[-1], "cpu")
        for stage in self.stages.values():
            self.assertEqual(stage.base, "debian:bookworm-slim")

    def copied_from(self, stage: Stage) -> set[str]:
        return {match.group(1) for copy in stage.values("COPY") if (match := re.match(r"--from=(\S+)", copy))}

    def test_least_privilege(self) -> None:
        for name, stage in self.targets.items():
            with self.subTest(name):
                self.assertEqual(stage.values("USER"), [UID])
                [useradd] = re.findall(r"useradd [^&]*", " ".join(stage.values("RUN")))
                [groupadd] = re.findall(r"groupadd [^&]*", " ".join(stage.values("RUN")))
                self.assertIn(f"--system --uid {UID} --gid bst --no-create-home --shell /usr/sbin/nologin bst", useradd)
                self.assertIn(f"--system --gid {UID} bst", groupadd)
                # A COPY belongs to root, and the server cannot write it.
                self.assertNotIn("--chown", " ".join(stage.values("COPY")))
        pod = load("kubernetes/base/deployment.yaml")["spec"]["template"]["spec"]["securityContext"]
        self.assertEqual((pod["runAsUser"], pod["runAsGroup"]), (int(UID), int(UID)))
        self.assertEqual(load("compose.yaml")["services"]["bst-server"]["user"], f"{UID}:{UID}")

    def test_no_compiler_is_shipped_and_no_package_list_left(self) -> None:
        for name, stage in self.targets.items():
            with self.subTest(name):
                compilers = [package for package in stage.packages() if re.search(r"-dev|g\+\+|cmake|ninja", package)]
                self.assertEqual(compilers, [])
        for stage in self.stages.values():
            for run in stage.values("RUN"):
                self.assertEqual("apt-get install" in run, "rm -rf /var/lib/apt/lists/*" in run)

    def test_programs_and_their_libraries_are_copied(self) -> None:
        for name, stage in self.targets.items():
            with self.subTest(name):
                copied = {copy.split()[-1] for copy in stage.values("COPY")}
                self.assertEqual(copied, {"/usr/local/bin/", "/usr/local/lib/bst/", "/models"})

    def test_the_cuda_plugin_is_built_and_a_gpu_asked_for(self) -> None:
        commands = " ".join(self.stages["build-cuda"].values("RUN"))
        self.assertRegex(commands, r"-DBST_CUDA=ON .*--target [^&]*\bbst_cuda\b")
        [environment] = self.targets["cuda"].values("ENV")
        self.assertEqual(environment, "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility")
        # CUDA packages are pinned and of one release.
        wheels = re.findall(r"nvidia-[\w-]+==(\d+\.\d+)\.\d+\b", commands)
        self.assertEqual((len(wheels), set(wheels)), (5, {"13.0"}))

    def test_ports_and_health(self) -> None:
        for name, stage in self.targets.items():
            with self.subTest(name):
                [entry], [ports], [health] = (stage.values(word) for word in ("ENTRYPOINT", "EXPOSE", "HEALTHCHECK"))
                flags = dict(flag.split("=") for flag in json.loads(entry)[1:])
                self.assertEqual(json.loads(entry)[0], "bst-server")
                self.assertEqual([address.split(":")[1] for address in flags.values()], ports.split())
                check = json.loads(health[health.index("CMD") + 3:])
                self.assertEqual(check[:2], ["bst", "health"])
                self.assertEqual(check[2].split(":")[1], ports.split()[0])

    def test_the_bundled_model_exists(self) -> None:
        for name, stage in self.targets.items():
            [command] = stage.values("CMD")
            [flag] = json.loads(command)
            path = flag.removeprefix("--model=/")
            self.assertTrue((ROOT / path / "config.json").exists(), name)
            # .dockerignore lets it through.
            self.assertIn("!models/**", (ROOT / ".dockerignore").read_text().split())

    def test_packages_are_those_of_the_build(self) -> None:
        """A library that the build needs is in the list that developers install, under the same name."""
        listed = subprocess.run(["sed", "-n", "/^build=(/,/)$/p", ROOT / "scripts/install_dependencies"],
                                capture_output=True, text=True, check=True).stdout
        developers = set(re.sub(r"^build=\(|\)$", "", listed, flags=re.M).split())
        self.assertGreater(len(developers), 15)
        installed = set(self.stages["build"].packages())
        self.assertLessEqual(installed, developers)
        self.assertLessEqual({package for package in developers if "-dev" in package}, installed)


if __name__ == "__main__":
    unittest.main()
