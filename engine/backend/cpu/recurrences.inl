// The kernels of the recurrences (ssm.h), written over V16. Included by kernels_<isa>.cc inside a
// target region, after the vector type.

// ---------------------------------------------------------------- diagonal

// Tokens whose inputs and outputs lie together while the modes pass over them, in tiles that stay
// in registers. (In the matrices a group's column would fall on a few sets of the cache.)
constexpr int kTokenTile = 64;

// `Modes` modes of a group over n tokens: x += E x + u. With Readout, y[t] takes their share, mode
// after mode. weights [Modes][4][16], state [Modes][2][16], u, y [n][16].
template <int Modes, bool Readout>
inline void AdvanceModes(const float* weights, const float* u, int n, float* state, float* y) {
  V16 er[Modes], ei[Modes], cr[Modes], ci[Modes], re[Modes], im[Modes];
  for (int m = 0; m < Modes; ++m) {
    er[m] = Load(weights + (4 * m + 0) * kLanes);
    ei[m] = Load(weights + (4 * m + 1) * kLanes);
    cr[m] = Load(weights + (4 * m + 2) * kLanes);
    ci[m] = Load(weights + (4 * m + 3) * kLanes);
    re[m] = Load(state + (2 * m + 0) * kLanes);
    im[m] = Load(state + (2 * m + 1) * kLanes);
  }
  for (int t = 0; t < n; ++t) {
    const V16 in = Load(u + t * kLanes);
    V16 sum = Zero();
    if constexpr (Readout) sum = Load(y + t * kLanes);
    for (int m = 0; m < Modes; ++m) {
      const V16 step_re = NegFma(ei[m], im[m], Fma(er[m], re[m], in));
      const V16 step_im = Fma(ei[m], re[m], er[m] * im[m]);
      re[m] = re[m] + step_re;
      im[m] = im[m] + step_im;
      if constexpr (Readout) sum = NegFma(ci[m], im[m], Fma(cr[m], re[m], sum));
    }
    if constexpr (Readout) Store(y + t * kLanes, sum);
  }
  for (int m = 0; m < Modes; ++m) {
    Store(state + (2 * m + 0) * kLanes, re[m]);
    Store(state + (2 * m + 1) * kLanes, im[m]);
  }
}

template <bool Readout>
inline void AdvanceGroup(const float* weights, int num_modes, const float* u, int n, float* state,
                         float* y) {
  int m = 0;
  for (; m + kModeTile <= num_modes; m += kModeTile)
    AdvanceModes<kModeTile, Readout>(weights + m * 4 * kLanes, u, n, state + m * 2 * kLanes, y);
  for (; m < num_modes; ++m)
    AdvanceModes<1, Readout>(weights + m * 4 * kLanes, u, n, state + m * 2 * kLanes, y);
}

void SsmKernel(const RecurrenceTask& task) {
  const V16 d = Load(task.weights);
  const float* modes = task.weights + kLanes;
  alignas(64) float u[kTokenTile * kLanes], y[kTokenTile * kLanes];
  for (int first = 0; first < task.num_tokens; first += kTokenTile) {
    const int n = std::min(kTokenTile, task.num_tokens - first);
    for (int t = 0; t < n; ++t) {
      const V16 in = LoadPartial(task.u + (first + t) * task.u_stride, task.num_features);
      Store(u + t * kLanes, in);
      Store(y + t * kLanes, d * in);
    }
    if (task.last_output_only) {
      AdvanceGroup<false>(modes, task.num_modes, u, n, task.state, y);
      continue;
    }
    AdvanceGroup<true>(modes, task.num_modes, u, n, task.state, y);
    for (int t = 0; t < n; ++t) {
      StorePartial(task.y + (first + t) * task.y_stride, Load(y + t * kLanes), task.num_features);
    }
  }
  if (!task.last_output_only) return;
  // The same sum in the same order as with an output at every token.
  V16 sum = Load(y + (task.num_tokens - 1) % kTokenTile * kLanes);
  for (int m = 0; m < task.num_modes; ++m) {
    const float *w = modes + m * 4 * kLanes, *x = task.state + m * 2 * kLanes;
    sum = NegFma(Load(w + 3 * kLanes), Load(x + kLanes), Fma(Load(w + 2 * kLanes), Load(x), sum));
  }
  StorePartial(task.y, sum, task.num_features);
}

// ---------------------------------------------------------------- diagonal plus low rank

// Real and imaginary parts add up in chains of their own: half the latency, one fixed order.
struct ComplexSum {
  V16 real, imag;

  void Add(const float* factors, V16 re, V16 im) {
    real = Fma(Load(factors), re, real);
    imag = Fma(Load(factors + kLanes), im, imag);
  }
  V16 RealPart() const { return real - imag; }
};

// One token: x += E x + B u - P h. Returns Re sum C x; `next` becomes the sum q x of the new state.
template <bool Readout>
inline V16 DplrUpdate(const RecurrenceTask& task, const float* modes, V16 u, V16 h,
                      ComplexSum& next) {
  ComplexSum y = {Zero(), Zero()};
  next = {Zero(), Zero()};
  for (int m = 0; m < task.num_modes; ++m) {
    const float* w = modes + m * 10 * kLanes;
    float* x = task.state + m * 2 * kLanes;
    const V16 re = Load(x), im = Load(x + kLanes), er = Load(w), ei = Load(w + kLanes);
    V16 step_re = NegFma(ei, im, Fma(er, re, Load(w + 2 * kLanes) * u));
    V16 step_im = Fma(ei, re, Fma(er, im, Load(w + 3 * kLanes) * u));
    step_re = NegFma(Load(w + 4 * kLanes), h, step_re);
    step_im = NegFma(Load(w + 5 * kLanes), h, step_im);
    const V16 new_re = re + step_re, new_im = im + step_im;
    Store(x, new_re);
    Store(x + kLanes, new_im);
    next.Add(w + 6 * kLanes, new_re, new_im);
    if constexpr (Readout) y.Add(w + 8 * kLanes, new_re, new_im);
  }
  return y.RealPart();
}

void DplrKernel(const RecurrenceTask& task) {
  const V16 d = Load(task.weights), kappa = Load(task.weights + kLanes);
  const float* modes = task.weights + 2 * kLanes;
  ComplexSum sum = {Zero(), Zero()};
  for (int m = 0; m < task.num_modes; ++m) {
    const float* x = task.state + m * 2 * kLanes;
    sum.Add(modes + (m * 10 + 6) * kLanes, Load(x), Load(x + kLanes));
  }
  for (int t = 0; t < task.num_tokens; ++t) {
    const V16 u = LoadPartial(task.u + t * task.u_stride, task.num_features);
    const V16 h = Fma(kappa, u, sum.RealPart());
    if (task.last_output_only && t + 1 < task.num_tokens) {
      DplrUpdate<false>(task, modes, u, h, sum);
      continue;
    }
    const V16 y = Fma(d, u, DplrUpdate<true>(task, modes, u, h, sum));
    StorePartial(task.last_output_only ? task.y : task.y + t * task.y_stride, y, task.num_features);
  }
}

// ---------------------------------------------------------------- the shared scan

// x += E x + v over the tokens, in place. The first 16 (Vectors - 1) modes and `last` more.
template <int Vectors>
inline void ScanModes(const ScanTask& task, int last) {
  V16 er[Vectors], ei[Vectors], re[Vectors], im[Vectors];
  for (int i = 0; i < Vectors; ++i) {
    er[i] = Load(task.e_real + i * kLanes);
    ei[i] = Load(task.e_imag + i * kLanes);
    re[i] = Load(task.x_real + i * kLanes);
    im[i] = Load(task.x_imag + i * kLanes);
  }
  for (int t = 0; t < task.num_tokens; ++t) {
    float* v_real = task.v_real + t * task.v_stride;
    float* v_imag = task.v_imag + t * task.v_stride;
    for (int i = 0; i < Vectors; ++i) {
      const int n = i == Vectors - 1 ? last : kLanes;
      const V16 in_re = LoadPartial(v_real + i * kLanes, n);
      const V16 in_im = LoadPartial(v_imag + i * kLanes, n);
      const V16 step_re = NegFma(ei[i], im[i], Fma(er[i], re[i], in_re));
      const V16 step_im = Fma(ei[i], re[i], Fma(er[i], im[i], in_im));
      re[i] = re[i] + step_re;
      im[i] = im[i] + step_im;
      StorePartial(v_real + i * kLanes, re[i], n);
      StorePartial(v_imag + i * kLanes, im[i], n);
    }
  }
  for (int i = 0; i < Vectors; ++i) {
    Store(task.x_real + i * kLanes, re[i]);
    Store(task.x_imag + i * kLanes, im[i]);
  }
}

void ScanKernel(const ScanTask& task) {
  static_assert(kScanModes == 4 * kLanes);
  const int vectors = (task.num_modes + kLanes - 1) / kLanes;
  const int last = task.num_modes - (vectors - 1) * kLanes;
  if (vectors == 4) return ScanModes<4>(task, last);
  if (vectors == 3) return ScanModes<3>(task, last);
  if (vectors == 2) return ScanModes<2>(task, last);
  ScanModes<1>(task, last);
}
