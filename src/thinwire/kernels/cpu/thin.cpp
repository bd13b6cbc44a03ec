// Matrices by thin ones, whose few columns are the factors of `lowrank` and its like: each reads or writes the large matrix once.
//
// `outer` is the sum that all ranks must agree on, so it adds column by column, rounded at each, as reference.outer does; sums over the
// long side are those of this rank alone, and are added in whatever order is fast.
#include "common.h"
namespace thinwire {
namespace {

constexpr int64_t MOST = 8;       // columns at once: so many sums stay in registers
constexpr int64_t VECTOR = 16;    // values that are summed side by side
constexpr int64_t STRIPE = 1024;  // of the large matrix's columns: what is kept for them stays in the first cache

// The columns at, at + 1 … of a thin matrix (n, r), each on its own: (some, n).
std::vector<float> columns(const float* thin, int64_t n, int64_t r, int64_t at, int64_t some) {
    std::vector<float> out(some * n);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t k = 0; k < some; ++k) out[k * n + j] = thin[j * r + at + k];
    return out;
}

// to (rows, r)[:, at … at + R] = m (rows, n) · q, of which R columns are given one after the other.
template <int R> void product(const float* RESTRICT m, int64_t n, const float* RESTRICT q, int64_t r, int64_t begin, int64_t end, float* to) {
    for (int64_t i = begin; i < end; ++i) {
        const float* RESTRICT row = m + i * n;
        float sums[R][VECTOR] = {};
        int64_t j = 0;
        for (; j + VECTOR <= n; j += VECTOR)
            for (int k = 0; k < R; ++k)
                for (int64_t l = 0; l < VECTOR; ++l) sums[k][l] += row[j + l] * q[k * n + j + l];
        for (int k = 0; k < R; ++k) {
            for (int64_t half = VECTOR / 2; half; half /= 2)
                for (int64_t l = 0; l < half; ++l) sums[k][l] += sums[k][l + half];
            float sum = sums[k][0];
            for (int64_t rest = j; rest < n; ++rest) sum += row[rest] * q[k * n + rest];
            to[i * r + k] = sum;
        }
    }
}

// to (n, r)[begin … end, at … at + R] = mᵀ · p, of which R columns are given one after the other.
template <int R> void product_transposed(const float* RESTRICT m, int64_t rows, int64_t n, const float* RESTRICT p, int64_t r, int64_t begin,
                                         int64_t end, float* to) {
    float sums[R][STRIPE];
    for (int64_t from = begin; from < end; from += STRIPE) {
        const int64_t width = std::min(STRIPE, end - from);
        std::memset(sums, 0, sizeof(sums));
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4) {
            const float *RESTRICT a = m + i * n + from, *RESTRICT b = a + n, *RESTRICT c = b + n, *RESTRICT d = c + n;
            for (int k = 0; k < R; ++k) {
                const float pa = p[k * rows + i], pb = p[k * rows + i + 1], pc = p[k * rows + i + 2], pd = p[k * rows + i + 3];
                float* RESTRICT own = sums[k];
                for (int64_t j = 0; j < width; ++j) own[j] += (a[j] * pa + b[j] * pb) + (c[j] * pc + d[j] * pd);
            }
        }
        for (; i < rows; ++i)
            for (int k = 0; k < R; ++k)
                for (int64_t j = 0; j < width; ++j) sums[k][j] += m[i * n + from + j] * p[k * rows + i];
        for (int64_t j = 0; j < width; ++j)
            for (int k = 0; k < R; ++k) to[(from + j) * r + k] = sums[k][j];
    }
}

// out (rows, n) = p qᵀ, or out + p qᵀ, of which R columns are given one after the other.
template <int R> void outer_product(const float* RESTRICT p, const float* RESTRICT q, int64_t rows, int64_t n, int64_t begin, int64_t end,
                                    bool add, float* out) {
    for (int64_t i = begin; i < end; ++i) {
        float* RESTRICT to = out + i * n;
        float by[R];
        for (int k = 0; k < R; ++k) by[k] = p[k * rows + i];
        const auto summed_from = [&](int64_t j, float sum, int first) {
            for (int k = first; k < R; ++k) sum += by[k] * q[k * n + j];
            return sum;
        };
        if (add)
            for (int64_t j = 0; j < n; ++j) to[j] = summed_from(j, to[j], 0);
        else
            for (int64_t j = 0; j < n; ++j) to[j] = summed_from(j, by[0] * q[j], 1);
    }
}

// work<some>() for a number of columns from 1 to MOST.
template <int R, typename Work> void with_columns(int64_t some, const Work& work) {
    if (some == R) return work(std::integral_constant<int, R>());
    if constexpr (R > 1) with_columns<R - 1>(some, work);
}

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// to = m (rows, n) · thin (n, r): (rows, r); transposed: mᵀ · thin (rows, r): (n, r).
EXPORT void thin_product(const float* m, int64_t rows, int64_t n, const float* thin, int64_t r, int transposed, float* to, int threads) {
    for (int64_t at = 0; at < r; at += MOST) {
        const int64_t some = std::min(MOST, r - at);
        const auto by = columns(thin, transposed ? rows : n, r, at, some);
        with_columns<MOST>(some, [&](auto count) {
            const auto work = [&](int64_t begin, int64_t end) {
                if (transposed)
                    product_transposed<count()>(m, rows, n, by.data(), r, begin * VECTOR, std::min(end * VECTOR, n), to + at);
                else
                    product<count()>(m, n, by.data(), r, begin, end, to + at);
            };
            in_threads(transposed ? (n + VECTOR - 1) / VECTOR : rows, rows * n, threads, work);
        });
    }
}

// out (rows, n) = p (rows, r) · q (n, r)ᵀ.
EXPORT void outer(const float* p, const float* q, int64_t rows, int64_t n, int64_t r, float* out, int threads) {
    for (int64_t at = 0; at < r; at += MOST) {
        const int64_t some = std::min(MOST, r - at);
        const auto ps = columns(p, rows, r, at, some), qs = columns(q, n, r, at, some);
        with_columns<MOST>(some, [&](auto count) {
            in_threads(rows, rows * n, threads, [&](int64_t begin, int64_t end) {
                outer_product<count()>(ps.data(), qs.data(), rows, n, begin, end, at > 0, out);
            });
        });
    }
}
