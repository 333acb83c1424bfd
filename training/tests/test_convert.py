"""Converted layers compute what the upstream code computes.

The expected numbers come from the upstream formulas, written here in float64 on the upstream
arrays; the actual ones from the evaluator of our own format on the converted tensors.

One file, though long: both converters are held against the same evaluator in the same way.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
import torch

from training.bst_train.checkpoint import write_safetensors
from training.bst_train.convert import meliad, s4
from training.bst_train.convert.__main__ import main
from training.bst_train.convert.layer import ConversionError, ConvertedLayer

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))

import evaluator  # noqa: E402
import safetensors_file  # noqa: E402

Array = np.ndarray
Arrays = Dict[str, Array]


class Stub(evaluator.Checkpoint):
    """Tensors without a directory, not rounded to float32."""

    def __init__(self, tensors: Arrays) -> None:
        self.tensors = dict(tensors)
        self._used = set()


def relative_rms(actual: Array, expected: Array) -> float:
    return evaluator.relative_rms(actual, expected)


def run_main(*arguments: object) -> Tuple[int, str]:
    """Exit status and everything printed."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = main([str(argument) for argument in arguments])
    return status, text.getvalue()


# ---- S4 as upstream defines it -------------------------------------------------------------------

UPSTREAM_TRANSFORMS = {
    "none": lambda x: x,
    "exp": np.exp,
    "relu": lambda x: np.where(x > 0.0, x, 0.0) + 1e-4,
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "softplus": lambda x: np.log(1.0 + np.exp(x)),
}


def as_complex(pairs: Array) -> Array:
    return pairs[..., 0] + 1j * pairs[..., 1]


def as_pairs(values: Array) -> Array:
    return np.stack([values.real, values.imag], -1)


def with_conjugates(values: Array) -> Array:
    return np.concatenate([values, values.conj()], -1)


def v4_arrays(
    rng: np.random.Generator,
    features: int = 6,
    modes: int = 4,
    n_ssm: int = 6,
    channels: int = 1,
    rank: int = 0,
    dt_transform: str = "exp",
    dt_tie: bool = True,
    prefix: str = "",
) -> Arrays:
    """Random arrays of a v4 module; steps of 0.02 to 0.3, half-lives of a few steps to a few
    hundred, S4 with l_kernel = 0."""
    step = np.exp(rng.uniform(np.log(0.02), np.log(0.3), (features, 1 if dt_tie else modes)))
    inverse = {"exp": np.log, "softplus": lambda x: np.log(np.expm1(x))}[dt_transform]

    def pairs(*shape: int) -> Array:
        return rng.normal(size=shape + (2,))

    arrays = {
        "D": rng.normal(size=(channels, features)),
        "kernel.C": pairs(channels, features, modes),
        "kernel.B": pairs(1, n_ssm, modes),
        "kernel.inv_dt": inverse(step),
        "kernel.A_real": rng.uniform(-2.0, 0.0, (n_ssm, modes)),
        "kernel.A_imag": np.arange(modes) * 2.0 + rng.uniform(0.0, 1.0, (n_ssm, modes)),
    }
    if rank:
        arrays["kernel.P"] = 0.7 * pairs(rank, n_ssm, modes)
        arrays["kernel.l_kernel"] = np.array(0)
    return {prefix + name: value for name, value in arrays.items()}


class UpstreamKernel:
    """The parameters as v4's `_get_params` makes them: [H, M], rows tied as "(v t)"."""

    def __init__(
        self, arrays: Arrays, dt_transform: str, real_transform: str = "exp",
        imag_transform: str = "none", dt_fast: bool = False,
    ) -> None:
        self.c = as_complex(arrays["kernel.C"])
        self.features = self.c.shape[1]
        inverse = arrays["kernel.inv_dt"]
        self.dt = UPSTREAM_TRANSFORMS[dt_transform](np.sinh(inverse) if dt_fast else inverse)
        real = UPSTREAM_TRANSFORMS[real_transform](arrays["kernel.A_real"])
        imag = UPSTREAM_TRANSFORMS[imag_transform](arrays["kernel.A_imag"])
        self.a = self.repeated(-real - 1j * imag)
        self.b = self.repeated(as_complex(arrays["kernel.B"])[0])
        self.p: Optional[Array] = None
        if "kernel.P" in arrays:
            self.p = self.repeated(as_complex(arrays["kernel.P"])[0])

    def repeated(self, rows: Array) -> Array:
        return np.concatenate([rows] * (self.features // len(rows)))

    def vandermonde(self, disc: str, length: int) -> Array:
        """S4D: K [c, H, L] = 2 Re Σ_m C B (..) exp(l log Ā)."""
        dta = self.dt * self.a
        cb = self.c * self.b
        if disc == "zoh":
            cb, log_a_bar = cb * (np.exp(dta) - 1.0) / self.a, dta
        else:
            cb = cb * self.dt / (1.0 - dta / 2.0)
            log_a_bar = np.log((1.0 + dta / 2.0) / (1.0 - dta / 2.0))
        powers = np.exp(log_a_bar[..., None] * np.arange(length))
        return 2.0 * np.einsum("chm,hml->chl", cb, powers).real

    def discrete(self) -> Tuple[Array, Array]:
        """S4: Ā [H, N, N] and B̄ [H, N] by upstream's stepping, 2/Δ a diagonal matrix."""
        assert self.p is not None
        n = 2 * self.a.shape[1]
        a, b, p = (with_conjugates(v) for v in (self.a, self.b, self.p))
        dense = np.array([np.diag(x) for x in a]) - p[:, :, None] * p[:, None, :].conj()
        two_over_dt = np.array([
            np.diag(2.0 / np.broadcast_to(np.concatenate([dt, dt]), n)) if len(dt) > 1
            else np.eye(n) * 2.0 / dt
            for dt in self.dt
        ])
        a_bar = np.linalg.solve(two_over_dt - dense, two_over_dt + dense)
        return a_bar, np.linalg.solve(two_over_dt - dense, 2.0 * b[..., None])[..., 0]

    def krylov(self, length: int) -> Array:
        """S4 with the true C: K[l] = C Āˡ B̄ on the modes and their conjugates."""
        a_bar, state = self.discrete()
        c, taps = with_conjugates(self.c), []
        for _ in range(length):
            taps.append(np.einsum("chn,hn->ch", c, state).real)
            state = np.einsum("hmn,hn->hm", a_bar, state)
        return np.stack(taps, -1)

    def c_tilde(self, length: int) -> Array:
        """C (I - Ā^length), what upstream trains once it knows its length."""
        power = np.linalg.matrix_power(self.discrete()[0], length)
        c = with_conjugates(self.c)
        return (c - np.einsum("chm,hmn->chn", c, power))[..., : self.a.shape[1]]

    def cauchy(self, length: int) -> Array:
        """S4 with C~ in the place of C: the generating function at the roots of unity, by the
        Cauchy kernel and Woodbury's identity. An odd length keeps clear of the node -1."""
        assert length % 2 == 1 and self.p is not None
        omega = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
        z = 2.0 * (1.0 - omega) / (1.0 + omega)
        left = np.stack([self.b, self.p])[:, None]                               # [2, 1, H, M]
        right = np.concatenate([self.c, self.p.conj()[None]])[None]              # [1, c+1, H, M]
        v = with_conjugates(left * right * self.dt)
        w = with_conjugates(self.a * self.dt)
        r = np.sum(v[..., None] / (z - w[..., None]), axis=-2)                   # [2, c+1, H, L/2]
        k_f = r[0, :-1] - r[0, -1:] * r[1, :-1] / (1.0 + r[1, -1:])
        return np.fft.irfft(k_f * 2.0 / (1.0 + omega), n=length)


def filtered(kernel: Array, d: Array, u: Array) -> Array:
    """y [L, c, H] of u [L, H], term by term."""
    y = u[:, None] * d
    for tap in range(len(u)):
        y[tap:] += kernel[..., tap] * u[: len(u) - tap, None]
    return y


def ours(converted: ConvertedLayer, u: Array) -> Array:
    """y [L, c, H] of the converted tensors."""
    stub = Stub(converted.tensors)
    filters = len(converted.tensors["ssm.d"])
    y = evaluator.ssm(stub, "ssm", converted.layer["ssm"], u, filters)
    assert not stub.unused(), stub.unused()
    return y


class S4Test(unittest.TestCase):
    LENGTH = 64

    def setUp(self) -> None:
        self.rng = np.random.default_rng(7)

    def check(
        self, converted: ConvertedLayer, kernel: Array, d: Array, tolerance: float = 1e-10
    ) -> None:
        u = self.rng.normal(size=(kernel.shape[2], kernel.shape[1]))
        skip = u[:, None] * d      # taken off: it must not outweigh the convolution
        expected = filtered(kernel, d, u) - skip
        self.assertLess(relative_rms(ours(converted, u) - skip, expected), tolerance)

    def check_v4(self, arrays: Arrays, disc: str, **options: Any) -> None:
        converted = s4.convert(arrays, discretization=disc, **options)
        kernel = UpstreamKernel(arrays, **options).vandermonde(disc, self.LENGTH)
        self.check(converted, kernel, arrays["D"])

    def test_s4d(self) -> None:
        for disc in ("zoh", "bilinear"):
            for dt_transform in ("exp", "softplus"):
                for n_ssm in (1, 2, 6):
                    for channels in (1, 2):
                        with self.subTest(disc=disc, dt=dt_transform, n_ssm=n_ssm, c=channels):
                            arrays = v4_arrays(self.rng, n_ssm=n_ssm, channels=channels,
                                               dt_transform=dt_transform)
                            self.check_v4(arrays, disc, dt_transform=dt_transform)

    def test_other_parametrisations(self) -> None:
        for transform in ("none", "relu", "sigmoid", "softplus"):
            with self.subTest(transform):
                arrays = v4_arrays(self.rng)
                arrays["kernel.A_real"] = np.abs(arrays["kernel.A_real"])
                self.check_v4(arrays, "zoh", dt_transform="exp", real_transform=transform)
                self.check_v4(arrays, "zoh", dt_transform="exp", imag_transform=transform)
        arrays["kernel.inv_dt"] = np.arcsinh(arrays["kernel.inv_dt"])
        self.check_v4(arrays, "zoh", dt_transform="exp", dt_fast=True)

    def test_a_step_per_mode(self) -> None:
        for disc in ("zoh", "bilinear"):
            arrays = v4_arrays(self.rng, n_ssm=2, dt_tie=False)
            self.check_v4(arrays, disc, dt_transform="exp")
        arrays = v4_arrays(self.rng, n_ssm=2, rank=1, dt_tie=False)
        kernel = UpstreamKernel(arrays, "exp").krylov(self.LENGTH)
        self.check(s4.convert(arrays, dt_transform="exp"), kernel, arrays["D"])

    def test_bandlimit(self) -> None:
        arrays = v4_arrays(self.rng)
        upstream = UpstreamKernel(arrays, "exp")
        frequency = upstream.dt * np.abs(upstream.a.imag) / (2.0 * np.pi)
        limit = 2.0 * float(np.median(frequency))
        upstream.c = upstream.c * np.where(frequency < limit * 0.5, 1, 0)
        self.assertTrue(0 < np.count_nonzero(upstream.c) < upstream.c.size)
        converted = s4.convert(arrays, discretization="zoh", dt_transform="exp", bandlimit=limit)
        self.check(converted, upstream.vandermonde("zoh", self.LENGTH), arrays["D"])

    def test_s4(self) -> None:
        for n_ssm, channels, dt_transform in ((1, 1, "exp"), (2, 2, "softplus"), (6, 1, "exp")):
            with self.subTest(n_ssm=n_ssm, channels=channels):
                arrays = v4_arrays(self.rng, n_ssm=n_ssm, channels=channels, rank=1,
                                   dt_transform=dt_transform)
                converted = s4.convert(arrays, dt_transform=dt_transform)
                kernel = UpstreamKernel(arrays, dt_transform).krylov(self.LENGTH)
                self.check(converted, kernel, arrays["D"])
                self.assertEqual(converted.layer["ssm"], {
                    "kernel": "s4", "state_size": 8, "discretization": "bilinear"})

    def test_s4_with_a_length(self) -> None:
        """Within its length the kernel is upstream's Cauchy kernel; beyond it, where upstream
        would double the length, it is that of the C which C~ was made from."""
        length = 33
        for n_ssm, channels, dt_tie in ((1, 2, True), (6, 1, True), (2, 2, False)):
            with self.subTest(n_ssm=n_ssm, channels=channels, dt_tie=dt_tie):
                arrays = v4_arrays(self.rng, n_ssm=n_ssm, channels=channels, rank=1, dt_tie=dt_tie)
                true = UpstreamKernel(arrays, "exp")
                arrays["kernel.C"] = as_pairs(true.c_tilde(length))
                arrays["kernel.l_kernel"] = np.array(length)
                converted = s4.convert(arrays, dt_transform="exp")
                trained = UpstreamKernel(arrays, "exp")
                self.check(converted, trained.cauchy(length), arrays["D"], 1e-9)
                self.check(converted, true.krylov(3 * length), arrays["D"], 1e-9)

    def test_a_length_that_hides_c(self) -> None:
        """A mode that stands still beside others; a small step alone does no harm."""
        arrays = v4_arrays(self.rng, rank=1)
        arrays["kernel.inv_dt"][4] = np.log(1e-5)
        true = UpstreamKernel(arrays, "exp")
        arrays["kernel.C"] = as_pairs(true.c_tilde(4))
        arrays["kernel.l_kernel"] = np.array(4)
        self.check(s4.convert(arrays, dt_transform="exp"), true.krylov(12), arrays["D"], 1e-9)
        arrays["kernel.A_real"][2, 0] = -25.0
        arrays["kernel.A_imag"][2, 0] = 0.0
        arrays["kernel.P"][0, 2, 0] = 0.0
        with self.assertRaisesRegex(ConversionError, r"^kernel\.C: .*feature 2 .*in 4 steps"):
            s4.convert(arrays, dt_transform="exp")

    def test_older_releases(self) -> None:
        """The same kernel as v3 and v2 spell it: log_dt [H], the imaginary part not negated."""
        def respelled(arrays: Arrays, real: str, imag: str) -> Arrays:
            old = {
                "D": arrays["D"],
                "kernel.kernel.C": arrays["kernel.C"],
                "kernel.kernel.B": arrays["kernel.B"],
                "kernel.kernel.log_dt": arrays["kernel.inv_dt"][:, 0],
                "kernel.kernel." + real: arrays["kernel.A_real"],
                "kernel.kernel." + imag: -arrays["kernel.A_imag"],
            }
            if "kernel.P" in arrays:
                old["kernel.kernel.P"] = arrays["kernel.P"]
                old["kernel.kernel.L"] = arrays["kernel.l_kernel"]
            return old

        arrays = v4_arrays(self.rng, n_ssm=2, rank=1)
        kernel = UpstreamKernel(arrays, "exp").krylov(self.LENGTH)
        for real in ("inv_w_real", "log_w_real"):
            self.check(s4.convert(respelled(arrays, real, "w_imag")), kernel, arrays["D"])

        arrays = v4_arrays(self.rng, n_ssm=3)
        upstream = UpstreamKernel(arrays, "exp")
        old = respelled(arrays, "inv_A_real", "A_imag")
        old["kernel.kernel.B"] = old["kernel.kernel.B"][0]    # v3's S4D has [S, M, 2]
        converted = s4.convert(old, discretization="bilinear")
        self.check(converted, upstream.vandermonde("bilinear", self.LENGTH), arrays["D"])

        old = respelled(arrays, "log_w_real", "w_imag")       # v2's S4D has no B
        del old["kernel.kernel.B"]
        upstream.b = np.ones_like(upstream.b)
        converted = s4.convert(old, discretization="zoh")
        self.assertNotIn("ssm.b", converted.tensors)
        self.check(converted, upstream.vandermonde("zoh", self.LENGTH), arrays["D"])

    def test_minimal_s4d(self) -> None:
        """a = -exp(log_A_real) + i A_imag, K = 2 Re Σ C (e^{Δa} - 1)/a e^{Δal}."""
        c = self.rng.normal(size=(5, 3)) + 1j * self.rng.normal(size=(5, 3))
        arrays = {
            "D": self.rng.normal(size=5),
            "kernel.C": as_pairs(c),
            "kernel.log_dt": np.log(self.rng.uniform(0.02, 0.3, 5)),
            "kernel.log_A_real": self.rng.normal(size=(5, 3)),
            "kernel.A_imag": np.pi * np.arange(3) + self.rng.uniform(size=(5, 3)),
        }
        a = -np.exp(arrays["kernel.log_A_real"]) + 1j * arrays["kernel.A_imag"]
        dta = np.exp(arrays["kernel.log_dt"])[:, None] * a
        powers = np.exp(dta[..., None] * np.arange(self.LENGTH))
        kernel = 2.0 * np.einsum("hm,hml->hl", c * (np.exp(dta) - 1.0) / a, powers).real
        self.check(s4.convert(arrays), kernel[None], arrays["D"][None])

    def test_refusals(self) -> None:
        """Each message names the array; a value where that is what is wrong."""
        good = {"discretization": "zoh", "dt_transform": "exp"}
        rank2 = {"kernel.P": self.rng.normal(size=(2, 6, 4, 2)), "kernel.l_kernel": np.array(0)}
        s4d = v4_arrays(self.rng)
        cases = (
            (r"kernel\.P: shape \[2, 6, 4, 2\].*rank 1", rank2, {"dt_transform": "exp"}),
            (r"kernel\.l_kernel: missing", {"kernel.P": rank2["kernel.P"][:1]},
             {"dt_transform": "exp"}),
            (r"kernel\.inv_dt: say its dt_transform", {}, {"discretization": "zoh"}),
            (r"kernel\.A_real: say the discretization", {}, {"dt_transform": "exp"}),
            (r"kernel\.A_real: -.*does not decay", {"kernel.A_real": s4d["kernel.A_real"] - 1.0},
             {**good, "real_transform": "none"}),
            (r"kernel\.inv_dt: -.*not positive", {}, {**good, "dt_transform": "none"}),
            (r"kernel\.C: 2 channels for 1 of D: bidirectional",
             {"kernel.C": np.concatenate([s4d["kernel.C"]] * 2)}, good),
            (r"kernel\.A_real: shape \[4, 4\]", {"kernel.A_real": np.zeros((4, 4))}, good),
            (r"kernel\.Q: not a parameter", {"kernel.Q": np.zeros(3)}, good),
            (r"kernel\.B: a value is not finite", {"kernel.B": s4d["kernel.B"] * np.nan}, good),
        )
        for message, changes, options in cases:
            with self.subTest(message), self.assertRaisesRegex(ConversionError, message):
                s4.convert({**s4d, **changes}, **options)
        with self.assertRaisesRegex(ConversionError, r"single out one of a\.kernel.*b\.kernel"):
            s4.convert({**v4_arrays(self.rng, prefix="a."), **v4_arrays(self.rng, prefix="b.")})

    def test_into_a_checkpoint(self) -> None:
        """From files of every kind, through float32 tensors, to the context vectors of a layer."""
        arrays = v4_arrays(self.rng, features=32, n_ssm=2, channels=4, rank=1, prefix="m.1.layer.")
        arrays["m.1.output_linear.weight"] = np.zeros(3)
        arrays["m.1.layer.output_linear.weight"] = np.zeros(3)
        kernel = UpstreamKernel(
            {name[len("m.1.layer."):]: value for name, value in arrays.items()}, "exp"
        ).krylov(24)
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / "checkpoint"
            tensors = {name: torch.from_numpy(np.asarray(v)) for name, v in arrays.items()}
            floats = {name: t.float() for name, t in tensors.items() if "l_kernel" not in name}
            np.savez(Path(scratch) / "a.npz", **arrays)
            torch.save({"state_dict": tensors}, Path(scratch) / "a.pt")
            write_safetensors(Path(scratch) / "s4d.safetensors", {
                name: t for name, t in floats.items() if not name.endswith(".P")})
            shutil.copytree(GOLDEN / "bst_multi_head_s4", directory)
            for name in ("a.npz", "a.pt"):
                status, text = run_main("s4", Path(scratch) / name, "--prefix", "m.1", "--layer", 0,
                                        "--dt_transform", "exp", "--into", directory)
                self.assertEqual(status, 0, text)
                self.assertIn("left out: m.1.layer.output_linear.weight", text)
                model = evaluator.Model(directory)
                x = self.rng.normal(size=(24, 32))
                layer = model.config["layers"][0]
                y = model.context("layers.0", layer, x, 4)
                u = model.norm("layers.0.ssm_norm", x)
                expected = filtered(kernel, arrays["m.1.layer.D"], u)
                self.assertLess(relative_rms(y, expected), 1e-6)
                evaluator.evaluate(directory, list(range(20)))    # nothing missing or superfluous

            torch.save({"state_dict": tensors, "path": Path("x")}, Path(scratch) / "b.pt")
            status, text = run_main("s4", Path(scratch) / "b.pt", "--layer", 0, "--into", directory)
            self.assertEqual(status, 1)
            self.assertIn("b.pt: holds more than tensors", text)

            before = (directory / "model.safetensors").read_bytes()
            status, text = run_main(
                "s4", Path(scratch) / "s4d.safetensors", "--layer", 1, "--dt_transform", "exp",
                "--discretization", "zoh", "--into", directory)
            self.assertEqual((status, text), (
                1, "error: layer 1 is transformer, which has no s4d kernel\n"))
            self.assertEqual((directory / "model.safetensors").read_bytes(), before)

    def checkpoint_to_convert_into(
        self, scratch: Path
    ) -> Tuple[Path, Callable[[], Tuple[int, str]]]:
        """A checkpoint's directory, and what converts a layer that fits into it."""
        directory, source = scratch / "checkpoint", scratch / "a.npz"
        np.savez(source, **v4_arrays(self.rng, features=32, n_ssm=2, channels=4, rank=1))
        shutil.copytree(GOLDEN / "bst_multi_head_s4", directory)
        return directory, lambda: run_main(
            "s4", source, "--layer", 0, "--dt_transform", "exp", "--into", directory)

    def test_into_a_checkpoint_in_several_files(self) -> None:
        """Refused, whether or not model.safetensors is there, too; and nothing is written."""
        with tempfile.TemporaryDirectory() as scratch:
            directory, convert = self.checkpoint_to_convert_into(Path(scratch))
            index = directory / "model.safetensors.index.json"
            index.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
            for remove in (False, True):
                if remove:
                    (directory / "model.safetensors").unlink()
                before = {path.name: path.read_bytes() for path in directory.iterdir()}
                status, text = convert()
                self.assertEqual(status, 1)
                self.assertIn(f"error: {index}: holds a checkpoint in several files", text)
                self.assertEqual(
                    {path.name: path.read_bytes() for path in directory.iterdir()}, before)
            index.unlink()
            status, text = convert()
            self.assertEqual((status, text), (
                1, f"error: {directory / 'model.safetensors'}: missing; a checkpoint directory is "
                   "needed\n"))

    def test_files_that_cannot_be_read(self) -> None:
        """One line that names the file, and what is wrong with it, of whatever kind it is."""
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            np.savez(directory / "cut.npz", a=np.zeros(100))
            whole = (directory / "cut.npz").read_bytes()
            (directory / "cut.npz").write_bytes(whole[:300])
            np.savez(directory / "objects.npz", a=np.array([None], dtype=object))
            with open(directory / "array.npz", "wb") as file:
                np.save(file, np.zeros(3))
            for name in ("junk.pt", "junk.safetensors", "empty.pt", "empty.safetensors"):
                (directory / name).write_bytes(b"junk" if "junk" in name else b"")
            (directory / "list.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]")
            torch.save(torch.zeros(3), directory / "tensor.pt")
            torch.save({"state_dict": [1]}, directory / "list.pt")
            for name, pattern in (
                ("cut.npz", r"cannot be read as .npz \(File is not a zip file\)"),
                ("objects.npz", r"cannot be read as .npz \(Object arrays"),
                ("array.npz", "one array without a name"),
                ("junk.pt", "cannot be read as a PyTorch file"),
                ("empty.pt", "cannot be read as a PyTorch file"),
                ("tensor.pt", "a Tensor, not tensors by name"),
                ("list.pt", "a list, not tensors by name"),
                ("junk.safetensors", "not a safetensors file"),
                ("empty.safetensors", "not a safetensors file"),
                ("list.safetensors", "not a safetensors file"),
            ):
                status, text = run_main("s4", directory / name, "--layer", 0,
                                        "--output", directory / "out.safetensors")
                self.assertEqual(status, 1, name)
                self.assertRegex(text, f"^error: {directory / name}: {pattern}")

    def test_a_configuration_that_is_not_one(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            directory, convert = self.checkpoint_to_convert_into(Path(scratch))
            file = directory / "config.json"
            config = json.loads(file.read_text())
            del config["num_heads"]
            for content, pattern in (
                (json.dumps(config), "config.num_heads: missing"), ("{", "Expecting property name"),
            ):
                file.write_text(content)
                status, text = convert()
                self.assertEqual(status, 1)
                self.assertRegex(text, f"^error: {file}: {pattern}")
                self.assertEqual(file.read_text(), content)

    def test_where_the_output_goes(self) -> None:
        """FILE.json belongs to the piece of config.json, and layers count from 0."""
        with tempfile.TemporaryDirectory() as scratch:
            source, target = Path(scratch) / "a.npz", Path(scratch) / "layer.json"
            np.savez(source, **v4_arrays(self.rng))
            options = ("--dt_transform", "exp", "--discretization", "zoh", "--output", target)
            status, text = run_main("s4", source, "--layer", 0, *options)
            self.assertEqual(status, 1)
            self.assertIn(f"error: {target}: the place of the piece of config.json", text)
            self.assertFalse(target.exists())
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as text:
                main(["s4", str(source), "--layer", "-1", *map(str, options)])
            self.assertIn("--layer: -1 is negative", text.getvalue())


# ---- meliad as upstream defines it ---------------------------------------------------------------

WIDTH, HEADS, HEAD_DIM, FFN, WINDOW, STATES = 12, 2, 4, 20, 6, 5
INNER = HEADS * HEAD_DIM


def meliad_arrays(
    rng: np.random.Generator, normalize: bool = True, t5: bool = True, recurrent: bool = True,
    negative: bool = False,
) -> Arrays:
    """Random float32 parameters, so that storing them rounds nothing."""
    def dense(rows: int, columns: int) -> Array:
        return rng.normal(size=(rows, columns)) / np.sqrt(rows)

    def scale() -> Array:
        return rng.uniform(1.0, 4.0, HEADS) * (np.array([1.0, -1.0]) if negative else 1.0)

    arrays = {
        "tbase/pre_ffn_layernorm/scale": rng.uniform(0.5, 1.5, WIDTH),
        "tbase/ffn/hidden0/kernel": dense(WIDTH, FFN),
        "tbase/ffn/output_layer/kernel": dense(FFN, WIDTH),
    }
    for base in ("tbase", "recurrent_tbase") if recurrent else ("tbase",):
        for name in ("keys", "values", "queries") + (("queries2",) if recurrent else ()):
            arrays[f"{base}/_kvq/{name}_layer/kernel"] = dense(WIDTH, INNER)
        arrays[f"{base}/_kvq/pre_attn_layernorm/scale"] = rng.uniform(0.5, 1.5, WIDTH)
        heads = 2 * INNER if recurrent else INNER
        arrays[f"{base}/post_attn_mlp/output_layer/kernel"] = dense(heads, WIDTH)
        if normalize:
            arrays[f"{base}/_kvq/attention_scale"] = scale()
            if recurrent:
                arrays[f"{base}/attention_scale2"] = scale()
    if recurrent:
        arrays["recurrent_tbase/_kvq/position_embeddings"] = rng.normal(size=(STATES, WIDTH))
        arrays["recurrent_tbase/post_attn_mlp/gate_bias"] = rng.normal(size=WIDTH)
        arrays["recurrent_initial_state"] = rng.normal(size=(STATES, WIDTH))
    if t5:
        arrays["relative_positions/rel_embedding"] = rng.normal(size=(HEADS, 32))
    return {
        "decoder/transformer9/" + name: value.astype(np.float32) for name, value in arrays.items()
    }


class UpstreamLayer:
    """One document through the layer, window by window, arrays [tokens, H, dh]."""

    def __init__(self, arrays: Arrays, scales: str) -> None:
        self.params = {
            name[len("decoder/transformer9/"):]: np.asarray(value, np.float64)
            for name, value in arrays.items()
        }
        self.abs_scale = scales == "abs"

    def dense(self, name: str, x: Array) -> Array:
        return x @ self.params[name + "/kernel"]

    def layernorm(self, name: str, x: Array) -> Array:
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + 1e-6) * self.params[name + "/scale"]

    def kvq(self, base: str, x: Array) -> Tuple[Optional[Array], ...]:
        """Keys, values, queries, queries2."""
        x = self.layernorm(f"{base}/_kvq/pre_attn_layernorm", x)
        if f"{base}/_kvq/position_embeddings" in self.params:
            x = x + self.params[f"{base}/_kvq/position_embeddings"]
        normalize = f"{base}/_kvq/attention_scale" in self.params
        results = []
        for name in ("keys", "values", "queries", "queries2"):
            if f"{base}/_kvq/{name}_layer/kernel" not in self.params:
                results.append(None)
                continue
            y = self.dense(f"{base}/_kvq/{name}_layer", x).reshape(len(x), HEADS, HEAD_DIM)
            if normalize and name != "values":
                y = y / np.sqrt(np.sum(y * y, axis=-1, keepdims=True) + 1e-6)
            elif name.startswith("queries"):
                y = y / np.sqrt(HEAD_DIM)
            results.append(y)
        return tuple(results)

    def scale(self, name: str) -> Optional[Array]:
        value = self.params.get(name)
        return np.abs(value) if value is not None and self.abs_scale else value

    @staticmethod
    def attention(
        keys: Array, values: Array, queries: Array, scale: Optional[Array],
        bias: Optional[Array] = None, mask: Optional[Array] = None,
    ) -> Array:
        logits = np.einsum("qhd,khd->hqk", queries, keys)
        if bias is not None:
            logits = logits + bias
        if scale is not None:
            logits = logits * scale[:, None, None]
        if mask is not None:
            logits = np.where(mask, logits, -1e6)
        # A further logit of -1000 takes the weight where everything is masked.
        peak = np.maximum(logits.max(axis=-1, keepdims=True), -1000.0)
        weights = np.exp(logits - peak)
        total = weights.sum(axis=-1, keepdims=True) + np.exp(-1000.0 - peak)
        return np.einsum("hqk,khd->qhd", weights / total, values)

    def position_bias(self) -> Optional[Array]:
        """[H, W, 2W]: the last W of 2W keys are the window of the queries."""
        table = self.params.get("relative_positions/rel_embedding")
        if table is None:
            return None
        n = np.maximum((np.arange(WINDOW)[:, None] + WINDOW) - np.arange(2 * WINDOW)[None], 0)
        ratio = np.log(np.maximum(n, 1) / 16 + np.finfo(np.float32).eps) / np.log(128 / 16)
        large = np.minimum(16 + (ratio * 16).astype(int), 31)
        return table[:, np.where(n < 16, n, large)]

    def run(self, xs: Array) -> Array:
        distance = np.arange(2 * WINDOW)[None] - (np.arange(WINDOW)[:, None] + WINDOW)
        mask = (distance < 0) & (distance >= -WINDOW)
        bias = self.position_bias()
        keys, values, queries, queries2 = self.kvq("tbase", xs)
        state = self.params.get("recurrent_initial_state")
        previous = (np.zeros((WINDOW, HEADS, HEAD_DIM)),) * 2
        outputs = []
        for begin in range(0, len(xs), WINDOW):
            window = slice(begin, begin + WINDOW)
            k, v = (np.concatenate([p, w[window]]) for p, w in zip(previous, (keys, values)))
            previous = keys[window], values[window]
            ys = self.attention(k, v, queries[window], self.scale("tbase/_kvq/attention_scale"),
                                bias, mask)
            if state is not None:
                rk, rv, rq, rq2 = self.kvq("recurrent_tbase", state)
                seen = self.attention(rk, rv, queries2[window],
                                      self.scale("tbase/attention_scale2"))
                ys = np.concatenate([ys, seen], axis=1)
                own = self.attention(rk, rv, rq, self.scale("recurrent_tbase/_kvq/attention_scale"))
                read = self.attention(k, v, rq2, self.scale("recurrent_tbase/attention_scale2"))
                read = np.concatenate([own, read], axis=1).reshape(STATES, -1)
                update = self.dense("recurrent_tbase/post_attn_mlp/output_layer", read)
                gate = 1.0 / (1.0 + np.exp(-self.params["recurrent_tbase/post_attn_mlp/gate_bias"]))
                state = state * gate + update * (1.0 - gate)
            outputs.append(ys.reshape(len(ys), -1))
        h = xs + self.dense("tbase/post_attn_mlp/output_layer", np.concatenate(outputs))
        hidden = np.maximum(
            self.dense("tbase/ffn/hidden0", self.layernorm("tbase/pre_ffn_layernorm", h)), 0.0
        )
        return h + self.dense("tbase/ffn/output_layer", hidden)


def write_empty_model(directory: Path, model: Dict[str, Any]) -> None:
    """A checkpoint of one transformer layer, of whose tensors only the names matter."""
    config = json.loads((GOLDEN / "brect" / "config.json").read_text())
    attention = {**config["attention"], **model["attention"]}
    config.update({**model, "attention": attention, "window": WINDOW, "vocab_size": 259})
    config["layers"] = [{"type": "transformer"}]
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", {
        "embed.weight": torch.randn(259, WIDTH),
        "final_norm.weight": torch.ones(WIDTH),
        "layers.0.attn.q_proj.weight": torch.zeros(1),
    })


class MeliadTest(unittest.TestCase):
    def setUp(self) -> None:
        self.rng = np.random.default_rng(11)

    def check(self, arrays: Arrays, scales: str = "abs", **options: Any) -> ConvertedLayer:
        """The converted layer, put into a checkpoint, on a document of 4 windows."""
        converted = meliad.convert(arrays, **options)
        flags = [f"--{name}={value}" for name, value in options.items()]
        xs = self.rng.normal(size=(4 * WINDOW, WIDTH))
        with tempfile.TemporaryDirectory() as scratch:
            file, directory = Path(scratch) / "a.npz", Path(scratch) / "checkpoint"
            np.savez(file, **arrays)
            write_empty_model(directory, converted.model)
            status, text = run_main("meliad", file, "--layer", 0, "--into", directory, *flags)
            self.assertEqual(status, 0, text)
            model = evaluator.Model(directory)
            ys = model.attention_layer("layers.0", model.config["layers"][0], xs)
            self.assertEqual(model.ck.unused(), ["embed.weight", "final_norm.weight"])
        expected = UpstreamLayer(arrays, scales).run(xs)
        self.assertLess(relative_rms(ys - xs, expected - xs), 1e-10)
        return converted

    def test_recurrent_layer(self) -> None:
        converted = self.check(meliad_arrays(self.rng))
        self.assertEqual(converted.layer, {"type": "brect", "num_states": STATES, "gate": "fixed"})
        self.assertEqual(converted.model["attention"], {
            "scope": "sliding", "include_self": False, "empty_prefix": "zeros", "qk_norm": True,
            "position": "t5", "t5_num_buckets": 32, "t5_max_distance": 128})

    def test_without_normalized_keys(self) -> None:
        self.check(meliad_arrays(self.rng, normalize=False))
        arrays = meliad_arrays(self.rng, normalize=False, t5=False)
        self.check(arrays, num_heads=HEADS, relative_positions="none")
        with self.assertRaisesRegex(ConversionError, "say num_heads"):
            meliad.convert(arrays, relative_positions="none")

    def test_without_positions(self) -> None:
        arrays = meliad_arrays(self.rng, t5=False)
        self.check(arrays, relative_positions="none", window=WINDOW)
        with self.assertRaisesRegex(ConversionError, "rel_embedding: missing; say"):
            meliad.convert(arrays)
        with self.assertRaisesRegex(ConversionError, "rotary positions turn by π"):
            meliad.convert(arrays, relative_positions="rotary")

    def test_plain_layer(self) -> None:
        converted = self.check(meliad_arrays(self.rng, recurrent=False))
        self.assertEqual(converted.layer, {"type": "transformer"})

    def test_negative_scales(self) -> None:
        for t5 in (True, False):
            arrays = meliad_arrays(self.rng, t5=t5, negative=True)
            positions = {} if t5 else {"relative_positions": "none"}
            for scales in ("raw", "abs"):
                with self.subTest(t5=t5, scales=scales):
                    self.check(arrays, scales, attention_scale=scales, **positions)
        with self.assertRaisesRegex(ConversionError, r"attention_scale.*: -\d.* is negative; say"):
            meliad.convert(arrays, relative_positions="none")

    def test_refusals(self) -> None:
        good = meliad_arrays(self.rng)
        stem = "decoder/transformer9/"
        cases = (
            ("recurrent_tbase/post_attn_mlp/gate_layer/kernel", "gate type \"full\""),
            ("recurrent_tbase/post_attn_mlp/forget_gate/bias", "gate type \"lstm\""),
            ("recurrent_tbase/ffn/hidden0/kernel", "only recurrent_skip_ffn"),
            ("tbase/post_attn_mlp/gate_bias", "in place of a residual connection"),
            ("tbase/ffn/hidden1/kernel", "a number of layers in an MLP"),
            ("tbase/ffn/hidden0/bias", "a bias; no linear layer"),
            ("external_memory_bias", "external memory"),
            ("relative_positions/position_mlp", "other than T5 biases"),
            ("importance_layer/kernel", "not known"),
        )
        for name, reason in cases:
            with self.subTest(name), self.assertRaisesRegex(
                ConversionError, f"^{stem}{name}: .*{reason}"
            ):
                meliad.convert({**good, stem + name: np.zeros(1)})
        feedback = meliad_arrays(self.rng, recurrent=False)
        feedback[stem + "tbase/_kvq/queries2_layer/kernel"] = np.zeros((WIDTH, INNER))
        with self.assertRaisesRegex(ConversionError, "queries2_layer/kernel: feedback"):
            meliad.convert(feedback)
        missing = dict(good)
        del missing[stem + "recurrent_tbase/post_attn_mlp/gate_bias"]
        with self.assertRaisesRegex(ConversionError, "gate_bias: missing"):
            meliad.convert(missing)
        wrong = {**good, stem + "tbase/ffn/hidden0/kernel": np.zeros((WIDTH + 1, FFN))}
        with self.assertRaisesRegex(ConversionError, r"hidden0/kernel: shape \[13, 20\], expected"):
            meliad.convert(wrong)

    def test_which_layer(self) -> None:
        plain = meliad_arrays(self.rng, recurrent=False)
        arrays = {name.replace("9", "3"): value for name, value in plain.items()}
        arrays.update({name.replace("9", "4"): value for name, value in plain.items()})
        with self.assertRaisesRegex(ConversionError, "transformer3/, decoder/transformer4/"):
            meliad.convert(arrays)
        self.assertEqual(meliad.convert(arrays, "decoder/transformer4/").layer["type"],
                         "transformer")
        arrays.update(meliad_arrays(self.rng))
        self.assertEqual(meliad.convert(arrays).layer["type"], "brect")

    def test_files(self) -> None:
        """The tensors and the fragment of config.json; a checkpoint that disagrees is kept."""
        arrays = meliad_arrays(self.rng)
        with tempfile.TemporaryDirectory() as scratch:
            source, target = Path(scratch) / "a.safetensors", Path(scratch) / "b.safetensors"
            write_safetensors(source, {n: torch.from_numpy(a) for n, a in arrays.items()})
            status, text = run_main("meliad", source, "--layer", 4, "--window", WINDOW,
                                    "--dtype", "bfloat16", "--output", target)
            self.assertEqual(status, 0, text)
            fragment = json.loads(target.with_suffix(".json").read_text())
            self.assertEqual((fragment["number"], fragment["layer"]["type"]), (4, "brect"))
            self.assertEqual(fragment["model"]["window"], WINDOW)
            tensors = safetensors_file.read(target)
            bias = arrays["decoder/transformer9/recurrent_tbase/post_attn_mlp/gate_bias"]
            np.testing.assert_array_equal(tensors["layers.4.state.gate_bias"], bias)   # kept F32
            expected = arrays["decoder/transformer9/tbase/ffn/hidden0/kernel"].T
            actual = tensors["layers.4.ffn.up_proj.weight"]
            self.assertTrue(np.any(actual != expected))
            np.testing.assert_allclose(actual, expected, rtol=2.0**-8)

            directory = Path(scratch) / "checkpoint"
            write_empty_model(directory, {**fragment["model"], "hidden_size": WIDTH})
            config = json.loads((directory / "config.json").read_text())
            config["attention"]["include_self"] = True
            (directory / "config.json").write_text(json.dumps(config))
            before = (directory / "model.safetensors").read_bytes()
            status, text = run_main("meliad", source, "--layer", 0, "--into", directory)
            self.assertEqual((status, text), (
                1, "error: config.json: attention.include_self is True, the layer needs False\n"))
            self.assertEqual((directory / "model.safetensors").read_bytes(), before)
            status, text = run_main("meliad", source, "--layer", 1, "--into", directory)
            self.assertEqual(status, 1, text)


if __name__ == "__main__":
    unittest.main()
