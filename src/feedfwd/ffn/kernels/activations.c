/* Each activation, for the files that are compiled for one (-DSIGMA=silu): its value and its slope at z. What a pass doesn't use, the compiler drops. */
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
