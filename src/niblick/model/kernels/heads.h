/* `heads` of kernels.h for bfloat16 on wide vectors: a head is up to 8 vectors, its table is laid
 * out once per position. */

#ifdef __AVX512BF16__
#define FAST_HEADS
#define PARTS 8

/* Whether the rotated pairs lie in the first two vectors or whole vectors apart. */
static inline int fast_heads(int64_t half, int64_t d) {
    return d % 16 == 0 && d <= 16 * PARTS && (half <= 16 || half % 16 == 0);
}

/* The rotation of one position: out = x c + swapped(x) s over the d of a head. */
typedef struct {
    float c[16 * PARTS], s[16 * PARTS];
    __m512i swap[2];
    int64_t half, parts;
} Rotation;

static inline void rotation(Rotation *o, const float *co, const float *si, int64_t half,
                            int64_t d) {
    int32_t from[32];
    for (int32_t j = 0; j < 32; j++) from[j] = j < half ? j + half : j < 2 * half ? j - half : j;
    for (int64_t j = 0; j < half; j++)
        o->c[j] = o->c[j + half] = co[j], o->s[j] = si[j], o->s[j + half] = -si[j];
    for (int64_t j = 2 * half; j < d; j++) o->c[j] = 1, o->s[j] = 0;
    o->swap[0] = _mm512_loadu_si512(from), o->swap[1] = _mm512_loadu_si512(from + 16);
    o->half = half, o->parts = d / 16;
}

/* Part v of x with the two halves of what rotates exchanged. */
static inline __m512 swapped(const Rotation *o, const __m512 *x, int v) {
    if (o->half <= 16)
        return v < 2 ? _mm512_permutex2var_ps(x[0], o->swap[v], x[o->parts > 1]) : x[v];
    int64_t apart = o->half / 16;
    return x[v < apart ? v + apart : v < 2 * apart ? v - apart : v];
}

static inline float fast_head(const Rotation *o, const uint16_t *in, float gain, uint16_t *out) {
    __m512 x[PARTS], sum = _mm512_setzero_ps();
    for (int v = 0; v < o->parts; v++)
        x[v] = wide(in + 16 * v), sum = _mm512_fmadd_ps(x[v], x[v], sum);
    float inverse = 1 / sqrtf(_mm512_reduce_add_ps(sum) / (16 * o->parts) + FLT_EPSILON);
    __m512 k = _mm512_set1_ps(inverse * gain);
    for (int v = 0; v < o->parts; v++) {
        __m512 turned = _mm512_mul_ps(x[v], _mm512_loadu_ps(o->c + 16 * v));
        slim(out + 16 * v,
             _mm512_mul_ps(
                 k, _mm512_fmadd_ps(swapped(o, x, v), _mm512_loadu_ps(o->s + 16 * v), turned)));
    }
    return inverse;
}

/* Its backward; returns the gradient of the gain. */
static inline float fast_head_back(const Rotation *o, const uint16_t *up, const uint16_t *in,
                                   float gain, float inverse, uint16_t *out) {
    __m512 x[PARTS], g[PARTS], sum = _mm512_setzero_ps();
    for (int v = 0; v < o->parts; v++) x[v] = wide(up + 16 * v);
    for (int v = 0; v < o->parts; v++) {
        g[v] = _mm512_mul_ps(x[v], _mm512_loadu_ps(o->c + 16 * v));
        g[v] = _mm512_fnmadd_ps(swapped(o, x, v), _mm512_loadu_ps(o->s + 16 * v), g[v]);
        sum = _mm512_fmadd_ps(g[v], wide(in + 16 * v), sum);
    }
    float dot = _mm512_reduce_add_ps(sum);
    __m512 pull = _mm512_set1_ps(dot / (16 * o->parts) * inverse * inverse),
           k = _mm512_set1_ps(gain * inverse);
    for (int v = 0; v < o->parts; v++)
        slim(out + 16 * v, _mm512_mul_ps(k, _mm512_fnmadd_ps(wide(in + 16 * v), pull, g[v])));
    return dot * inverse;
}
#endif
