// One bit a value and a mean magnitude a block: reference.sign_encode and its relatives.
//
// A payload is m scales (float32), then n bits, 1 where a value is below zero. Blocks end on whole bytes (or there is one).
// A mean's sum is taken by halves, so that it has one order on every machine: i and i + W/2 are added, W the next power of two.
#include "codes.h"
namespace thinwire {
namespace {

constexpr float HUGE_ONE = 0x1p64f, SMALLER = 0x1p-64f;  // so that sums of huge values do not overflow

#if defined(__AVX2__)
INLINE __m256 eight_of(const float* x) { return _mm256_loadu_ps(x); }
INLINE __m256 eight_of(const Bf16* x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))), 16));
}
INLINE __m256 eight_of(const Fp16* x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }
// The magnitudes' sum of a lane by halves, down to eight: vectors HALF apart are added last.
template <int HALF, typename In> INLINE __m256 halves(const In* x) {
    if constexpr (HALF == 16) {
        const __m256 rest = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(~SIGN)));
        return _mm256_add_ps(_mm256_and_ps(eight_of(x), rest), _mm256_and_ps(eight_of(x + 8 * HALF), rest));
    } else
        return _mm256_add_ps(halves<2 * HALF>(x), halves<2 * HALF>(x + 8 * HALF));
}
INLINE float folded_eight(__m256 eight) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#endif

// Σ |x| · lift of the lanes first, first + stride, … (`count` of them, a power of two) of x (n,), zeros beyond it, by halves -> (LANE,).
void lanes_summed(const float* x, int64_t n, float lift, int64_t first, int64_t stride, int64_t count, float* out) {
    if (count == 1) {
        const int64_t at = first * LANE, m = std::clamp<int64_t>(n - at, 0, LANE);
        for (int64_t i = 0; i < m; ++i) out[i] = of_bits(bits_of(x[at + i]) & ~SIGN) * lift;
        std::fill(out + m, out + LANE, 0.0f);
        return;
    }
    alignas(64) float odd[LANE];
    lanes_summed(x, n, lift, first, 2 * stride, count / 2, out);
    lanes_summed(x, n, lift, first + stride, 2 * stride, count / 2, odd);
    for (int64_t i = 0; i < LANE; ++i) out[i] += odd[i];
}

// Σ |x| · lift by halves.
INLINE float magnitudes(const float* x, int64_t n, float lift) {
    alignas(64) float sums[LANE];
    if (n == LANE) {
        constexpr int64_t HALF = LANE / 2;
        for (int64_t i = 0; i < HALF; ++i)
            sums[i] = of_bits(bits_of(x[i]) & ~SIGN) * lift + of_bits(bits_of(x[i + HALF]) & ~SIGN) * lift;
        return folded(sums, HALF);
    }
    int64_t lanes = 1;
    while (lanes * LANE < n) lanes *= 2;
    lanes_summed(x, n, lift, 0, 1, lanes, sums);
    if (lanes > 1) return folded(sums, LANE);
    int64_t width = 1;
    while (width < n) width *= 2;
    return folded(sums, width);
}

INLINE float mean_of(const float* x, int64_t n) {
    const uint32_t most = n == LANE ? largest(x, LANE) : largest(x, n);
    if (most >= INFINITE) return of_bits(QUIET_NAN);
    const bool huge = most >= bits_of(HUGE_ONE);
    const float mean = magnitudes(x, n, huge ? SMALLER : 1.0f) / static_cast<float>(n);
    return huge ? mean * HUGE_ONE : mean;
}

#if defined(__AVX512F__)
// Of a lane: its bits, and the magnitudes' sum by halves down to 16 of them.
INLINE __m512 lane_bits(const float* x, uint8_t* bits) {
    __m512 sums[8];
    uint64_t below[4];
    for (int k = 0; k < 4; ++k) below[k] = bits_of_64(x + 64 * k);
    for (int k = 0; k < 8; ++k)
        sums[k] = _mm512_add_ps(_mm512_abs_ps(_mm512_loadu_ps(x + 16 * k)), _mm512_abs_ps(_mm512_loadu_ps(x + 16 * (k + 8))));
    std::memcpy(bits, below, sizeof(below));  // after all loads: a store of bytes might be one of values, for all that the compiler knows
    for (int half = 4; half; half /= 2)
        for (int k = 0; k < half; ++k) sums[k] = _mm512_add_ps(sums[k], sums[k + half]);
    return sums[0];
}
INLINE float lane_mean(__m512 sums, const float* x) {
    const float sum = folded_eight(_mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1)));
    return sum < HUGE_ONE ? sum / static_cast<float>(LANE) : mean_of(x, LANE);  // where it is less, no value is huge, or no number
}
#elif defined(__AVX2__)
// Of a lane: its bits, and its mean.
template <typename In> INLINE float lane_encode(const In* x, uint8_t* bits) {
    for (int64_t i = 0; i < LANE; i += 32) store(bits + i / 8, bits_of_32(x + i));
    const float sum = folded_eight(halves<1>(x));
    if (sum < HUGE_ONE) return sum / static_cast<float>(LANE);  // then no value is huge, or no number
    alignas(64) float room[LANE];
    return mean_of(widened(x, LANE, room), LANE);
}
#endif

// Of a block: its bits, and its mean.
INLINE float block_encode(const float* x, int64_t n, uint8_t* bits) {
#if defined(__AVX512F__)
    if (n == LANE) return lane_mean(lane_bits(x, bits), x);
#elif defined(__AVX2__)
    if (n == LANE) return lane_encode(x, bits);
#endif
    bits_below_zero(x, n, bits);
    return mean_of(x, n);
}

enum class Into { WRITE, ADD, LEFT };

template <Into INTO> INLINE float put(float old, float value) {
    return INTO == Into::WRITE ? value : INTO == Into::ADD ? old + value : old - value;
}

// ±scale of n bits.
template <Into INTO> INLINE void said(const uint8_t* RESTRICT bits, int64_t n, float scale, float* RESTRICT out) {
    int64_t i = 0;
#if defined(__AVX512F__)
    const __m512 plus = _mm512_set1_ps(scale), minus = _mm512_set1_ps(-scale);
    for (; i + 16 <= n; i += 16) {
        const __m512 value = _mm512_mask_blend_ps(load<uint16_t>(bits + i / 8), plus, minus);
        if (INTO == Into::WRITE)
            _mm512_storeu_ps(out + i, value);
        else if (INTO == Into::ADD)
            _mm512_storeu_ps(out + i, _mm512_add_ps(_mm512_loadu_ps(out + i), value));
        else
            _mm512_storeu_ps(out + i, _mm512_sub_ps(_mm512_loadu_ps(out + i), value));
    }
#elif defined(__AVX2__)
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), flip = _mm256_set1_epi32(static_cast<int>(SIGN));
    const __m256i whole = _mm256_castps_si256(_mm256_set1_ps(scale));
    for (; i + 8 <= n; i += 8) {
        const __m256i below = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits[i / 8]), each), each);
        const __m256 value = _mm256_castsi256_ps(_mm256_xor_si256(whole, _mm256_and_si256(below, flip)));
        if (INTO == Into::WRITE)
            _mm256_storeu_ps(out + i, value);
        else if (INTO == Into::ADD)
            _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_loadu_ps(out + i), value));
        else
            _mm256_storeu_ps(out + i, _mm256_sub_ps(_mm256_loadu_ps(out + i), value));
    }
#endif
    const uint32_t plain = bits_of(scale);
    for (; i + 8 <= n; i += 8) {
        const uint32_t byte = bits[i / 8];
        for (int lane = 0; lane < 8; ++lane) out[i + lane] = put<INTO>(out[i + lane], of_bits(plain ^ (byte >> lane & 1) << 31));
    }
    for (; i < n; ++i) out[i] = put<INTO>(out[i], of_bits(plain ^ static_cast<uint32_t>(bits[i / 8] >> i % 8 & 1) << 31));
}

// The same of any type, written or added.
template <bool ADD> INLINE void written(const uint8_t* bits, int64_t n, float scale, float* out) {
    said<ADD ? Into::ADD : Into::WRITE>(bits, n, scale, out);
}
template <bool ADD, typename Narrow> INLINE void written(const uint8_t* RESTRICT bits, int64_t n, float scale, Narrow* RESTRICT out) {
    if (ADD) {
        alignas(64) float room[LANE];
        for (int64_t at = 0; at < n; at += LANE) {
            const int64_t m = std::min(LANE, n - at);
            said<Into::WRITE>(bits + at / 8, m, scale, room);
            m == LANE ? put_narrow<true>(room, LANE, out + at) : put_narrow<true>(room, m, out + at);
        }
        return;
    }
    const uint16_t plain = narrow(scale, Narrow{}).bits;
    int64_t i = 0;
#if defined(__AVX2__)
    const __m256i each = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    const __m256i whole = _mm256_set1_epi16(static_cast<int16_t>(plain)), flip = _mm256_set1_epi16(-32768);
    for (; i + 16 <= n; i += 16) {
        const __m256i sixteen = _mm256_set1_epi16(load<int16_t>(bits + i / 8));
        const __m256i below = _mm256_cmpeq_epi16(_mm256_and_si256(sixteen, each), each);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_xor_si256(whole, _mm256_and_si256(below, flip)));
    }
#endif
    for (; i < n; ++i) out[i].bits = static_cast<uint16_t>(plain ^ (bits[i / 8] >> i % 8 & 1) << 15);
}

template <typename Work> void each_block(int64_t n, int64_t block, int threads, const Work& work) {
    const int64_t blocks = (n + block - 1) / block;
    in_threads(blocks, n, threads, [=, &work](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) work(b, b * block, std::min(block, n - b * block));
    });
}

INLINE int64_t head(int64_t n, int64_t block) { return 4 * ((n + block - 1) / block); }

template <typename Kept> INLINE void all_kept(const float* RESTRICT x, int64_t n, bool sure, Kept* RESTRICT out) {
    if (sure)
        for (int64_t i = 0; i < n; ++i) out[i] = as_kept<true>(x[i], out);
    else
        for (int64_t i = 0; i < n; ++i) out[i] = as_kept<false>(x[i], out);
}

// A block's sum with its residual as it was; what is left of it, as it is kept; whether that is finite.
template <typename In, typename Kept> INLINE void sum_of(const In* x, const Kept* before, int64_t at, int64_t m, float decay, float* y) {
    if (sizeof(Kept) < sizeof(float)) prefetched(x + at, m), prefetched(before + at, m);
    m == LANE ? summed(x + at, before + at, decay, LANE, y) : summed(x + at, before + at, decay, m, y);
}
template <typename In> INLINE void sum_of(const In* x, const Eighths& before, int64_t at, int64_t m, float decay, float* y) {
    prefetched(x + at, m), prefetched(before.codes + at, m);
    alignas(64) float was[LANE];
    for (int64_t i = 0; i < m; i += LANE) {
        const int64_t some = std::min(LANE, m - i);
        before.values(at + i, some, was);
        some == LANE ? summed(x + at + i, was, decay, LANE, y + i) : summed(x + at + i, was, decay, some, y + i);
    }
}
template <typename Kept> INLINE bool keep(const float* y, int64_t at, int64_t m, float mean, bool past, Kept* left) {
    const bool sure = bits_of(mean) < INFINITE;
    if (m == LANE && past) {
        alignas(64) Kept rest[LANE];
        all_kept(y, LANE, sure, rest);
        streamed(rest, left + at, sizeof(rest));
    } else if (m == LANE)
        all_kept(y, LANE, sure, left + at);
    else if (sizeof(Kept) < sizeof(float) || m < LANE)
        all_kept(y, m, sure, left + at);
    return kept_finite(mean, static_cast<float>(m), left + at, m);
}
INLINE bool keep(const float* y, int64_t at, int64_t m, float mean, bool, const Eighths& left) {
    for (int64_t i = 0; i < m; i += LANE) left.keep(y + i, at + i, std::min(LANE, m - i));
    return bits_of(mean) < INFINITE;
}

// Whether what is left is finite. y of a block that is no lane waits where its rest will be, or (of a narrow one) in memory of its own.
template <typename In, typename Before, typename Left>
bool encode_left(const In* x, Before before, float decay, int64_t n, int64_t block, uint8_t* payload, Left left, int threads) {
    constexpr bool WIDE = std::is_same_v<Left, float*>;
    uint8_t* bits = payload + head(n, block);
    bool past = false;
    if constexpr (std::is_pointer_v<Left>) past = block == LANE && goes_past(left, n, LATER);
    std::atomic<bool> finite{true};
    const int64_t blocks = (n + block - 1) / block;
    in_threads(blocks, n, threads, [=, &finite](int64_t begin, int64_t end) {
        alignas(64) float lane[LANE];
        std::vector<float> apart(!WIDE && block > LANE ? std::min(block, n) : 0);
        bool all = true;
        for (int64_t b = begin; b < end; ++b) {
            const int64_t at = b * block, m = std::min(block, n - at);
            float* y = m <= LANE ? lane : apart.data();
            if constexpr (WIDE) y = m <= LANE ? lane : left + at;
            sum_of(x, before, at, m, decay, y);
            const float mean = block_encode(y, m, bits + at / 8);
            store(payload + 4 * b, mean);
            m == LANE ? said<Into::LEFT>(bits + at / 8, LANE, mean, y) : said<Into::LEFT>(bits + at / 8, m, mean, y);
            all &= keep(y, at, m, mean, past, left);
        }
        if (!all) finite = false;
    });
    return finite;
}

}  // namespace
}  // namespace thinwire

using namespace thinwire;

namespace {

template <typename In> void encode(const In* x, int64_t n, int64_t block, uint8_t* payload, int threads) {
    uint8_t* bits = payload + head(n, block);
    const int64_t blocks = (n + block - 1) / block;
    in_threads(blocks, n, threads, [=](int64_t begin, int64_t end) {
        int64_t b = begin;
        std::vector<float> room(NARROW<In> ? std::min(std::max(block, LANE), std::max(n, LANE)) : 0);
        const auto floats = [&](int64_t at, int64_t m) {
            const float* own = nullptr;
            for (int64_t i = 0; i < m; i += LANE) {
                const float* lane = widened(x + at + i, std::min(LANE, m - i), room.data() + (NARROW<In> ? i : 0));
                own = i ? own : lane;
            }
            return own;
        };
#if defined(__AVX512F__)
        constexpr int64_t MANY = 8;  // sums at once, so that one does not wait for the other
        alignas(64) float lanes[NARROW<In> ? MANY * LANE : 1];
        for (; block == LANE && (b + MANY) * LANE <= n && b + MANY <= end; b += MANY) {
            __m512 sums[MANY];
            const float* own[MANY];
            for (int64_t k = 0; k < MANY; ++k) {
                const int64_t at = (b + k) * LANE;
                prefetched(x + at, LANE);
                own[k] = widened(x + at, LANE, lanes + (NARROW<In> ? k * LANE : 0));
                sums[k] = lane_bits(own[k], bits + at / 8);
            }
            for (int64_t k = 0; k < MANY; ++k) store(payload + 4 * (b + k), lane_mean(sums[k], own[k]));
        }
#elif defined(__AVX2__)
        for (; block == LANE && b < end && (b + 1) * LANE <= n; ++b) {
            prefetched(x + b * LANE, LANE);
            store(payload + 4 * b, lane_encode(x + b * LANE, bits + b * LANE / 8));
        }
#endif
        for (; b < end; ++b) {
            const int64_t at = b * block, m = std::min(block, n - at);
            prefetched(x + at, m);
            store(payload + 4 * b, block_encode(floats(at, m), m, bits + at / 8));
        }
    });
}

}  // namespace

// x (n,), of a kind of `given_as` -> payload.
EXPORT void sign_encode(const void* values, int kind, int64_t n, int64_t block, uint8_t* payload, int threads) {
    given_as(kind, values, [&](const auto* x) { encode(x, n, block, payload, threads); });
}

// y = x + decay · before -> payload, and left = y - what it decodes to; whether all of that is finite. left may be before.
// form: of before and left, as in `kept_as`; in eight bits, blocks end where lanes do, or there is one.
EXPORT int sign_encode_left(const void* values, int kind, const void* before, int form, float decay, int64_t n, int64_t block, uint8_t* payload,
                            void* left, int threads) {
    return given_as(kind, values, [&](const auto* x) {
        return kept_as(form, before, left, n, [&](auto from, auto to) { return encode_left(x, from, decay, n, block, payload, to, threads); });
    });
}

// payload -> out (n,), of a kind of `put_as`, or added to it.
EXPORT void sign_decode(const uint8_t* payload, int64_t n, int64_t block, int add, void* to, int kind, int threads) {
    const uint8_t* bits = payload + head(n, block);
    put_as(kind, to, [=](auto* out) {
        using Out = std::remove_pointer_t<decltype(out)>;
        const bool past = !add && goes_past(out, n);
        each_block(n, block, threads, [=](int64_t b, int64_t at, int64_t m) {
            const float scale = load<float>(payload + 4 * b);
            if (add) prefetched(out + at, m);
            if (past && m == LANE) {
                alignas(64) Out lane[LANE];
                written<false>(bits + at / 8, LANE, scale, lane);
                streamed(lane, out + at, sizeof(lane));
            } else if (add)
                written<true>(bits + at / 8, m, scale, out + at);
            else
                written<false>(bits + at / 8, m, scale, out + at);
        });
    });
}

// The payload of the sum of what `count` payloads decode to, added in order.
EXPORT void sign_sum_encode(const uint8_t* const* payloads, int count, int64_t n, int64_t block, uint8_t* out, int threads) {
    const int64_t blocks = (n + block - 1) / block, cut = 4 * blocks;
    in_threads(blocks, n, threads, [=](int64_t begin, int64_t end) {
        std::vector<float> total(std::min(block, n));
        for (int64_t b = begin; b < end; ++b) {
            const int64_t at = b * block, m = std::min(block, n - at);
            said<Into::WRITE>(payloads[0] + cut + at / 8, m, load<float>(payloads[0] + 4 * b), total.data());
            for (int k = 1; k < count; ++k) said<Into::ADD>(payloads[k] + cut + at / 8, m, load<float>(payloads[k] + 4 * b), total.data());
            store(out + 4 * b, mean_of(total.data(), m));
            bits_below_zero(total.data(), m, out + cut + at / 8);
        }
    });
}
