// Cosine transforms of the full tiles of a matrix: what/vector/dct.py.
//
// Frequencies of even number are the same from both ends of a tile, those of odd number differ in sign. So both ends are added and taken from
// one another first, and each half of the frequencies is a product of half the length.
#include "codes.h"

namespace thinwire {
namespace {

// to (m, n) = a (m, h) · b (h, n), each with a distance from row to row; m a multiple of 4, n of 16.
void product(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t m, int64_t h, int64_t n, float* to, int64_t to_row) {
    for (int64_t i = 0; i < m; i += 4)
        for (int64_t j = 0; j < n; j += 2 * EIGHT) {
            Eight sums[8] = {};
            for (int64_t k = 0; k < h; ++k) {
                const Eight low = eight(b + k * b_row + j), high = eight(b + k * b_row + j + EIGHT);
#pragma GCC unroll 4
                for (int r = 0; r < 4; ++r) {
                    const Eight by = Eight{} + a[(i + r) * a_row + k];
                    sums[2 * r] += by * low;
                    sums[2 * r + 1] += by * high;
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                eight(to + (i + r) * to_row + j) = sums[2 * r];
                eight(to + (i + r) * to_row + j + EIGHT) = sums[2 * r + 1];
            }
        }
}

// The even rows of the transform, left half (h, h); the odd ones; both transposed.
struct Halves {
    const float *even, *odd, *even_turned, *odd_turned;
    Halves(const float* all, int64_t h) : even(all), odd(all + h * h), even_turned(odd + h * h), odd_turned(even_turned + h * h) {}
};

// C = D X Dᵀ of a tile whose rows lie `row` apart; `room` for three tiles.
void forward(const float* x, int64_t row, int64_t size, const Halves& by, float* RESTRICT room, float* RESTRICT to) {
    const int64_t h = size / 2, half = h * size;
    float *RESTRICT sums = room, *RESTRICT left = room + size * size, *RESTRICT rest = left + size * size;
    for (int64_t i = 0; i < h; ++i)
        for (int64_t j = 0; j < size; ++j) {
            const float a = x[i * row + j], b = x[(size - 1 - i) * row + j];
            sums[i * size + j] = a + b;
            sums[half + i * size + j] = a - b;
        }
    product(by.even, h, sums, size, h, h, size, left, 2 * size);
    product(by.odd, h, sums + half, size, h, h, size, left + size, 2 * size);
    for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < h; ++j) {
            const float a = left[i * size + j], b = left[i * size + size - 1 - j];
            sums[i * h + j] = a + b;
            sums[half + i * h + j] = a - b;
        }
    product(sums, h, by.even_turned, h, size, h, h, rest, h);
    product(sums + half, h, by.odd_turned, h, size, h, h, rest + half, h);
    for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < h; ++j) {
            to[i * size + 2 * j] = rest[i * h + j];
            to[i * size + 2 * j + 1] = rest[half + i * h + j];
        }
}

// X = Dᵀ C D of a tile, to rows that lie `row` apart.
void backward(const float* c, int64_t row, int64_t size, const Halves& by, float* RESTRICT room, float* to) {
    const int64_t h = size / 2, half = h * size;
    float *RESTRICT sums = room, *RESTRICT left = room + size * size, *RESTRICT rest = left + size * size;
    product(by.even_turned, h, c, 2 * size, h, h, size, left, size);
    product(by.odd_turned, h, c + size, 2 * size, h, h, size, left + half, size);
    for (int64_t i = 0; i < h; ++i)
        for (int64_t j = 0; j < h; ++j)
            for (int k = 0; k < 2; ++k) {
                const float a = left[i * size + 2 * j + k], b = left[half + i * size + 2 * j + k];
                sums[k * half + i * h + j] = a + b;
                sums[k * half + (size - 1 - i) * h + j] = a - b;
            }
    product(sums, h, by.even, h, size, h, h, rest, h);
    product(sums + half, h, by.odd, h, size, h, h, rest + half, h);
    for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < h; ++j) {
            const float a = rest[i * h + j], b = rest[half + i * h + j];
            to[i * row + j] = a + b;
            to[i * row + size - 1 - j] = a - b;
        }
}

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// area: down × across tiles of size × size (a multiple of 32), rows `row` apart; tiles: one behind the other. halves: of the transform.
EXPORT void dct_tiles(const float* area, int64_t row, int64_t down, int64_t across, int64_t size, const float* halves, float* tiles, int threads) {
    const Halves by(halves, size / 2);
    in_threads(down * across, down * across * size * size, threads, [=, &by](int64_t begin, int64_t end) {
        std::vector<float> room(3 * size * size);
        for (int64_t i = begin; i < end; ++i)
            forward(area + i / across * size * row + i % across * size, row, size, by, room.data(), tiles + i * size * size);
    });
}

// The inverse.
EXPORT void dct_tiles_back(const float* tiles, int64_t row, int64_t down, int64_t across, int64_t size, const float* halves, float* area,
                           int threads) {
    const Halves by(halves, size / 2);
    in_threads(down * across, down * across * size * size, threads, [=, &by](int64_t begin, int64_t end) {
        std::vector<float> room(3 * size * size);
        for (int64_t i = begin; i < end; ++i)
            backward(tiles + i * size * size, row, size, by, room.data(), area + i / across * size * row + i % across * size);
    });
}
