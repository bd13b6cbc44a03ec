// Random bytes and random sizes into every kernel, for AddressSanitizer and UndefinedBehaviorSanitizer: scripts/fuzz_kernels.py builds it.
//
//     fuzz SECONDS SEED      the seed of each round is printed when one fails; `fuzz 0 SEED` plays that round alone
//     fuzz -ROUNDS SEED      so many rounds; what is printed of them is the same for every build and processor
//
// Every buffer has exactly the size that the kernel is told, on the heap, so that a byte read or written beyond it is seen.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

extern "C" {
void grid_encode(const void*, int, const float*, int64_t, int64_t, int, int, int, uint32_t, uint32_t, uint8_t*, int);
int grid_encode_left(const void*, int, const void*, int, float, int64_t, int64_t, int, int, int, uint32_t, uint32_t, uint8_t*, void*, int);
void grid_decode(const uint8_t*, int64_t, int64_t, int, int, int, void*, int, int);
void grid_sum_encode(const uint8_t* const*, int, int64_t, int64_t, int, int, int, uint32_t, uint32_t, uint8_t*, int);
void sign_encode(const void*, int, int64_t, int64_t, uint8_t*, int);
int sign_encode_left(const void*, int, const void*, int, float, int64_t, int64_t, uint8_t*, void*, int);
void sign_decode(const uint8_t*, int64_t, int64_t, int, void*, int, int);
void sign_sum_encode(const uint8_t* const*, int, int64_t, int64_t, uint8_t*, int);
void topk_chunks(const void*, int, int64_t, int64_t, int64_t, int64_t*, float*, int);
void topk_chunks_sum(const void*, int, const float*, float, int64_t, int64_t, int64_t, int64_t*, float*, float*, int);
int64_t above(const float*, int64_t, uint32_t, int64_t, int64_t*, float*, int);
void places_write(const int64_t*, int64_t, int64_t, int64_t, int, int, int64_t, uint8_t*);
int places_read(const uint8_t*, int64_t, int64_t, int64_t, int, int, int64_t, int64_t*);
int places_add(const uint8_t*, int64_t, int64_t, int64_t, int, int, int64_t, const float*, float*);
int places_leave(const int64_t*, const float*, const float*, int64_t, int64_t, int64_t, float*, int);
void thin_product(const float*, int64_t, int64_t, const float*, int64_t, int, float*, int);
void outer(const float*, const float*, int64_t, int64_t, int64_t, float*, int);
void levels_encode(const void*, int, int64_t, int64_t, int, int, float, const float*, const float*, int64_t, const uint8_t*, const uint8_t*, int, int,
                   uint32_t, uint32_t, uint8_t*, int);
void levels_decode(const uint8_t*, int64_t, int64_t, int, const float*, int, float*, int);
void natural_encode(const void*, int, int64_t, int, uint32_t, uint32_t, uint8_t*, int);
void natural_decode(const uint8_t*, int64_t, int, float*, int);
void ternary_encode(const void*, int, int64_t, int64_t, const float*, int, uint32_t, uint32_t, uint8_t*, int);
void ternary_means(const float*, int64_t, int64_t, int, float*, float*, int64_t*, int);
void ternary_decode(const uint8_t*, int64_t, int64_t, int, float*, int);
void grid_clips(const float*, int64_t, int64_t, float, int64_t, const float*, const float*, const float*, float*, int);
void hadamard_turn(const void*, int, int64_t, int64_t, float, float, const uint8_t*, float*, int);
void hadamard_turn_back(const float*, int64_t, int64_t, float, float, const uint8_t*, int, float*, int);
int scaled(const void*, int, int64_t, float, void*, int);
void int8_pack(const float*, int64_t, uint8_t*, int);
void int8_unpack(const uint8_t*, int64_t, float*, int);
}

namespace {

uint64_t state;
uint64_t next() {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1)); }

template <typename T> std::unique_ptr<T[]> room(int64_t n) { return std::unique_ptr<T[]>(new T[n]); }

std::unique_ptr<uint8_t[]> bytes(int64_t n) {
    auto out = room<uint8_t>(n);
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<uint8_t>(next());
    return out;
}

// Any bits at all, or mostly tame ones.
std::unique_ptr<float[]> floats(int64_t n) {
    auto out = room<float>(n);
    const bool wild = next() % 4 == 0;
    for (int64_t i = 0; i < n; ++i) {
        auto bits = static_cast<uint32_t>(next());
        if (!wild) bits = (bits & 0x807fffffu) | static_cast<uint32_t>(between(100, 140)) << 23;
        std::memcpy(&out[i], &bits, 4);
    }
    return out;
}

// Values of a kind that a kernel reads: 0 float32, 1 bfloat16, 2 half.
struct Given {
    std::unique_ptr<float[]> wide;
    std::unique_ptr<uint8_t[]> narrow;
    int kind;
    const void* get() const { return kind ? static_cast<const void*>(narrow.get()) : wide.get(); }
};
Given given(int64_t n) {
    const int kind = static_cast<int>(between(0, 2));
    return kind ? Given{nullptr, bytes(2 * n), kind} : Given{floats(n), nullptr, 0};
}

uint64_t told = 0xcbf29ce484222325u;  // FNV-1a of all that came out
void tell(const uint8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) told = (told ^ out[i]) * 0x100000001b3u;
}
void tell(const float* out, int64_t n) {  // a NaN's bits are the processor's own
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits = 0x7fc00000u;
        if (out[i] == out[i]) std::memcpy(&bits, &out[i], 4);
        tell(reinterpret_cast<const uint8_t*>(&bits), 4);
    }
}
void tell(const uint16_t* out, int64_t n) { tell(reinterpret_cast<const uint8_t*>(out), 2 * n); }

void need(bool truth, const char* what) {
    if (truth) return;
    std::fprintf(stderr, "not so: %s\n", what);
    std::abort();
}

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

void grids() {
    const int bits = static_cast<int>(between(1, 8)), rise = bits == 1 || next() % 2, lots = next() % 2;
    const int64_t n = between(1, 3000), block = next() % 3 ? 8 * between(1, 80) : next() % 2 ? 256 : n, blocks = up(n, block), size = 4 * blocks + up(n * bits, 8);
    const auto key0 = static_cast<uint32_t>(next()), key1 = static_cast<uint32_t>(next());
    const auto x = given(n);
    const auto before = floats(n), steps = floats(blocks);
    auto payload = room<uint8_t>(size);
    auto out = room<float>(n), left = room<float>(n);
    grid_encode(x.get(), x.kind, next() % 2 ? steps.get() : nullptr, n, block, bits, rise, lots, key0, key1, payload.get(), 1);
    tell(payload.get(), size);
    auto brief = room<uint16_t>(n);
    const auto kept = bytes(2 * n);
    grid_encode_left(x.get(), x.kind, before.get(), 0, 0.5f, n, block, bits, rise, lots, key0, key1, payload.get(), left.get(), 1);
    tell(payload.get(), size);
    tell(left.get(), n);
    grid_encode_left(x.get(), x.kind, kept.get(), 1, 0.5f, n, block, bits, rise, lots, key0, key1, payload.get(), brief.get(), 1);
    tell(payload.get(), size);
    tell(brief.get(), n);
    const int count = static_cast<int>(between(1, 4));
    std::vector<std::unique_ptr<uint8_t[]>> held;
    std::vector<const uint8_t*> payloads;
    for (int i = 0; i < count; ++i) {
        held.push_back(bytes(size));
        payloads.push_back(held.back().get());
    }
    grid_decode(payloads[0], n, block, bits, rise, 0, out.get(), 0, 1);
    grid_decode(payloads[0], n, block, bits, rise, 1, out.get(), 0, 1);
    const int narrow = static_cast<int>(between(1, 2));
    grid_decode(payloads[0], n, block, bits, rise, 0, brief.get(), narrow, 1);
    grid_decode(payloads[0], n, block, bits, rise, 1, brief.get(), narrow, 1);
    if (block == n || block % 256 == 0) {  // a residual in 8 bits
        const int64_t eighths = 4 * up(n, 256) + n;
        const auto old = bytes(eighths);
        auto fresh = room<uint8_t>(eighths);
        grid_encode_left(x.get(), x.kind, old.get(), 2, 0.5f, n, block, bits, rise, lots, key0, key1, payload.get(), fresh.get(), 1);
        sign_encode_left(x.get(), x.kind, old.get(), 2, 0.5f, n, block, room<uint8_t>(4 * blocks + up(n, 8)).get(), fresh.get(), 1);
        int8_pack(before.get(), n, fresh.get(), 1);
        int8_unpack(fresh.get(), n, left.get(), 1);
    }
    tell(out.get(), n);
    grid_sum_encode(payloads.data(), count, n, block, bits, rise, lots, key0, key1, payload.get(), 1);
    tell(payload.get() + 4 * blocks, size - 4 * blocks);
}

void signs() {
    const int64_t n = between(1, 3000), block = next() % 3 ? 8 * between(1, 80) : next() % 2 ? 256 : n, size = 4 * up(n, block) + up(n, 8);
    const auto x = given(n);
    const auto before = floats(n);
    auto payload = room<uint8_t>(size);
    auto out = room<float>(n), left = room<float>(n);
    sign_encode(x.get(), x.kind, n, block, payload.get(), 1);
    tell(payload.get(), size);
    auto brief = room<uint16_t>(n);
    const auto kept = bytes(2 * n);
    sign_encode_left(x.get(), x.kind, before.get(), 0, 0.5f, n, block, payload.get(), left.get(), 1);
    tell(payload.get(), size);
    tell(left.get(), n);
    sign_encode_left(x.get(), x.kind, kept.get(), 1, 0.5f, n, block, payload.get(), brief.get(), 1);
    tell(payload.get(), size);
    tell(brief.get(), n);
    const auto one = bytes(size), two = bytes(size);
    const uint8_t* payloads[] = {one.get(), two.get()};
    sign_decode(one.get(), n, block, 0, out.get(), 0, 1);
    sign_decode(two.get(), n, block, 1, out.get(), 0, 1);
    const int narrow = static_cast<int>(between(1, 2));
    sign_decode(one.get(), n, block, 0, brief.get(), narrow, 1);
    sign_decode(two.get(), n, block, 1, brief.get(), narrow, 1);
    tell(out.get(), n);
    sign_sum_encode(payloads, 2, n, block, payload.get(), 1);
    tell(payload.get() + 4 * up(n, block), up(n, 8));
}

void sparse() {
    const int64_t chunks = between(1, 4), per = next() % 16 ? between(1, 700) : between(32768, 40000), k = between(1, per);
    const auto x = given(chunks * per);
    auto places = room<int64_t>(chunks * k), back = room<int64_t>(chunks * k);
    auto values = room<float>(chunks * k);
    topk_chunks(x.get(), x.kind, chunks, per, k, places.get(), values.get(), 1);
    const auto before = floats(chunks * per);
    auto y = room<float>(chunks * per);
    topk_chunks_sum(x.get(), x.kind, before.get(), 0.5f, chunks, per, k, back.get(), values.get(), y.get(), 1);
    tell(values.get(), chunks * k);
    topk_chunks(y.get(), 0, chunks, per, k, places.get(), values.get(), 1);
    need(!std::memcmp(places.get(), back.get(), sizeof(int64_t) * chunks * k), "a sum's largest are those of the sum");
    const auto said = floats(chunks * k);
    places_leave(places.get(), values.get(), said.get(), chunks, k, per, y.get(), 1);
    tell(y.get(), chunks * per);
    const int64_t most = between(0, chunks * per);
    auto found = room<int64_t>(most);
    auto sizes = room<float>(most);
    above(before.get(), chunks * per, static_cast<uint32_t>(next() >> 33), most, found.get(), sizes.get(), 1);
    tell(values.get(), chunks * k);

    const int coding = static_cast<int>(between(0, 2));
    int width = 1;
    while (width < 32 && (int64_t{1} << width) < per) ++width;
    const int low = coding == 0 ? width : coding == 1 ? 0 : static_cast<int>(between(0, width));
    const int64_t unary = k + ((per - 1) >> low);
    const int64_t size = coding == 1 ? up(chunks * per, 8) : up(chunks * k * low, 8) + (coding == 2 ? up(chunks * unary, 8) : 0);
    auto side = room<uint8_t>(size);
    places_write(places.get(), chunks, k, per, coding, low, unary, side.get());
    tell(side.get(), size);
    need(places_read(side.get(), chunks, k, per, coding, low, unary, back.get()) == 0, "what was written is read");
    need(!std::memcmp(places.get(), back.get(), sizeof(int64_t) * chunks * k), "and is the same");
    if (next() % 2) side[between(0, size - 1)] ^= static_cast<uint8_t>(1 << between(0, 7));  // one bit, or all of them
    else side = bytes(size);
    const auto total = floats(chunks * per);
    const int wrong = places_add(side.get(), chunks, k, per, coding, low, unary, values.get(), total.get());
    tell(total.get(), chunks * per);
    need(places_read(side.get(), chunks, k, per, coding, low, unary, back.get()) == wrong, "reading and adding agree");
    if (!wrong)
        for (int64_t i = 0; i < chunks * k; ++i) {
            need(back[i] >= 0 && back[i] < per, "a place that is read lies in its chunk");
            need(i % k == 0 || back[i] > back[i - 1], "places that are read ascend");
        }
}

void thin() {
    const int64_t rows = between(1, 40), n = next() % 8 ? between(1, 100) : between(1000, 2100), r = between(1, 20);
    const auto m = floats(rows * n), p = floats(rows * r), q = floats(n * r);
    auto left = room<float>(rows * r), right = room<float>(n * r), out = room<float>(rows * n);
    thin_product(m.get(), rows, n, q.get(), r, 0, left.get(), 1);
    thin_product(m.get(), rows, n, p.get(), r, 1, right.get(), 1);
    outer(p.get(), q.get(), rows, n, r, out.get(), 1);
    const auto x = given(n);
    const int kind = x.kind % 2;  // float32 or bfloat16
    auto same = room<uint8_t>(n * (kind ? 2 : 4));
    if (x.kind < 2) scaled(x.get(), kind, n, 0.3f, same.get(), 1);
    tell(left.get(), rows * r);
    tell(right.get(), n * r);
    tell(out.get(), rows * n);
}

void rotations() {
    const int64_t n = between(1, 3000), block = int64_t{1} << between(1, 11);
    int64_t tail = n % block ? 1 : 0;
    while (tail && tail < n % block) tail *= 2;
    const int64_t whole = n / block * block + tail;
    const auto x = given(n);
    const auto signs = bytes(up(whole, 8));
    auto core = room<float>(whole), out = room<float>(n);
    hadamard_turn(x.get(), x.kind, n, block, 0.25f, 0.5f, signs.get(), core.get(), 1);
    hadamard_turn_back(core.get(), n, block, 0.25f, 0.5f, signs.get(), 0, out.get(), 1);
    hadamard_turn_back(core.get(), n, block, 0.25f, 0.5f, signs.get(), 1, out.get(), 1);
    tell(core.get(), whole);
    tell(out.get(), n);
}

void tables() {
    const int bits = static_cast<int>(between(2, 8)), lots = next() % 2, format = bits == 8 && !lots ? static_cast<int>(between(0, 2)) : 0;
    const int64_t n = between(1, 3000), block = next() % 4 ? between(1, 400) : n, blocks = up(n, block), size = 4 * blocks + up(n * bits, 8);
    const auto key0 = static_cast<uint32_t>(next()), key1 = static_cast<uint32_t>(next());
    const int64_t all = int64_t{1} << bits, count = lots ? all - 2 : all - 1;
    auto levels = room<float>(all), edges = room<float>(count + 1);
    auto codes = room<uint8_t>(all), bins = room<uint8_t>(1 << 16), payload = room<uint8_t>(size);
    for (int64_t i = 0; i < all; ++i) {
        levels[i] = static_cast<float>(i) - static_cast<float>(all / 2);
        codes[i] = static_cast<uint8_t>(i);
    }
    for (int64_t i = 0; i < count; ++i) edges[i] = lots ? levels[i + 1] : levels[i] + 0.5f;
    edges[count] = 0.0f / (levels[0] - levels[0]);
    std::memset(bins.get(), 0, 1 << 16);
    const auto x = given(n);
    const bool few = bits <= 4;
    levels_encode(x.get(), x.kind, n, block, bits, format, static_cast<float>(all / 2), levels.get(), edges.get(), count, codes.get(),
                  few ? nullptr : bins.get(), few ? 0 : static_cast<int>(count), lots, key0, key1, payload.get(), 1);
    tell(payload.get() + 4 * blocks, size - 4 * blocks);
    const auto wild = bytes(size);
    auto out = room<float>(n);
    levels_decode(wild.get(), n, block, bits, levels.get(), 0, out.get(), 1);
    levels_decode(wild.get(), n, block, bits, levels.get(), 1, out.get(), 1);
    tell(out.get(), n);
}

void coarse() {
    const int lots = next() % 2;
    const int64_t n = between(1, 3000), block = next() % 4 ? between(1, 400) : n, blocks = up(n, block);
    const auto key0 = static_cast<uint32_t>(next()), key1 = static_cast<uint32_t>(next());
    const auto x = given(n);
    auto powers = room<uint8_t>(n + up(n, 8)), digits = room<uint8_t>(4 * blocks + up(n, 5));
    auto out = room<float>(n), means = room<float>(blocks), masked = room<float>(blocks * block);
    auto counts = room<int64_t>(blocks);
    natural_encode(x.get(), x.kind, n, lots, key0, key1, powers.get(), 1);
    tell(powers.get(), n + up(n, 8));
    natural_decode(bytes(n + up(n, 8)).get(), n, 0, out.get(), 1);
    natural_decode(powers.get(), n, 1, out.get(), 1);
    tell(out.get(), n);
    const auto scales = floats(blocks);
    ternary_encode(x.get(), x.kind, n, block, next() % 2 ? scales.get() : nullptr, lots, key0, key1, digits.get(), 1);
    tell(digits.get() + 4 * blocks, up(n, 5));
    ternary_decode(bytes(4 * blocks + up(n, 5)).get(), n, block, 0, out.get(), 1);
    ternary_decode(digits.get(), n, block, 1, out.get(), 1);
    tell(out.get(), n);
    auto sizes = floats(blocks * block);
    for (int64_t i = 0; i < blocks * block; ++i) sizes[i] = i < n && sizes[i] == sizes[i] ? sizes[i] < 0 ? -sizes[i] : sizes[i] : 0.0f;
    const int squares = next() % 2;
    ternary_means(sizes.get(), n, block, squares, means.get(), squares ? nullptr : masked.get(), counts.get(), 1);
    tell(means.get(), blocks);
    const float fractions[] = {1.0f, 0.5f, 0.25f}, steps[] = {0.125f, 0.0625f, 0.03125f}, lows[] = {-1.0f, -0.5f, -0.25f};
    grid_clips(floats(n).get(), n, block, 16.0f, 3, fractions, steps, lows, means.get(), 1);
    tell(means.get(), blocks);
}

}  // namespace

int main(int, char** arguments) {
    const double seconds = std::atof(arguments[1]);
    uint64_t seed = std::strtoull(arguments[2], nullptr, 10);
    const auto begun = std::chrono::steady_clock::now();
    int64_t rounds = 0;
    do {
        state = seed++;
        std::fprintf(stderr, "\rround %lld, seed %llu ", static_cast<long long>(++rounds), static_cast<unsigned long long>(state));
        grids();
        signs();
        sparse();
        thin();
        rotations();
        tables();
        coarse();
    } while (seconds < 0 ? rounds < -seconds : std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() < seconds);
    std::printf("%lld rounds, %016llx\n", static_cast<long long>(rounds), static_cast<unsigned long long>(told));
}
