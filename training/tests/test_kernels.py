"""The kernels: published initial values, convolution = recurrence, block ends = all outputs."""

from __future__ import annotations

import math
import unittest
from typing import List

import numpy as np
import torch

from training.bst_train.config import SsmConfig
from training.bst_train.kernels import SsmOptions, init, make_kernel
from training.bst_train.kernels.convolution import block_end_products, convolve
from training.bst_train.kernels.diagonal import DiagonalSsm, Dss, S4d
from training.bst_train.kernels.dplr import S4
from training.bst_train.kernels.explicit import ExplicitFilter, PositionalFilter
from training.bst_train.kernels.mimo import S5
from training.tests.tiny import SSMS


def impulse_response(kernel: torch.nn.Module, length: int) -> List[float]:
    """Of a kernel with one filter of one feature and no skip."""
    impulse = torch.zeros(1, length, 1)
    impulse[0, 0, 0] = 1.0
    with torch.no_grad():
        kernel.d.zero_()
        return kernel(impulse, None)[0].flatten().tolist()


class KnownValuesTest(unittest.TestCase):
    """Numbers computed in float64 by independent programs."""

    def _assert_close(
        self, actual: List[float], expected: List[float], tolerance: float = 1e-6
    ) -> None:
        self.assertEqual(len(actual), len(expected))
        for a, b in zip(actual, expected):
            self.assertAlmostEqual(a, b, delta=tolerance)

    def test_legs(self) -> None:
        eigenvalues, p, b, _ = init.legs(4)
        self._assert_close(eigenvalues.imag.tolist(), [-4.603293007, -0.556501115], 1e-8)
        self._assert_close(p.abs().tolist(), [1.879500481, 0.683723587], 1e-8)
        self._assert_close(b.abs().tolist(), [2.658015070, 0.966931170], 1e-8)
        wanted = [-19.857410, -5.354209, -1.957794, -0.427489]
        self._assert_close(init.legs(8)[0].imag.tolist(), wanted)
        extremes = init.legs(64)[0].imag
        self._assert_close([float(extremes[0]), float(extremes[-1])], [-1303.27, -0.264], 5e-3)

    def test_s4d_modes(self) -> None:
        lin = init.s4d_modes("lin", 8)[0]
        self._assert_close(lin.imag.tolist(), [math.pi * n for n in range(4)])
        inv = init.s4d_modes("inv", 8)[0]
        wanted = [8 / math.pi * (8 / (2 * n + 1) - 1) for n in range(4)]
        self._assert_close(inv.imag.tolist(), wanted)
        legs, b = init.s4d_modes("legs", 8)
        self.assertTrue(torch.equal(legs, init.legs(8)[0]))
        assert b is not None
        self.assertLessEqual(float(b.imag.abs().max()), 2.0)
        kernel = make_kernel(SsmConfig("s4d", 8), 1, 2, SsmOptions(init="legs"))
        self.assertEqual(kernel.b.shape, (1, 2, 4, 2))

    def test_s4d_lin(self) -> None:
        expected = {
            "zoh": [0.387011209, 0.350341188, 0.300984953, 0.244020162, 0.184808924, 0.128456684],
            "bilinear": [
                0.385766598, 0.349877232, 0.301444902, 0.245362496, 0.186828387, 0.130826824,
            ],
        }
        for discretization, values in expected.items():
            kernel = S4d(1, 1, SsmConfig("s4d", 4, discretization), "lin", False)
            with torch.no_grad():
                kernel.log_dt.fill_(math.log(0.1))
                kernel.c.copy_(torch.tensor([1.0, 0.0]))
            self._assert_close(impulse_response(kernel, 6), values)

    def test_s4_legs(self) -> None:
        """HiPPO-LegS with N = 4, read by [1, 1, 1, 1] in the real basis."""
        kernel = S4(1, 1, SsmConfig("s4", 4))
        _, _, b, inverse = init.legs(4)
        with torch.no_grad():
            kernel.log_dt.fill_(math.log(0.1))
            kernel.b.copy_(torch.view_as_real(b))
            # C V, so that C V x is C times the state in the real basis.
            kernel.c.copy_(torch.view_as_real(inverse.conj().sum(1)))
        expected = [0.547052198, 0.223439368, 0.063993929, -0.004599419, -0.025621550, -0.023929161]
        self._assert_close(impulse_response(kernel, 6), expected)

    def test_dss_exp(self) -> None:
        kernel = Dss(1, 1, SsmConfig("dss", 2), "legs")
        with torch.no_grad():
            kernel.log_dt.zero_()
            kernel.log_neg_a_real.copy_(torch.tensor([0.0, -1.0]))
            kernel.a_imag.copy_(torch.exp(torch.tensor([0.0, 0.5])))
            kernel.w.copy_(torch.tensor([1.0, 0.0]))
        expected = [1.089976425, -0.353318753, -0.275898663, 0.179721081, 0.076965410]
        self._assert_close(impulse_response(kernel, 5), expected)

    def test_s5_outputs(self) -> None:
        kernel = S5(1, 2, SsmConfig("s5", 4))
        with torch.no_grad():
            kernel.lambda_real.fill_(-0.5)
            kernel.lambda_imag.copy_(torch.tensor([1.0, 2.0]))
            kernel.log_step.copy_(torch.log(torch.tensor([0.1, 0.2])))
            kernel.b.zero_()[..., 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
            kernel.c.zero_()[..., 0] = torch.eye(2)
            kernel.d.zero_()
            u = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
            y = kernel(u, None)[0].flatten().tolist()
        expected = [0.194761382, 1.112492257, 0.572942163, 2.332386584, 1.122100133, 4.232305323]
        self._assert_close(y, expected, 2e-6)

    def test_s5_blocks(self) -> None:
        eigenvalues, b, c = init.s5_modes(1, 3, 24)
        self.assertEqual((b.shape, c.shape), ((12, 3), (1, 3, 12)))
        # 24 = 4 blocks of 6; halves of 24 / 8 would not be whole.
        self.assertTrue(torch.equal(eigenvalues, init.legs(6)[0].repeat(4)))

    def test_dss_modes(self) -> None:
        modes = init.dss_modes("legs", 4)
        self._assert_close(modes.imag.tolist(), [19.857410, 5.354209, 1.957794, 0.427489])
        torch.manual_seed(1)
        kernel = make_kernel(SsmConfig("dss", 6), 1, 2, SsmOptions(init="gss"))
        self.assertEqual(float(kernel.log_dt.abs().max()), 0.0)
        self.assertGreater(float(kernel.a_imag.min()), 0.0)

    def test_hyena_filter(self) -> None:
        positional = PositionalFilter(1, 2, 4, embedding=3, order=2, frequency=1.0)
        with torch.no_grad():
            positional.gain.fill_(1.0)
            positional.input.weight.copy_(torch.tensor([[0.1, 0.2, 0.3], [-0.3, 0.2, 0.1]]))
            positional.input.bias.copy_(torch.tensor([0.05, -0.05]))
            positional.inner.weight.copy_(torch.tensor([[0.5, -0.5], [0.25, 0.75]]))
            positional.inner.bias.copy_(torch.tensor([0.1, 0.2]))
            positional.output.weight.copy_(torch.tensor([[1.0, -1.0], [0.5, 2.0]]))
            positional.log_decay.copy_(torch.log(torch.tensor([[3.070113, 15.350567]])))
            taps = positional()[0]
        self._assert_close(
            taps[0].tolist(), [-0.216843904, -0.0321313856, 0.00503412253, 0.00773045838]
        )
        expected = [0.804768783, 4.26612561e-3, 2.20847745e-5, 1.10962492e-7]
        self._assert_close((taps[1] / torch.tensor(expected)).tolist(), [1.0] * 4, 1e-4)

    def test_explicit_filters_start_with_unit_energy(self) -> None:
        torch.manual_seed(2)
        taps = ExplicitFilter(8, 50, 1000, False).taps()
        energy = taps.square().sum(-1)
        self.assertLess(float((energy.mean(1) - 1.0).abs().max()), 0.35)
        # The first filter is slow, the last one is short.
        late = taps[:, :, 100:].square().sum((1, 2)) / energy.sum(1)
        self.assertGreater(float(late[0]), 0.3)
        self.assertLess(float(late[-1]), 0.01)


class RecurrenceTest(unittest.TestCase):
    """Convolutions against the step-by-step definition, in float64 where that is easy."""

    def _outputs(self, kernel: torch.nn.Module, u: torch.Tensor) -> np.ndarray:
        """y [B, L, C, D] of the recurrence from a zero state."""
        double = kernel.double()
        with torch.no_grad():
            if isinstance(kernel, DiagonalSsm):
                log_a_bar, b_bar, c = (x.numpy() for x in double.modes())
                a_bar, factor = np.exp(log_a_bar), kernel.readout
                step = lambda x, v: a_bar * x + b_bar * v[:, None, :, None]  # noqa: E731
                read = lambda x: factor * (c * x).sum(-1).real               # noqa: E731
                x = np.zeros((len(u), *c.shape), dtype=complex)
            else:
                matrices = [m.numpy() for m in double._discretize()]
                shape = (*kernel.d.shape, -1)
                a_bar = matrices[0].reshape(*shape, matrices[0].shape[-1])
                b_bar, c = matrices[1].reshape(shape), matrices[2].reshape(shape)
                step = lambda x, v: (  # noqa: E731
                    np.einsum("cdij,bcdj->bcdi", a_bar, x) + b_bar * v[:, None, :, None])
                read = lambda x: (c * x).sum(-1)  # noqa: E731
                x = np.zeros((len(u), *b_bar.shape))
            d, outputs = kernel.d.numpy(), []
            for t in range(u.shape[1]):
                v = u[:, t].double().numpy()
                x = step(x, v)
                outputs.append(read(x) + d * v[:, None])
        kernel.float()
        return np.stack(outputs, 1)

    def test_convolution_equals_recurrence(self) -> None:
        for name in ("s4d", "s4d_bilinear", "dss", "s4"):
            torch.manual_seed(3)
            options = SsmOptions(with_b=name == "s4d_bilinear")
            kernel = make_kernel(SSMS[name], 2, 3, options)
            u = torch.randn(2, 45, 3)
            with self.subTest(name=name), torch.no_grad():
                first, state = kernel(u[:, :20], None)
                second, _ = kernel(u[:, 20:], state)
                actual = torch.cat([first, second], 1).numpy()
                expected = self._outputs(kernel, u)
                self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())

    def test_block_ends_are_the_outputs_at_block_ends(self) -> None:
        cases = dict(
            SSMS, long=SsmConfig("explicit", length=90), one=SsmConfig("explicit", length=1)
        )
        for name, config in cases.items():
            for window in (1, 7, 8):
                torch.manual_seed(4)
                kernel = make_kernel(config, 3, 4, SsmOptions(taps=window == 7))
                u = torch.randn(2, 6 * window, 4)
                with self.subTest(name=name, window=window):
                    y, after = kernel(u, None)
                    ends, same = kernel.block_ends(u, None, window)
                    self.assertTrue(torch.allclose(ends, y[:, window - 1 :: window], atol=5e-5))
                    self.assertTrue(torch.allclose(after, same, atol=5e-5))
                    cut = 2 * window
                    first, state = kernel.block_ends(u[:, :cut], None, window)
                    second, _ = kernel.block_ends(u[:, cut:], state, window)
                    self.assertTrue(torch.allclose(torch.cat([first, second], 1), ends, atol=5e-5))
                    # Gradients, too: the same function must have the same.
                    weights = torch.randn_like(ends)
                    parameters = list(kernel.parameters())
                    one = torch.autograd.grad((y[:, window - 1 :: window] * weights).sum(),
                                              parameters)
                    other = torch.autograd.grad((ends * weights).sum(), parameters)
                    for a, b in zip(one, other):
                        scale = float(a.abs().max()) + 1e-3
                        self.assertLess(float((a - b).abs().max()), 2e-3 * scale)

    def test_dplr_with_p_zero_is_diagonal(self) -> None:
        torch.manual_seed(5)
        s4 = S4(2, 3, SsmConfig("s4", 8))
        s4d = S4d(2, 3, SsmConfig("s4d", 8, "bilinear"), "legs", False)
        with torch.no_grad():
            s4.p.zero_()
            for name in ("log_dt", "log_neg_a_real", "a_imag", "b", "c", "d"):
                getattr(s4, name).copy_(getattr(s4d, name))
            u = torch.randn(1, 50, 3)
            self.assertTrue(torch.allclose(s4(u, None)[0], s4d(u, None)[0], atol=2e-5))

    def test_s5_pure_sum(self) -> None:
        """λ = 0 with a zero-order hold adds up Δ b u."""
        kernel = S5(1, 1, SsmConfig("s5", 2))
        with torch.no_grad():
            for parameter in kernel.parameters():
                parameter.zero_()
            kernel.b[..., 0] = 1.0
            kernel.c[..., 0] = 0.5
            y = kernel(torch.ones(1, 9, 1), None)[0].flatten()
        self.assertTrue(torch.allclose(y, torch.arange(1.0, 10.0)))
        kernel.project()
        self.assertLess(float(kernel.lambda_real.max()), 0.0)


class ConvolutionTest(unittest.TestCase):
    """Hand-written gradients."""

    def test_convolve(self) -> None:
        torch.manual_seed(6)
        for taps, skip in ((13, 0), (5, 4), (13, 12), (1, 0)):
            u = torch.randn(2, 3, 13, dtype=torch.float64, requires_grad=True)
            kernel = torch.randn(2, 3, taps, dtype=torch.float64, requires_grad=True)
            wanted = torch.zeros(2, 2, 3, 13, dtype=torch.float64)
            for t in range(13):
                for s in range(max(0, t - taps + 1), t + 1):
                    wanted[..., t] += (kernel[None, :, :, t - s] * u[:, None, :, s]).detach()
            y = convolve(u, kernel, skip)
            self.assertTrue(torch.allclose(y, wanted[..., skip:]))
            self.assertTrue(torch.autograd.gradcheck(
                lambda a, b: convolve(a, b, skip), (u, kernel)))

    def test_block_end_products(self) -> None:
        torch.manual_seed(7)
        u = torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
        wanted = sum(
            torch.einsum("dbkw,dcw->dbkc", u[:, :, q : q + 4], weights[:, :, q]) for q in range(2)
        )
        self.assertTrue(torch.allclose(block_end_products(u, weights), wanted))
        self.assertTrue(torch.autograd.gradcheck(block_end_products, (u, weights)))

    def test_filter_gradient(self) -> None:
        """The hand-written gradient of the decay, forwards and reversed."""
        torch.manual_seed(8)
        positional = PositionalFilter(2, 3, 130, embedding=5, order=4, frequency=2.0)
        weights = torch.randn(2, 3, 130)
        parameters = list(positional.parameters())
        h = positional._hidden()
        plain = (positional.output.weight @ h.t()).reshape(2, 3, 130) * positional.gain[..., None]
        rate = torch.exp(positional.log_decay)[..., None] * torch.linspace(0.0, 1.0, 130)
        expected = torch.autograd.grad((plain * torch.exp(-rate) * weights).sum(), parameters)
        reverse = positional.reversed_by_feature().flip(-1).transpose(0, 1)
        for taps in (positional(), reverse):
            actual = torch.autograd.grad((taps * weights).sum(), parameters, retain_graph=True)
            for a, b in zip(actual, expected):
                self.assertTrue(torch.allclose(a, b, rtol=1e-3, atol=1e-4))


if __name__ == "__main__":
    unittest.main()
