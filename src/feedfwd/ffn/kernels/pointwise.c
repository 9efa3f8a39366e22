/* The pointwise passes of the feed-forward layer, each in one sweep over memory. `native.py` compiles this file for one
   activation (-DSIGMA=silu), one precision (-DBF16 or none) and the machine's vector units; loops are plain C that the
   compiler turns into vectors. Every pass works in fp32 and rounds once, as it stores. */
#include "lanes.c"
#include "activations.c"

/* Where dropout's bits are below the threshold the factor is 0, elsewhere its scale. */
INLINE float kept(const int16_t *bits, long j, int threshold, float scale, int drop) {
  return drop ? (bits[j] >= threshold ? scale : 0.0f) : 1.0f;
}

INLINE void gated_forward_row(const num *restrict g, const num *restrict u, num *restrict a,
                              const int16_t *restrict bits, long h, int t, float scale, int drop) {
  for (long j = 0; j < h; j++) a[j] = store(SIGMA(load(g[j])).value * load(u[j]) * kept(bits, j, t, scale, drop));
}

INLINE void gated_backward_row(num *restrict g, num *restrict u, num *restrict da, const int16_t *restrict bits, long h,
                               int t, float scale, int drop) {
  for (long j = 0; j < h; j++) {
    float k = kept(bits, j, t, scale, drop), d = load(da[j]) * k, y = load(u[j]);
    both s = SIGMA(load(g[j]));
    da[j] = store(s.value * y * k);
    g[j] = store(d * y * s.slope);
    u[j] = store(d * s.value);
  }
}

INLINE void dense_forward_row(const num *z, num *a, const int16_t *restrict bits, long h, int t, float scale, int drop) {
#pragma GCC ivdep /* a may be z, element by element */
  for (long j = 0; j < h; j++) a[j] = store(SIGMA(load(z[j])).value * kept(bits, j, t, scale, drop));
}

INLINE void dense_backward_row(num *restrict z, num *restrict da, const int16_t *restrict bits, long h, int t,
                               float scale, int drop) {
  for (long j = 0; j < h; j++) {
    float k = kept(bits, j, t, scale, drop), d = load(da[j]) * k;
    both s = SIGMA(load(z[j]));
    da[j] = store(s.value * k);
    z[j] = store(d * s.slope);
  }
}

/* One thread stays out of OpenMP: a team of one would end torch's other threads, which then have to be started again. */
#define ROWS(BODY)                                                                                                  \
  if (threads > 1) {                                                                                                \
    _Pragma("omp parallel for schedule(static) num_threads(threads)") for (long i = 0; i < n; i++) { BODY; }        \
  } else {                                                                                                          \
    for (long i = 0; i < n; i++) { BODY; }                                                                          \
  }
/* With and without a mask are spelt out, so that no inner loop tests for one. */
#define SWEEP(NAME, ROW, ...)                                                                                       \
  void NAME(num *z, num *a, const int16_t *bits, int threshold, float scale, long n, long h, int threads) {         \
    if (bits) {                                                                                                     \
      ROWS(ROW(__VA_ARGS__, a + i * h, bits + i * h, h, threshold, scale, 1))                                       \
    } else {                                                                                                        \
      ROWS(ROW(__VA_ARGS__, a + i * h, bits, h, threshold, scale, 0))                                               \
    }                                                                                                               \
  }

SWEEP(gated_forward, gated_forward_row, z + 2 * i * h, z + 2 * i * h + h)
SWEEP(gated_backward, gated_backward_row, z + 2 * i * h, z + 2 * i * h + h)
SWEEP(dense_forward, dense_forward_row, z + i * h)
SWEEP(dense_backward, dense_backward_row, z + i * h)

/* For the activations whose output a alone was kept: da becomes dz. Where a is 0, dropout's zeros among them, so is dz. */
INLINE float relu_output(float a, float scale) { return a > 0.0f ? scale : 0.0f; }
INLINE float relu2_output(float a, float scale) { return 2.0f * sqrtf(scale * a); } /* a is scale relu(z)^2 */

#ifdef OUTPUT
INLINE void output_backward_row(const num *restrict a, num *restrict da, long h, float scale) {
  for (long j = 0; j < h; j++) da[j] = store(load(da[j]) * OUTPUT(load(a[j]), scale));
}

void output_backward(const num *a, num *da, float scale, long n, long h, int threads) {
  ROWS(output_backward_row(a + i * h, da + i * h, h, scale))
}
#endif
