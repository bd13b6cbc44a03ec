// Three levels, five values in a byte: kernels/coarse.py. A payload is m scales (float32), then ceil(n / 5) bytes in base 3.
#include "codes.h"

namespace thinwire {
namespace {

constexpr int64_t FIVE = 5, PART = 160;  // values of a byte, and those worked on at a time: whole bytes, and whole pairs of draws

// Digits 0, 1, 2 of n values of one block: ±scale where the draw is less than |x| / scale; to nearest, where |x| is above half of it.
template <bool LOTS> INLINE void digits_of(const float* RESTRICT x, const float* RESTRICT noise, int64_t n, float scale, uint8_t* RESTRICT digits) {
    if (LOTS && !(scale > 0)) {
        std::memset(digits, 1, n);
        return;
    }
    const float half = scale / 2;
    for (int64_t i = 0; i < n; ++i) {
        const float size = of_bits(bits_of(x[i]) & ~SIGN);
        const bool far = LOTS ? noise[i] < size / scale : size > half;
        digits[i] = static_cast<uint8_t>(far ? (x[i] < 0 ? 0 : 2) : 1);
    }
}

INLINE void by_five(const uint8_t* RESTRICT digits, int64_t nbytes, uint8_t* RESTRICT out) {
    for (int64_t i = 0; i < nbytes; ++i, digits += FIVE)
        out[i] = static_cast<uint8_t>(digits[0] + 3 * digits[1] + 9 * digits[2] + 27 * digits[3] + 81 * digits[4]);
}

template <bool LOTS, typename In>
void encode(const In* x, int64_t n, int64_t block, const float* scales, uint32_t key0, uint32_t key1, uint8_t* payload, int threads) {
    const int64_t blocks = (n + block - 1) / block, group = group_of(n, block, PART);
    uint8_t* out = payload + 4 * blocks;
    in_threads((n + group - 1) / group, n, threads, [=](int64_t begin, int64_t end) {
        alignas(64) float room[LANE], noise[LANE];
        alignas(64) uint8_t digits[PART + FIVE];
        for (int64_t from = begin * group; from < std::min(end * group, n); from += group) {
            const int64_t to = std::min(from + group, n);
            for (int64_t b = from / block; b * block < to; ++b) {
                const auto absmax = [&] { return largest_of(x + b * block, std::min(block, n - b * block)); };
                const uint32_t most = scales ? bits_of(scales[b]) : absmax();
                store(payload + 4 * b, scales || most < INFINITE ? most : QUIET_NAN);
            }
            for (int64_t at = from; at < to; at += PART) {
                const int64_t m = std::min(PART, to - at);
                const float* own = widened(x + at, m, room);
                if (LOTS) noise_of(at, m, key0, key1, noise);
                in_blocks(at, m, block, [&](int64_t i, int64_t last, int64_t b) {
                    digits_of<LOTS>(own + i, noise + i, last - i, load<float>(payload + 4 * b), digits + i);
                });
                if (m % FIVE) std::memset(digits + m, 0, FIVE - m % FIVE);
                by_five(digits, (m + FIVE - 1) / FIVE, out + at / FIVE);
            }
        }
    });
}

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// x (n,) of a kind -> payload. scales: of each block, or null for its largest magnitude.
EXPORT void ternary_encode(const void* x, int kind, int64_t n, int64_t block, const float* scales, int lots, uint32_t key0, uint32_t key1,
                           uint8_t* payload, int threads) {
    given_as(kind, x, [&](const auto* from) {
        if (lots)
            encode<true>(from, n, block, scales, key0, key1, payload, threads);
        else
            encode<false>(from, n, block, scales, key0, key1, payload, threads);
    });
}

// Magnitudes (n,) over the largest of their block, zeros beyond n -> of each block the mean of them, or of their squares; where `masked`
// (blocks, block) is given, those above 0.7 of the mean in it, zeros for the others, and how many they are. Blocks have 4096 values at most.
EXPORT void ternary_means(const float* sizes, int64_t n, int64_t block, int squares, float* means, float* masked, int64_t* counts, int threads) {
    in_threads((n + block - 1) / block, n, threads, [=](int64_t begin, int64_t end) {
        alignas(64) float unit[WIDEST], sums[WIDEST];
        for (int64_t b = begin; b < end; ++b) {
            const float* own = sizes + b * block;
            const int64_t m = std::min(block, n - b * block);
            const uint32_t most = largest(own, m);
            const float absmax = most == 0 || most >= INFINITE ? 1.0f : of_bits(most);
            int64_t width = 1;
            while (width < m) width *= 2;
            for (int64_t i = 0; i < m; ++i) {
                unit[i] = own[i] / absmax;
                sums[i] = squares ? unit[i] * unit[i] : unit[i];
            }
            std::fill(sums + m, sums + width, 0.0f);
            const float mean = (width == LANE ? folded(sums, LANE) : folded(sums, width)) / static_cast<float>(m), bar = 0.7f * mean;
            means[b] = mean;
            if (!masked) continue;
            float* to = masked + b * block;
            int32_t count = 0;
            for (int64_t i = 0; i < m; ++i) {
                count += unit[i] > bar;
                to[i] = unit[i] > bar ? unit[i] : 0.0f;
            }
            std::fill(to + m, to + block, 0.0f);
            counts[b] = count;
        }
    });
}

// payload -> out (n,), or added to it. Bytes are below 3^5.
EXPORT void ternary_decode(const uint8_t* payload, int64_t n, int64_t block, int add, float* out, int threads) {
    const uint8_t* in = payload + 4 * ((n + block - 1) / block);
    float values[256][EIGHT] = {};  // of the five digits in a byte: -1, 0 or 1
    for (int byte = 0; byte < 243; ++byte)
        for (int place = 0, rest = byte; place < FIVE; ++place, rest /= 3) values[byte][place] = static_cast<float>(rest % 3 - 1);
    in_threads((n + PART - 1) / PART, n, threads, [=, &values](int64_t begin, int64_t end) {
        alignas(64) float lane[PART + EIGHT];
        for (int64_t at = begin * PART; at < std::min(end * PART, n); at += PART) {
            const int64_t m = std::min(PART, n - at);
            const uint8_t* own = in + at / FIVE;
            for (int64_t i = 0; i < (m + FIVE - 1) / FIVE; ++i) eight(lane + FIVE * i) = eight(values[own[i]]);
            in_blocks(at, m, block, [&](int64_t i, int64_t last, int64_t b) {
                const auto scale = load<float>(payload + 4 * b);
                for (; i < last; ++i) lane[i] *= scale;
            });
            put(lane, m, add, false, out + at);
        }
    });
}
