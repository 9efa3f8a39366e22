/* Each activation, for the files that are compiled for one (-DSIGMA=silu): its value and its slope at z. What a pass doesn't
   use, the compiler drops. `real` is a number, or a whole vector in files that define IN_VECTORS. */
#ifdef IN_VECTORS
typedef vec real;
INLINE real all(float x) { return _mm512_set1_ps(x); }
INLINE real magnitude(real x) { return _mm512_abs_ps(x); }
INLINE real power(real x) { return power_of_two(_mm512_min_ps(all(80.0f), x) * LOG2E); }
INLINE real inverse(real x) { /* an estimate to 14 bits, and a step of Newton's */
  const real y = _mm512_rcp14_ps(x);
  return y + y * (1.0f - x * y);
}
INLINE real by_sign(real x, real up_to, real above) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, all(0.0f), _CMP_LE_OQ), above, up_to);
}
#else
typedef float real;
INLINE real all(float x) { return x; }
INLINE real magnitude(real x) { return fabsf(x); }
INLINE real power(real x) { return exponential(x); }
INLINE real inverse(real x) { return 1.0f / x; }
INLINE real by_sign(real x, real up_to, real above) { return x <= 0.0f ? up_to : above; }
#endif
typedef struct { real value, slope; } both;

INLINE both identity(real z) { return (both){z, all(1.0f)}; }
INLINE both relu(real z) { return (both){by_sign(z, all(0.0f), z), by_sign(z, all(0.0f), all(1.0f))}; }
INLINE both relu2(real z) {
  const real r = by_sign(z, all(0.0f), z);
  return (both){r * r, 2.0f * r};
}
INLINE both sigmoid(real z) {
  const real s = inverse(1.0f + power(-z));
  return (both){s, s * (1.0f - s)};
}
INLINE both silu(real z) {
  const real s = inverse(1.0f + power(-z)), value = z * s;
  return (both){value, s + value * (1.0f - s)};
}
INLINE both gelu_tanh(real z) { /* (1 + tanh w) / 2 is sigmoid(2 w) */
  const float c = 1.5957691216f, k = 0.044715f;
  const real s = inverse(1.0f + power(-c * (z + k * z * z * z))), value = z * s;
  return (both){value, s + value * (1.0f - s) * c * (1.0f + 3.0f * k * z * z)};
}
/* Phi(-t) = exp(-t^2 / 2) Q(t) for t >= 0, where Q is smooth: a polynomial in 1 / (1 + 0.3 t), fitted to a relative
   error of 1.5e-7. The exponential serves the density in the slope as well. */
INLINE both gelu(real z) {
  const real t = magnitude(z), e = power(-0.5f * z * z), s = inverse(1.0f + 0.3f * t);
  real q = all(0.03567337408573427f);
  q = q * s - 0.15719714873030452f;
  q = q * s + 0.2063431039485043f;
  q = q * s - 0.05367390344399453f;
  q = q * s + 0.12855638501085567f;
  q = q * s + 0.09991510675086943f;
  q = q * s + 0.12075369329926205f;
  q = q * s + 0.11962931620608994f;
  const real tail = e * q * s, phi = by_sign(z, tail, 1.0f - tail);
  return (both){z * phi, phi + z * e * 0.3989422804f};
}
