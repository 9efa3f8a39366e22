/* The pointwise passes of the feed-forward layer, each in one sweep over memory. `native.py` compiles this file for one
   activation (-DSIGMA=silu), one precision (-DBF16 or none) and the machine's vector units; loops are plain C that the
   compiler turns into vectors. Every pass works in fp32 and rounds once, as it stores. */
#include "lanes.c"

/* Each activation: its value and its slope at z. What a pass doesn't use, the compiler drops. */
typedef struct { float value, slope; } both;

INLINE both identity(float z) { return (both){z, 1.0f}; }
INLINE both relu(float z) { return (both){z <= 0.0f ? 0.0f : z, z <= 0.0f ? 0.0f : 1.0f}; }
INLINE both relu2(float z) {
  float r = z <= 0.0f ? 0.0f : z;
  return (both){r * r, 2.0f * r};
}
INLINE both sigmoid(float z) {
  float s = 1.0f / (1.0f + exponential(-z));
  return (both){s, s * (1.0f - s)};
}
INLINE both silu(float z) {
  float s = 1.0f / (1.0f + exponential(-z)), value = z * s;
  return (both){value, s + value * (1.0f - s)};
}
INLINE both gelu_tanh(float z) { /* (1 + tanh w) / 2 is sigmoid(2 w) */
  const float c = 1.5957691216f, k = 0.044715f;
  float s = 1.0f / (1.0f + exponential(-c * (z + k * z * z * z))), value = z * s;
  return (both){value, s + value * (1.0f - s) * c * (1.0f + 3.0f * k * z * z)};
}
/* Phi(-t) = exp(-t^2 / 2) Q(t) for t >= 0, where Q is smooth: a polynomial in 1 / (1 + 0.3 t), fitted to a relative
   error of 1.5e-7. The exponential serves the density in the slope as well. */
INLINE both gelu(float z) {
  float t = fabsf(z), e = exponential(-0.5f * z * z), s = 1.0f / (1.0f + 0.3f * t);
  float q = 0.03567337408573427f;
  q = q * s - 0.15719714873030452f;
  q = q * s + 0.2063431039485043f;
  q = q * s - 0.05367390344399453f;
  q = q * s + 0.12855638501085567f;
  q = q * s + 0.09991510675086943f;
  q = q * s + 0.12075369329926205f;
  q = q * s + 0.11962931620608994f;
  float tail = e * q * s, phi = z > 0.0f ? 1.0f - tail : tail;
  return (both){z * phi, phi + z * e * 0.3989422804f};
}

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
