// Codes and what they are made of: bits packed and unpacked, signs, draws for a lane, blocks that share a scale, eight values at once.
#pragma once

#include <numeric>

#include "common.h"

namespace thinwire {

constexpr int64_t EIGHT = 8;
typedef float Eight __attribute__((vector_size(32)));
typedef float Loose __attribute__((vector_size(32), aligned(4), may_alias));  // where it lies in memory
typedef int32_t Places __attribute__((vector_size(32)));
typedef int32_t LoosePlaces __attribute__((vector_size(32), aligned(4), may_alias));
INLINE Loose& eight(float* x) { return *reinterpret_cast<Loose*>(x); }
INLINE const Loose& eight(const float* x) { return *reinterpret_cast<const Loose*>(x); }

// Eight values, times -1 where a bit is set.
INLINE void turn_by(uint8_t bits, float* x) {
    constexpr Places PLACE = {1, 2, 4, 8, 16, 32, 64, 128};
    const Places below = ((Places{} + bits) & PLACE) == PLACE, upper = Places{} + static_cast<int32_t>(SIGN);
    eight(x) = reinterpret_cast<Eight>(reinterpret_cast<Places>(Eight(eight(x))) ^ (below & upper));
}

// n codes, one a byte, padded with zeros to a multiple of 8 -> bits.
INLINE void packed(uint8_t* RESTRICT codes, int64_t n, int bits, uint8_t* RESTRICT out) {
    const int64_t nbytes = (n * bits + 7) / 8;
    if (bits == 4) {
        for (int64_t i = 0; i < nbytes; ++i) {
            const auto w = load<uint16_t>(codes + 2 * i);
            out[i] = static_cast<uint8_t>(w | w >> 4);
        }
    } else if (bits == 2) {
        for (int64_t i = 0; i < nbytes; ++i) {
            const auto w = load<uint32_t>(codes + 4 * i);
            out[i] = static_cast<uint8_t>(w | w >> 6 | w >> 12 | w >> 18);
        }
    } else {
        for (int64_t i = 0; i < n; i += 8) {
            uint64_t word = 0;
            for (int lane = 0; lane < 8; ++lane) word |= static_cast<uint64_t>(codes[i + lane]) << (lane * bits);
            const int64_t at = i / 8 * bits;
            std::memcpy(out + at, &word, std::min<int64_t>(bits, nbytes - at));
        }
    }
}

// The inverse; `codes` has room for n rounded up to a multiple of 8.
INLINE void unpacked(const uint8_t* RESTRICT in, int64_t n, int bits, uint8_t* RESTRICT codes) {
    const int64_t nbytes = (n * bits + 7) / 8;
    if (bits == 4) {
        for (int64_t i = 0; i < nbytes; ++i) {
            const uint32_t w = in[i];
            store(codes + 2 * i, static_cast<uint16_t>((w | w << 4) & 0x0f0f));
        }
    } else if (bits == 2) {
        for (int64_t i = 0; i < nbytes; ++i) {
            const uint32_t w = in[i];
            store(codes + 4 * i, (w | w << 6 | w << 12 | w << 18) & 0x03030303u);
        }
    } else {
        const uint8_t mask = static_cast<uint8_t>((1 << bits) - 1);
        for (int64_t i = 0; i < n; i += 8) {
            uint64_t word = 0;
            const int64_t at = i / 8 * bits;
            std::memcpy(&word, in + at, std::min<int64_t>(bits, nbytes - at));
            for (int lane = 0; lane < 8; ++lane) codes[i + lane] = static_cast<uint8_t>(word >> (lane * bits)) & mask;
        }
    }
}

// The bits of at most 8 values.
INLINE uint8_t few_bits(const float* x, int64_t n) {
    uint8_t out = 0;
    for (int64_t i = 0; i < n; ++i) out |= static_cast<uint8_t>(x[i] < 0) << i;
    return out;
}

#if defined(__AVX512F__)
// Of 64 values at once: four stores of 16 bits keep the processor waiting.
INLINE uint64_t bits_of_64(const float* x) {
    const auto below = [=](int64_t at) { return _mm512_cmp_ps_mask(_mm512_loadu_ps(x + at), _mm512_setzero_ps(), _CMP_LT_OQ); };
    return _mm512_kunpackd(_mm512_kunpackw(below(48), below(32)), _mm512_kunpackw(below(16), below(0)));
}
#endif

#if defined(__AVX2__)
// Of 32 values: comparisons are packed to bytes, then their order is mended.
INLINE uint32_t bits_of_32(const float* x) {
    const auto below = [=](int64_t at) {
        return _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(x + at), _mm256_setzero_ps(), _CMP_LT_OQ));
    };
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(below(0), below(8)), _mm256_packs_epi32(below(16), below(24)));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))));
}
// As integers, numbers below zero lie between the least one, which is -0, and -infinity; what is above that is no number.
template <typename Narrow> INLINE uint32_t bits_of_32(const Narrow* x) {
    constexpr int LEAST = -32768, END = std::is_same_v<Narrow, Bf16> ? 0xff81 - 0x10000 : 0xfc01 - 0x10000;
    const auto below = [=](int64_t at) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + at));
        return _mm256_and_si256(_mm256_cmpgt_epi16(v, _mm256_set1_epi16(LEAST)), _mm256_cmpgt_epi16(_mm256_set1_epi16(END), v));
    };
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(below(0), below(16)), 0xd8)));
}
#endif

INLINE void bits_below_zero(const float* x, int64_t n, uint8_t* out) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 64 <= n; i += 64) store(out + i / 8, bits_of_64(x + i));
    for (; i + 16 <= n; i += 16) store(out + i / 8, static_cast<uint16_t>(_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(), _CMP_LT_OQ)));
#elif defined(__AVX2__)
    for (; i + 32 <= n; i += 32) store(out + i / 8, bits_of_32(x + i));
    for (; i + 8 <= n; i += 8)
        out[i / 8] = static_cast<uint8_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_setzero_ps(), _CMP_LT_OQ)));
#else
    for (; i + 8 <= n; i += 8) out[i / 8] = few_bits(x + i, 8);
#endif
    for (; i < n; i += 8) out[i / 8] = few_bits(x + i, std::min<int64_t>(8, n - i));
}

constexpr int64_t WIDEST = 4096;  // values of a block that is held as a whole

// The sum of `width` values, a power of two, by halves; they are overwritten.
INLINE float folded(float* x, int64_t width) {
    for (int64_t half = width / 2; half; half /= 2)
        for (int64_t i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}

typedef uint16_t __attribute__((may_alias)) Half;  // of a draw

// The 16 random bits of each value of a lane, as numbers in (0, 1); `first` is the first value's place in the span.
INLINE void noise_of(int64_t first, int64_t n, uint32_t key0, uint32_t key1, float* RESTRICT noise) {
    alignas(64) uint32_t drawn[LANE / 2 + 1];
    const auto begin = static_cast<uint32_t>(first >> 1);
    const int64_t count = ((first & 1) + n + 1) / 2;
    for (int64_t i = 0; i < count; ++i) drawn[i] = draw(begin + static_cast<uint32_t>(i), key0, key1);
    const Half* RESTRICT halves = reinterpret_cast<const Half*>(drawn) + (first & 1);
    for (int64_t i = 0; i < n; ++i) noise[i] = (static_cast<float>(halves[i]) + 0.5f) * 0x1p-16f;
}

// each(begin, end, b): the runs of the values at … at + n that lie in one block, as places from `at` on, and the number of their block.
template <typename Each> INLINE void in_blocks(int64_t at, int64_t n, int64_t block, const Each& each) {
    for (int64_t i = 0, b = at / block; i < n; ++b) {
        const int64_t end = std::min(n, (b + 1) * block - at);
        each(i, end, b);
        i = end;
    }
}

// Values of the least run of whole blocks that ends on a whole lane; all n, where that is not within them.
INLINE int64_t group_of(int64_t n, int64_t block, int64_t lane) {
    const int64_t times = lane / std::gcd(block, lane);
    return times > n / block ? std::max<int64_t>(n, 1) : block * times;
}

// The largest magnitude of n values of any kind, as an integer.
template <typename In> INLINE uint32_t largest_of(const In* x, int64_t n) {
    alignas(64) float room[LANE];
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i += LANE) {
        const int64_t some = std::min(LANE, n - i);
        const float* own = widened(x + i, some, room);
        most = std::max(most, some == LANE ? largest(own, LANE) : largest(own, some));
    }
    return most;
}

// n floats to where they go, past the caches if they may.
INLINE void put(const float* RESTRICT from, int64_t n, bool add, bool past, float* RESTRICT to) {
    if (past && n == LANE) return streamed(from, to, 4 * LANE);
    if (add)
        for (int64_t i = 0; i < n; ++i) to[i] += from[i];
    else
        std::memcpy(to, from, 4 * n);
}

}  // namespace thinwire
