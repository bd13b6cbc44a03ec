// What the kernels share: bits of floats, draws, threads. Built three times, for three instruction sets; see CMakeLists.txt.
//
// Every kernel equals kernels/reference.py bit for bit. That needs: no contraction of a product and a sum (-ffp-contract=off), the same
// order of operations as there, and integer arithmetic wherever an order of floats is not fixed (a largest magnitude is one of integers).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#define RESTRICT __restrict__

namespace thinwire {

constexpr uint32_t SIGN = 0x80000000u, INFINITE = 0x7f800000u, QUIET_NAN = 0x7fc00000u;
constexpr float MAGIC = 12582912.0f;     // 1.5 · 2^23: a small number added to it is rounded, half to even, into the lowest bits
constexpr int64_t LANE = 256;            // values worked on at a time, so that what lies between two loops stays in the first cache
constexpr int64_t AHEAD = 2048;  // values from where one works to where memory is asked for: two passes over a lane stop its prefetcher
constexpr int64_t SHARE = int64_t{1} << 18;  // values that are worth a thread

INLINE uint32_t bits_of(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
INLINE float of_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
template <typename T> INLINE T load(const void* from) { T value; std::memcpy(&value, from, sizeof(T)); return value; }
template <typename T> INLINE void store(void* to, T value) { std::memcpy(to, &value, sizeof(T)); }

// The n-th draw of a key: a hash of 32 bits with low bias (Wellons 2018, "prospector"), the second word of the key stirred in on the way.
INLINE uint32_t draw(uint32_t n, uint32_t key0, uint32_t key1) {
    uint32_t x = n + key0;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= key1;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// What feedback keeps a residual in: a float32, or the upper half of one (bfloat16), rounded half to even.
using Brief = uint16_t;
INLINE float wide(float x) { return x; }
INLINE float wide(Brief x) { return of_bits(static_cast<uint32_t>(x) << 16); }

// What a gradient comes in: a float32, a bfloat16 or an IEEE half. Values are widened, which is exact, in registers or a lane at a time.
struct Bf16 {
    uint16_t bits;
};
struct Fp16 {
    uint16_t bits;
};
INLINE float wide(Bf16 x) { return of_bits(static_cast<uint32_t>(x.bits) << 16); }
INLINE float wide(Fp16 x) {
    const uint32_t size = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
    // Exponents are moved by a product, which also makes numbers of subnormals; of an infinity or a NaN it is set.
    const uint32_t finite = bits_of(of_bits(size) * 0x1p112f);
    return of_bits((size >= 0x0f800000u ? size | INFINITE : finite) | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

// n values (a lane at most) as float32: where they are, or in `room`.
INLINE const float* widened(const float* x, int64_t, float*) { return x; }
template <typename In> INLINE const float* widened(const In* RESTRICT x, int64_t n, float* RESTRICT room) {
    if (n == LANE)
        for (int64_t i = 0; i < LANE; ++i) room[i] = wide(x[i]);
    else
        for (int64_t i = 0; i < n; ++i) room[i] = wide(x[i]);
    return room;
}
#if defined(__F16C__)
INLINE const float* widened(const Fp16* RESTRICT x, int64_t n, float* RESTRICT room) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(room + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
    for (; i < n; ++i) room[i] = wide(x[i]);
    return room;
}
#endif
template <typename In> constexpr bool NARROW = sizeof(In) < sizeof(float);

// A float32 in a narrow type, rounded half to even.
INLINE Bf16 narrow(float x, Bf16) {
    const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {static_cast<uint16_t>((bits & ~SIGN) > INFINITE ? QUIET_NAN >> 16 : rounded)};
}
INLINE Fp16 narrow(float x, Fp16) {
    const uint32_t bits = bits_of(x), size = bits & ~SIGN;
    uint32_t out = (size + 0xfff + (size >> 13 & 1) - 0x38000000u) >> 13;
    if (size < 0x38800000u) out = bits_of(of_bits(size) + 0.5f) - bits_of(0.5f);  // subnormal: that sum is rounded where they are
    if (size >= 0x477ff000u) out = size > INFINITE ? 0x7e00 : 0x7c00;
    return {static_cast<uint16_t>(out | (bits >> 16 & 0x8000))};
}
template <typename Out> INLINE void narrowed(const float* RESTRICT x, int64_t n, Out* RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) out[i] = narrow(x[i], Out{});
}
#if defined(__F16C__)
INLINE void narrowed(const float* RESTRICT x, int64_t n, Fp16* RESTRICT out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    for (; i < n; ++i) out[i] = narrow(x[i], Fp16{});
}
#endif
// n values (a lane at most), written or added to what is there: a sum is rounded once.
template <bool ADD, typename Out> INLINE void put_narrow(float* RESTRICT x, int64_t n, Out* RESTRICT out) {
    alignas(64) float room[LANE];
    if (ADD) {
        const float* old = widened(out, n, room);
        for (int64_t i = 0; i < n; ++i) x[i] = old[i] + x[i];
    }
    narrowed(x, n, out);
}

// work(x), with a pointer to what the values come in, or go to: 0 float32, 1 bfloat16, 2 half.
template <typename Work> auto given_as(int kind, const void* x, const Work& work) {
    if (kind == 1) return work(static_cast<const Bf16*>(x));
    if (kind == 2) return work(static_cast<const Fp16*>(x));
    return work(static_cast<const float*>(x));
}
template <typename Work> void put_as(int kind, void* x, const Work& work) {
    if (kind == 1) return work(static_cast<Bf16*>(x));
    if (kind == 2) return work(static_cast<Fp16*>(x));
    work(static_cast<float*>(x));
}

// A value as it is kept; SURE: it is a number.
template <bool SURE> INLINE float as_kept(float x, const float*) { return x; }
template <bool SURE> INLINE Brief as_kept(float x, const Brief*) {
    const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<Brief>(!SURE && (bits & ~SIGN) > INFINITE ? QUIET_NAN >> 16 : rounded);
}

// The largest magnitude as an integer; above INFINITE where there is a NaN.
INLINE uint32_t largest(const float* x, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t size = static_cast<int32_t>(bits_of(x[i]) & ~SIGN);
        most = size > most ? size : most;
    }
    return static_cast<uint32_t>(most);
}

// y = x + decay · before, rounded twice, and the largest magnitude of it. `y` may be `before`.
template <typename In, typename Kept> INLINE uint32_t summed(const In* RESTRICT x, const Kept* RESTRICT before, float decay, int64_t n, float* RESTRICT y) {
    int32_t most = 0;
    const auto each = [&](int64_t i, float sum) {
        const int32_t size = static_cast<int32_t>(bits_of(sum) & ~SIGN);
        y[i] = sum;
        most = size > most ? size : most;
    };
    if (decay == 1.0f)
        for (int64_t i = 0; i < n; ++i) each(i, wide(x[i]) + wide(before[i]));
    else
        for (int64_t i = 0; i < n; ++i) each(i, wide(x[i]) + wide(before[i]) * decay);
    return static_cast<uint32_t>(most);
}

// Ask for as many values, a lane at most, AHEAD of these. (An address beyond the end harms nothing.) A loop of a known count is unrolled.
template <int64_t FAR = AHEAD, typename Value> INLINE void prefetched(const Value* x, int64_t n) {
    constexpr int64_t LINE = 64 / sizeof(Value);
    const char* at = reinterpret_cast<const char*>(x + FAR);
    if (n >= LANE)
        for (int64_t i = 0; i < LANE; i += LINE) __builtin_prefetch(at + sizeof(Value) * i);
    else
        for (int64_t i = 0; i < n; i += LINE) __builtin_prefetch(at + sizeof(Value) * i);
}

// A residual in 8 bits: a step of each lane, so many of 127 steps of each value. what/wrap/_stored.py says how they are found.
INLINE float eighth_step(uint32_t most) {
    const float step = of_bits((bits_of(of_bits(most) / 127.0f) + 0xff) & ~0xffu);
    return step < 0x1p-126f ? 0x1p-126f : step > 0x1.0204p+121f ? 0x1.0204p+121f : step;
}
INLINE void eighths_loop(const float* RESTRICT x, int64_t n, float step, int8_t* RESTRICT codes) {
    for (int64_t i = 0; i < n; ++i) {
        float v = x[i] / step;
        v = v > -127 ? v : -127;
        v = v < 127 ? v : 127;
        codes[i] = static_cast<int8_t>(bits_of(v + MAGIC));
    }
}
INLINE void whole_loop(const int8_t* RESTRICT codes, int64_t n, float step, float* RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(codes[i]) * step;
}
struct Eighths {
    char* steps;
    int8_t* codes;
    Eighths(const void* at, int64_t n) : steps(static_cast<char*>(const_cast<void*>(at))), codes(reinterpret_cast<int8_t*>(steps + 4 * ((n + LANE - 1) / LANE))) {}
    // `at` is the first of a lane, `m` its values.
    void keep(const float* x, int64_t at, int64_t m) const {
        const float step = eighth_step(m == LANE ? largest(x, LANE) : largest(x, m));
        store(steps + at / LANE * 4, step);
        m == LANE ? eighths_loop(x, LANE, step, codes + at) : eighths_loop(x, m, step, codes + at);
    }
    void values(int64_t at, int64_t m, float* out) const {
        const auto step = load<float>(steps + at / LANE * 4);
        m == LANE ? whole_loop(codes + at, LANE, step, out) : whole_loop(codes + at, m, step, out);
    }
};

// work(before, left), with what they are kept in: 0 float32, 1 bfloat16, 2 eight bits, of n values.
template <typename Work> bool kept_as(int form, const void* before, void* left, int64_t n, const Work& work) {
    if (form == 2) return work(Eighths(before, n), Eighths(left, n));
    if (form == 1) return work(static_cast<const Brief*>(before), static_cast<Brief*>(left));
    return work(static_cast<const float*>(before), static_cast<float*>(left));
}

// To memory past the caches, where so much is written that it would not stay there: a store then reads nothing first.
constexpr int64_t PAST = int64_t{1} << 22;   // values from which on
constexpr int64_t LATER = int64_t{1} << 16;  // the same for a residual, which is not read before the next step
INLINE void streamed(const void* RESTRICT from, void* RESTRICT to, int64_t nbytes) {  // both, and nbytes, at multiples of 64
    const char* source = static_cast<const char*>(from);
    char* target = static_cast<char*>(to);
#if defined(__AVX512F__)
    for (int64_t i = 0; i < nbytes; i += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(target + i), _mm512_load_si512(source + i));
#elif defined(__AVX2__)
    for (int64_t i = 0; i < nbytes; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i), _mm256_load_si256(reinterpret_cast<const __m256i*>(source + i)));
#elif defined(__SSE2__)
    for (int64_t i = 0; i < nbytes; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), _mm_load_si128(reinterpret_cast<const __m128i*>(source + i)));
#else
    std::memcpy(target, source, nbytes);
#endif
}
INLINE void settled() {  // such stores, before another thread looks
#if defined(__SSE2__)
    _mm_sfence();
#endif
}
INLINE bool goes_past(const void* to, int64_t n, int64_t least = PAST) { return n >= least && reinterpret_cast<uintptr_t>(to) % 64 == 0; }

// Whether what is left is finite as it is kept; none of it is above reach · scale, and the scale itself is not finite where a value is not.
INLINE bool kept_finite(float scale, float, const float*, int64_t) { return bits_of(scale) < INFINITE; }
INLINE bool kept_finite(float scale, float reach, const Brief* left, int64_t n) {
    bool finite = true;
    if (!(scale * reach < 0x1p126f))
        for (int64_t i = 0; i < n; ++i) finite &= (left[i] & 0x7fff) < INFINITE >> 16;
    return finite;
}

// work(begin, end) over 0 … count, in threads where there is enough to do.
template <typename Work> void in_threads(int64_t count, int64_t numel, int threads, const Work& work) {
    const int64_t ways = std::min<int64_t>({numel / SHARE, threads, count});
    if (ways <= 1) {
        work(int64_t{0}, count);
        return settled();
    }
    std::vector<std::thread> others;
    others.reserve(ways - 1);
    for (int64_t way = 1; way < ways; ++way)
        others.emplace_back([&work, count, ways, way] {
            work(count * way / ways, count * (way + 1) / ways);
            settled();
        });
    work(int64_t{0}, count / ways);
    settled();
    for (auto& other : others) other.join();
}

}  // namespace thinwire
