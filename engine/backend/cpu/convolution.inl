// The kernels of the convolution with explicit taps (cpu_convolution.h), written over V16. Included
// by kernels_<isa>.cc inside a target region.

// A polynomial modulo t^size - i, z [size][2][16], becomes its values at the roots, level by level
// of a binary tree: node h (its children are 2 h and 2 h + 1) splits t^(2 n) - c^2 into t^n - c and
// t^n + c, c = roots[h]. One complex factor per node; and nothing is ever permuted, since the
// inverse walks back. From the level with n = half down.
inline void TransformFrom(const float* roots, int size, int half, float* z) {
  for (; half > 0; half /= 2) {
    const int nodes = size / (2 * half);
    float* a = z;
    for (int node = nodes; node < 2 * nodes; ++node, a += 2 * kLanes * half) {
      const V16 re = Set1(roots[2 * node]), im = Set1(roots[2 * node + 1]);
      for (int j = 0; j < half; ++j, a += 2 * kLanes) {
        float* b = a + 2 * kLanes * half;
        const V16 a_re = Load(a), a_im = Load(a + kLanes);
        const V16 b_re = Load(b), b_im = Load(b + kLanes);
        Store(a, NegFma(im, b_im, Fma(re, b_re, a_re)));
        Store(a + kLanes, Fma(im, b_re, Fma(re, b_im, a_im)));
        Store(b, Fma(im, b_im, NegFma(re, b_re, a_re)));
        Store(b + kLanes, NegFma(im, b_re, NegFma(re, b_im, a_im)));
      }
    }
  }
}

void TransformKernel(const float* roots, int size, float* z) {
  TransformFrom(roots, size, size / 2, z);
}

// The root's level reads the real coefficients and zeros from where they are.
void TransformRealKernel(const float* roots, int size, const float* u, int num_rows, float* z) {
  const auto row = [&](int i) { return i < num_rows ? Load(u + i * kLanes) : Zero(); };
  const int half = size / 2;
  if (half == 0) {
    Store(z, row(0));
    Store(z + kLanes, Zero());
    return;
  }
  const V16 re = Set1(roots[2]), im = Set1(roots[3]);
  for (int j = 0; j < half; ++j) {
    float* a = z + 2 * kLanes * j;
    float* b = a + 2 * kLanes * half;
    const V16 a_re = row(j), b_re = row(half + j), c_im = im * b_re;
    Store(a, Fma(re, b_re, a_re));
    Store(a + kLanes, c_im);
    Store(b, NegFma(re, b_re, a_re));
    Store(b + kLanes, Zero() - c_im);
  }
  TransformFrom(roots, size, half / 2, z);
}

// Back to the coefficients, `size` times as large.
void InverseTransformKernel(const float* roots, int size, float* z) {
  for (int half = 1, nodes = size / 2; nodes > 0; half *= 2, nodes /= 2) {
    float* a = z;
    for (int node = nodes; node < 2 * nodes; ++node, a += 2 * kLanes * half) {
      const V16 re = Set1(roots[2 * node]), im = Set1(roots[2 * node + 1]);
      for (int j = 0; j < half; ++j, a += 2 * kLanes) {
        float* b = a + 2 * kLanes * half;
        const V16 a_re = Load(a), a_im = Load(a + kLanes);
        const V16 b_re = Load(b), b_im = Load(b + kLanes);
        const V16 d_re = a_re - b_re, d_im = a_im - b_im;
        Store(a, a_re + b_re);
        Store(a + kLanes, a_im + b_im);
        Store(b, Fma(im, d_im, re * d_re));
        Store(b + kLanes, NegFma(im, d_re, re * d_im));
      }
    }
  }
}

// Partitions [first, first + Count), bin by bin.
template <int Count>
inline void AddSpectra(const SpectraTask& task, int first) {
  const int64_t stride = int64_t{2} * kLanes * task.size;
  const float* filters[Count];
  const float* inputs[Count];
  for (int p = 0; p < Count; ++p) {
    filters[p] = task.filters + (first + p) * stride;
    inputs[p] = task.inputs + (task.newest - (first + p) + task.ring) % task.ring * stride;
  }
  for (int64_t i = 0; i < stride; i += 2 * kLanes) {
    V16 re = first == 0 ? Zero() : Load(task.sum + i);
    V16 im = first == 0 ? Zero() : Load(task.sum + i + kLanes);
    for (int p = 0; p < Count; ++p) {
      const V16 g_re = Load(filters[p] + i), g_im = Load(filters[p] + i + kLanes);
      const V16 u_re = Load(inputs[p] + i), u_im = Load(inputs[p] + i + kLanes);
      re = NegFma(g_im, u_im, Fma(g_re, u_re, re));
      im = Fma(g_im, u_re, Fma(g_re, u_im, im));
    }
    Store(task.sum + i, re);
    Store(task.sum + i + kLanes, im);
  }
}

void MultiplySpectraKernel(const SpectraTask& task) {
  constexpr int kAtOnce = 4;  // saves most of the traffic with `sum`
  int p = 0;
  for (; p + kAtOnce <= task.count; p += kAtOnce) AddSpectra<kAtOnce>(task, p);
  for (; p < task.count; ++p) AddSpectra<1>(task, p);
}

// Outputs i .. i + Outputs - 1 of a block: each starts from its base and adds the inputs in order.
template <int Outputs>
inline void BlockOutputs(const ConvolveBlockTask& task, int i) {
  V16 sum[Outputs];
  for (int r = 0; r < Outputs; ++r) sum[r] = Load(task.base + (i + r) * kLanes);
  for (int j = 0; j <= i; ++j) {
    const V16 u = Load(task.u + j * kLanes);
    const float* taps = task.taps + (i - j) * kLanes;
    for (int r = 0; r < Outputs; ++r) sum[r] = Fma(Load(taps + r * kLanes), u, sum[r]);
  }
  for (int j = 1; j < Outputs; ++j) {
    const V16 u = Load(task.u + (i + j) * kLanes);
    for (int r = j; r < Outputs; ++r) sum[r] = Fma(Load(task.taps + (r - j) * kLanes), u, sum[r]);
  }
  float* y = task.y + (i - task.first) * task.y_stride;
  for (int r = 0; r < Outputs; ++r, y += task.y_stride) StorePartial(y, sum[r], task.num_features);
}

void ConvolveBlockKernel(const ConvolveBlockTask& task) {
  int i = task.first;
  for (; i + kBlockOutputs <= task.last; i += kBlockOutputs) BlockOutputs<kBlockOutputs>(task, i);
  for (; i < task.last; ++i) BlockOutputs<1>(task, i);
}

// Taps [first, last) of a tile of block ends and filters, summed from zero, then added to the sums.
template <int Ends, int Filters>
inline void EndSums(const ConvolveEndsTask& task, int first, int last, int end, int filter) {
  V16 sum[Ends][Filters];
  for (int e = 0; e < Ends; ++e) {
    for (int c = 0; c < Filters; ++c) sum[e][c] = Zero();
  }
  const int64_t filter_size = int64_t{task.num_taps} * kLanes;
  const int64_t block_size = int64_t{task.block} * kLanes;
  const float* taps = task.taps + filter * filter_size;
  const float* u = task.u + end * block_size;
  for (int s = first; s < last; ++s) {
    V16 tap[Filters];
    for (int c = 0; c < Filters; ++c) tap[c] = Load(taps + c * filter_size + s * kLanes);
    for (int e = 0; e < Ends; ++e) {
      const V16 x = Load(u + e * block_size - s * kLanes);
      for (int c = 0; c < Filters; ++c) sum[e][c] = Fma(tap[c], x, sum[e][c]);
    }
  }
  for (int e = 0; e < Ends; ++e) {
    for (int c = 0; c < Filters; ++c) {
      float* total = task.sums + ((end + e) * task.num_filters + filter + c) * kLanes;
      Store(total, Load(total) + sum[e][c]);
    }
  }
}

template <int Filters>
inline void EndSumsOfFilters(const ConvolveEndsTask& task, int first, int last, int filter) {
  int end = 0;
  for (; end + kTileEnds <= task.num_ends; end += kTileEnds)
    EndSums<kTileEnds, Filters>(task, first, last, end, filter);
  for (; end < task.num_ends; ++end) EndSums<1, Filters>(task, first, last, end, filter);
}

void ConvolveEndsKernel(const ConvolveEndsTask& task) {
  // So few taps at a time stay in the cache for all ends, and sums of sums round less.
  constexpr int kTapsAtOnce = 128;
  for (int first = 0; first < task.reach; first += kTapsAtOnce) {
    const int last = std::min(first + kTapsAtOnce, task.reach);
    int filter = 0;
    for (; filter + kTileFilters <= task.num_filters; filter += kTileFilters)
      EndSumsOfFilters<kTileFilters>(task, first, last, filter);
    for (; filter < task.num_filters; ++filter) EndSumsOfFilters<1>(task, first, last, filter);
  }
}
