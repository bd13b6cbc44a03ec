// Rotations of blocks by the Walsh–Hadamard matrix, with signs: what/vector/hadamard.py and its `rotate`.
//
// Every value goes through the same sums as there: butterflies of neighbours first, then of twice the distance. A block is rotated by
// quarters, so what is being worked on lies in the first cache whatever the size of the whole.
#include "codes.h"
namespace thinwire {
namespace {

#if defined(__clang__)
#define PICKED(v, a, b, c, d, e, f, g, h) __builtin_shufflevector(v, v, a, b, c, d, e, f, g, h)
#else
#define PICKED(v, a, b, c, d, e, f, g, h) __builtin_shuffle(v, Places{a, b, c, d, e, f, g, h})
#endif

// Butterflies inside a vector: a sum in the lower place, and in the upper one what is there taken from its partner.
INLINE void inside(Eight& v) {
    constexpr Eight ONE = {1, -1, 1, -1, 1, -1, 1, -1}, TWO = {1, 1, -1, -1, 1, 1, -1, -1}, FOUR = {1, 1, 1, 1, -1, -1, -1, -1};
    v = PICKED(v, 1, 0, 3, 2, 5, 4, 7, 6) + v * ONE;
    v = PICKED(v, 2, 3, 0, 1, 6, 7, 4, 5) + v * TWO;
    v = PICKED(v, 4, 5, 6, 7, 0, 1, 2, 3) + v * FOUR;
}

INLINE void both(Eight& a, Eight& b) {
    const Eight sum = a + b;
    b = a - b;
    a = sum;
}

// 8 · V values in registers.
template <int V> INLINE void few(float* y) {
    Eight v[V];
#pragma GCC unroll 8
    for (int k = 0; k < V; ++k) {
        v[k] = eight(y + EIGHT * k);
        inside(v[k]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < V / 2; ++k) both(v[2 * k], v[2 * k + 1]);
    if (V >= 4)
#pragma GCC unroll 8
        for (int k = 0; k < V / 2; ++k) both(v[k / 2 * 4 + k % 2], v[k / 2 * 4 + k % 2 + 2]);
    if (V >= 8)
#pragma GCC unroll 8
        for (int k = 0; k < V / 2; ++k) both(v[k], v[k + V / 2]);
#pragma GCC unroll 8
    for (int k = 0; k < V; ++k) eight(y + EIGHT * k) = v[k];
}

INLINE void halves(float* RESTRICT y, int64_t width) {
    float* RESTRICT z = y + width;
    for (int64_t i = 0; i < width; ++i) {
        const float a = y[i], b = z[i];
        y[i] = a + b;
        z[i] = a - b;
    }
}

// n values, a power of two, in place.
void rotated(float* y, int64_t n) {
    if (n == 64) return few<8>(y);
    if (n == 32) return few<4>(y);
    if (n == 16) return few<2>(y);
    if (n == 8) return few<1>(y);
    if (n <= 4) {
        if (n == 4) {
            halves(y, 1);
            halves(y + 2, 1);
        }
        if (n > 1) halves(y, n / 2);
        return;
    }
    if (n == 128) {
        few<8>(y);
        few<8>(y + 64);
        return halves(y, 64);
    }
    const int64_t quarter = n / 4;
    for (int k = 0; k < 4; ++k) rotated(y + k * quarter, quarter);
    float *RESTRICT a = y, *RESTRICT b = a + quarter, *RESTRICT c = b + quarter, *RESTRICT d = c + quarter;
    for (int64_t i = 0; i < quarter; ++i) {
        const float low = a[i] + b[i], other = a[i] - b[i], high = c[i] + d[i], last = c[i] - d[i];
        a[i] = low + high;
        b[i] = other + last;
        c[i] = low - high;
        d[i] = other - last;
    }
}

// The scale, less than zero where a bit is set.
INLINE float factor_at(const uint8_t* bits, int64_t i, float scale) { return bits[i / 8] >> i % 8 & 1 ? -scale : scale; }

// to[i] = x[i] · scale, or less than zero where bit first + i is set. `to` may be `x`.
INLINE void turned(const float* x, int64_t n, const uint8_t* bits, int64_t first, float scale, float* to) {
    constexpr Places PLACE = {1, 2, 4, 8, 16, 32, 64, 128};
    const Places upper = Places{} + static_cast<int32_t>(SIGN), size = Places{} + static_cast<int32_t>(bits_of(scale));
    int64_t i = 0;
    if (first % 8 == 0)
        for (; i + EIGHT <= n; i += EIGHT) {
            const Places below = ((Places{} + bits[(first + i) / 8]) & PLACE) == PLACE, factor = size | (below & upper);
            eight(to + i) = eight(x + i) * reinterpret_cast<Eight>(factor);
        }
    for (; i < n; ++i) to[i] = x[i] * factor_at(bits, first + i, scale);
}

// The blocks of n values: `block` each, and the last one as long as the next power of two.
struct Blocks {
    int64_t n, block;
    int64_t count() const { return (n + block - 1) / block; }
    int64_t held(int64_t b) const { return std::min(block, n - b * block); }  // of its values that are given
    int64_t size(int64_t b) const {
        int64_t size = 1;
        while (size < held(b)) size *= 2;
        return size;
    }
};

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// x (n,) of a kind times signs (a bit each, 1 for less than zero), in blocks filled up with zeros, divided by √block, rotated: out (all
// blocks). scale, last_scale: of a whole block, and of the last one.
EXPORT void hadamard_turn(const void* x, int kind, int64_t n, int64_t block, float scale, float last_scale, const uint8_t* signs, float* out,
                          int threads) {
    const Blocks blocks{n, block};
    given_as(kind, x, [&](const auto* from) {
        in_threads(blocks.count(), n, threads, [=](int64_t begin, int64_t end) {
            alignas(64) float room[LANE];
            for (int64_t b = begin; b < end; ++b) {
                const int64_t at = b * block, held = blocks.held(b), size = held == block ? block : blocks.size(b);
                const float by = held == block ? scale : last_scale;
                for (int64_t i = 0; i < held; i += LANE) {
                    const int64_t some = std::min(LANE, held - i);
                    turned(widened(from + at + i, some, room), some, signs, at + i, by, out + at + i);
                }
                for (int64_t i = held; i < size; ++i) out[at + i] = 0.0f * factor_at(signs, at + i, by);
                rotated(out + at, size);
            }
        });
    });
}

// The inverse: core (all blocks) -> out (n,), or added to it.
EXPORT void hadamard_turn_back(const float* core, int64_t n, int64_t block, float scale, float last_scale, const uint8_t* signs, int add,
                               float* out, int threads) {
    const Blocks blocks{n, block};
    in_threads(blocks.count(), n, threads, [=](int64_t begin, int64_t end) {
        std::vector<float> room(block);
        float* y = room.data();
        for (int64_t b = begin; b < end; ++b) {
            const int64_t at = b * block, held = blocks.held(b), size = held == block ? block : blocks.size(b);
            const float by = held == block ? scale : last_scale;
            for (int64_t i = 0; i < size; ++i) y[i] = core[at + i] * by;
            rotated(y, size);
            if (!add) {
                turned(y, held, signs, at, 1.0f, out + at);
                continue;
            }
            turned(y, held, signs, at, 1.0f, y);
            for (int64_t i = 0; i < held; ++i) out[at + i] += y[i];
        }
    });
}
