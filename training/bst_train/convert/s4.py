"""S4 and S4D kernels of github.com/state-spaces/s4 -> the `ssm.*` tensors of a layer.

Upstream a module holds H features, c channels (here: filters) and M = N/2 modes of each conjugate
pair; S = n_ssm rows of A, B and P are shared, feature i using row i mod S:

  D [c, H]   kernel.{C [c, H, M, 2], B [1, S, M, 2], inv_dt [H, 1 or M], A_real, A_imag [S, M]}
  S4 only    kernel.{P [rank, S, M, 2], l_kernel}

The modes are a = -f(A_real) -+ i g(A_imag), the step Δ = h(inv_dt), y = 2 Re Σ_m c_m x_m + D u.
What differs between the releases is the spelling and the sign of the imaginary part:

  release      real part                imaginary part   step                  length
  v4           A_real, f an option      -g(A_imag)       h(inv_dt), an option  l_kernel
  v3, S4D      inv_A_real, f an option  +A_imag          exp(log_dt)
  v3, S4       inv_w_real, f an option  +w_imag          exp(log_dt)           L
  v2           exp(log_w_real)          +w_imag          exp(log_dt)           L
  minimal S4D  exp(log_A_real)          +A_imag          exp(log_dt)

C goes with that sign and is never conjugated. v2's S4D and the minimal S4D have no B, which is
then 1. A file names neither its transforms nor its discretisation; S4 is always bilinear, the
minimal S4D always zoh.

S4 trains C~ = C (I - Ā^L), L being its length buffer, if that is not 0. The true C is solved for
in float64. A float32 C~ determines C to about cond(I - Ā^L) 2^-24: a mode that hardly moves within
L steps, beside others that do, leaves C open, and the kernel is refused.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, Dict, Mapping, Optional, Tuple

import numpy as np

from .layer import ConversionError, ConvertedLayer

Array = np.ndarray

# What upstream applies to a stored number to make it positive.
TRANSFORMS: Dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "exp": np.exp,
    "relu": lambda x: np.maximum(x, 0.0) + 1e-4,
    "sigmoid": lambda x: 0.5 * (1.0 + np.tanh(0.5 * x)),
    "softplus": lambda x: np.logaddexp(0.0, x),
}

# Beyond it the float32 numbers in the file determine C to no better than 6 %.
MAX_CONDITION = 1e6


@dataclasses.dataclass(frozen=True)
class _Release:
    """How one release of the upstream code spells the parameters of a kernel."""

    real: str
    imag: str
    imag_sign: float
    step: str
    length: str = "l_kernel"
    ignored: Tuple[str, ...] = ()


_RELEASES = (
    _Release("A_real", "A_imag", -1.0, "inv_dt"),
    # Some v3 files also carry A as it was initialised; nothing reads it.
    _Release("inv_A_real", "A_imag", 1.0, "log_dt", ignored=("A",)),
    _Release("inv_w_real", "w_imag", 1.0, "log_dt", "L"),
    _Release("log_w_real", "w_imag", 1.0, "log_dt", "L"),
    _Release("log_A_real", "A_imag", 1.0, "log_dt"),
)


def convert(
    arrays: Mapping[str, Array],
    prefix: str = "",
    discretization: Optional[str] = None,
    dt_transform: Optional[str] = None,
    real_transform: str = "exp",
    imag_transform: str = "none",
    dt_fast: bool = False,
    bandlimit: Optional[float] = None,
) -> ConvertedLayer:
    """The kernel whose array names begin with `prefix`, which is needed where there are several.

    discretization  "zoh" or "bilinear": of S4D from v2 to v4
    dt_transform    "exp" or "softplus" (or another of TRANSFORMS): of v4's inv_dt
    real_transform, imag_transform   upstream's options of the same names, with its defaults
    dt_fast         v4's option: inv_dt is stored as its asinh
    bandlimit       upstream's option: S4D modes of a higher frequency are silenced
    """
    kernel = _Kernel(arrays, prefix)
    c, d = kernel.readout()
    a = kernel.modes(real_transform, imag_transform)
    step = kernel.step(dt_transform, dt_fast)
    b, p, length = kernel.input(), kernel.low_rank(), 0
    if p is None:
        method = kernel.diagonal_method(discretization)
        if bandlimit is not None:
            c = np.where(step * np.abs(a.imag) < math.pi * bandlimit, c, 0.0)
    else:
        method = "bilinear"
        if discretization not in (None, method):
            raise kernel.refuse("P", f"S4 is bilinear, not {discretization!r}")
        if bandlimit is not None:
            raise kernel.refuse("P", "bandlimit exists for S4D only")
        if b is None:
            raise kernel.refuse("B", "missing")
        length = int(kernel.take(kernel.release.length))
    if step.shape[1] != 1:
        step, a, b, c, p = _common_step(step, a, b, c, p)
    if length:
        assert p is not None
        c = _true_readout(a, p, step, c, length, kernel.stem)

    tensors = {
        "ssm.log_dt": np.broadcast_to(np.log(step[:, 0]), d.shape),
        "ssm.log_neg_a_real": np.broadcast_to(np.log(-a.real), c.shape),
        "ssm.a_imag": np.broadcast_to(a.imag, c.shape),
        "ssm.c": _pairs(c),
        "ssm.d": d,
    }
    for name, value in (("ssm.b", b), ("ssm.p", p)):
        if value is not None:
            tensors[name] = _pairs(np.broadcast_to(value, c.shape))
    config = {
        "kernel": "s4d" if p is None else "s4",
        "state_size": 2 * c.shape[-1],
        "discretization": method,
    }
    return ConvertedLayer("ssm.", tensors, {"ssm": config}, {}, kernel.left_out)


class _Kernel:
    """The arrays of one kernel, checked, with the transforms undone and the ties expanded."""

    def __init__(self, arrays: Mapping[str, Array], prefix: str) -> None:
        self.release, self.stem = _find(arrays, prefix)
        self._arrays = arrays
        self._module = self.stem
        while self._module.endswith("kernel."):
            self._module = self._module[: -len("kernel.")]
        release = self.release
        names = (release.real, release.imag, release.step, release.length, "B", "C", "P")
        known = {self.stem + name for name in names + release.ignored} | {self._module + "D"}
        beside = [key for key in sorted(arrays) if key.startswith(self._module)]
        self.left_out = tuple(
            key for key in beside if key not in known and not key.startswith(self.stem)
        )
        for key in beside:
            if key not in known and key not in self.left_out:
                raise ConversionError(f"{key}: not a parameter of S4 or S4D")
        c = self.take("C")
        if release.real == "log_A_real" and c.ndim == 3:
            c = c[None]
        if c.ndim != 4 or c.shape[3] != 2:
            raise self.refuse("C", f"shape {list(c.shape)}, expected [channels, H, M, 2]")
        self._c = _complex(c)
        self._filters, self._features, self._modes = self._c.shape

    def refuse(self, name: str, reason: str) -> ConversionError:
        return ConversionError(f"{self.stem}{name}: {reason}")

    def take(self, name: str, stem: Optional[str] = None) -> Array:
        key = (self.stem if stem is None else stem) + name
        if key not in self._arrays:
            raise ConversionError(f"{key}: missing")
        value = np.asarray(self._arrays[key])
        if not np.isfinite(value).all():
            raise ConversionError(f"{key}: a value is not finite")
        return value

    def readout(self) -> Tuple[Array, Array]:
        """C [c, H, M] as it is stored, and D [c, H]."""
        d = self.take("D", self._module)
        if self.release.real == "log_A_real" and d.ndim == 1:
            d = d[None]
        if 2 * len(d) == self._filters:
            raise self.refuse("C", f"{self._filters} channels for {len(d)} of D: bidirectional")
        if d.shape != (self._filters, self._features):
            raise ConversionError(
                f"{self._module}D: shape {list(d.shape)}, C has {self._filters} channels of "
                f"{self._features} features"
            )
        return self._c, d

    def modes(self, real_transform: str, imag_transform: str) -> Array:
        """a [H, M]."""
        real, imag, sign = self.release.real, self.release.imag, self.release.imag_sign
        if real.startswith("log_") and real_transform != "exp":
            raise self.refuse(real, f"is under exp, not under {real_transform!r}")
        if sign > 0 and imag_transform != "none":
            raise self.refuse(imag, f"is stored as it is, not under {imag_transform!r}")
        decay = TRANSFORMS[real_transform](self.take(real))
        if decay.min() <= 0.0:
            raise self.refuse(
                real, f"{decay.min():.6g} after {real_transform!r}: a mode that does not decay"
            )
        frequency = TRANSFORMS[imag_transform](self.take(imag))
        return self._per_feature(real, -decay) + 1j * sign * self._per_feature(imag, frequency)

    def step(self, transform: Optional[str], fast: bool) -> Array:
        """Δ [H, 1], or [H, M] with a step per mode."""
        name = self.release.step
        stored = self.take(name)
        if name == "log_dt":
            if fast or transform not in (None, "exp"):
                raise self.refuse(name, "is under exp, without dt_fast")
            transform = "exp"
        elif transform is None:
            raise self.refuse(name, "say its dt_transform, exp or softplus; the file does not")
        step = TRANSFORMS[transform](np.sinh(stored) if fast else stored)
        if step.ndim == 1:
            step = step[:, None]
        if step.shape not in ((self._features, 1), (self._features, self._modes)):
            raise self._misfit(name, stored)
        if step.min() <= 0.0:
            raise self.refuse(name, f"{step.min():.6g} after {transform!r}: not positive")
        return step

    def input(self) -> Optional[Array]:
        """B [H, M], or None where the release has none, which means 1."""
        if self.stem + "B" not in self._arrays:
            return None
        b = _complex(self.take("B"))
        return self._per_feature("B", b[0] if b.ndim == 3 and len(b) == 1 else b)

    def low_rank(self) -> Optional[Array]:
        """P [H, M], or None for S4D."""
        if self.stem + "P" not in self._arrays:
            return None
        p = _complex(self.take("P"))
        if p.ndim != 3 or len(p) != 1:
            raise self.refuse(
                "P", f"shape {list(self.take('P').shape)}: only a low-rank part of rank 1"
            )
        return self._per_feature("P", p[0])

    def diagonal_method(self, discretization: Optional[str]) -> str:
        """The discretisation of an S4D kernel."""
        if self.stem + self.release.length in self._arrays:
            raise self.refuse("P", "missing, although there is a length, which only S4 has")
        if self.release.real == "log_A_real":
            if discretization not in (None, "zoh"):
                raise self.refuse("log_A_real", f"this S4D is zoh, not {discretization!r}")
            return "zoh"
        if discretization not in ("zoh", "bilinear"):
            raise self.refuse(
                self.release.real, "say the discretization, zoh or bilinear; the file does not"
            )
        return discretization

    def _per_feature(self, name: str, value: Array) -> Array:
        """[S, M] -> [H, M]: feature i uses row i mod S."""
        if value.ndim != 2 or value.shape[1] != self._modes or self._features % len(value):
            raise self._misfit(name, value)
        return np.tile(value, (self._features // len(value), 1))

    def _misfit(self, name: str, value: Array) -> ConversionError:
        return self.refuse(
            name, f"shape {list(value.shape)} does not fit {self._features} features of "
                  f"{self._modes} modes"
        )


def _find(arrays: Mapping[str, Array], prefix: str) -> Tuple[_Release, str]:
    """The release and what stands before its parameters' names."""
    found = []
    for key in sorted(arrays):
        head, dot, name = key.rpartition(".")
        for release in _RELEASES:
            if key.startswith(prefix) and name == release.real:
                found.append((release, head + dot))
    if not found:
        names = ", ".join(release.real for release in _RELEASES)
        raise ConversionError(f"prefix {prefix!r}: no array there is named one of {names}")
    if len(found) > 1:
        stems = ", ".join(stem + release.real for release, stem in found)
        raise ConversionError(f"prefix {prefix!r}: it must single out one of {stems}")
    return found[0]


def _complex(pairs: Array) -> Array:
    """[.., 2] real and imaginary -> [..]."""
    return pairs[..., 0] + 1j * pairs[..., 1]


def _pairs(values: Array) -> Array:
    return np.stack([values.real, values.imag], axis=-1)


def _common_step(
    step: Array, a: Array, b: Optional[Array], c: Array, p: Optional[Array]
) -> Tuple[Array, Array, Array, Array, Optional[Array]]:
    """A step per mode, Δ_m, becomes one step Δ per feature, and the function stays the same.

    x' = diag(Δ_m) ((Λ - p pᴴ) x + b u), y = c x becomes, with x = diag(s) z and s_m² = Δ_m / Δ,
    z' = Δ ((s² Λ - (s p)(s p)ᴴ) z + s b u), y = (c s) z. Both discretisations see only these
    products, and C~ turns into C~ s likewise.
    """
    common = np.exp(np.log(step).mean(axis=1, keepdims=True))
    s = np.sqrt(step / common)
    return common, s * s * a, s if b is None else s * b, s * c, None if p is None else s * p


def _true_readout(
    a: Array, p: Array, step: Array, c_tilde: Array, length: int, stem: str
) -> Array:
    """C [c, H, M] from C~ = C (I - Ā^length), Ā on the modes followed by their conjugates."""
    modes = a.shape[1]
    a, p, c_tilde = (np.concatenate([v, v.conj()], axis=-1) for v in (a, p, c_tilde))
    eye = np.eye(2 * modes)
    half = 0.5 * step[..., None] * (a[:, :, None] * eye - p[:, :, None] * p[:, None, :].conj())
    a_bar = np.linalg.solve(eye - half, eye + half)
    matrix = eye - np.linalg.matrix_power(a_bar, length)
    singular = np.linalg.svd(matrix, compute_uv=False)
    # Where the matrix is small as a whole, the rounding of I in float64 is what limits.
    condition = np.maximum(singular[:, 0], 1e-4) / singular[:, -1]
    worst = int(np.argmax(condition))
    if condition[worst] > MAX_CONDITION:
        raise ConversionError(
            f"{stem}C: holds C (I - Ā^{length}), and feature {worst} has a mode that moves so "
            f"little in {length} steps of {step[worst, 0]:.3g} that C cannot be recovered "
            f"(condition {condition[worst]:.1e}, limit {MAX_CONDITION:.0e})"
        )
    right = np.moveaxis(c_tilde, 0, -1)                       # [H, 2M, c]
    solution = np.linalg.solve(matrix.transpose(0, 2, 1), right)
    return np.moveaxis(solution, -1, 0)[..., :modes]
