// The operations of a Vim block for CPUs: float32, one SIMD lane per channel.
//
// A plain C interface (no Python, no torch library): ops.py calls it through ctypes with data
// pointers and strides, and hands over the fork-join function of the OpenMP runtime that torch
// uses, so that there is one thread pool in the process. The specification is ops.py.
//
// Names: B images, L tokens, E channels, N states; strides count floats; channels, and the
// states of B and C, are contiguous.

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();
constexpr float kLog2E = 1.44269504088896341f;
constexpr int kGroup = 4;  // vectors whose exponentials are computed together
constexpr int64_t kWidth = kGroup * kLanes;

// ---- Threads ----

using Worker = void (*)(void*);
using ForkJoin = void (*)(Worker, void*, unsigned threads, unsigned flags);
ForkJoin fork_join = nullptr;  // GOMP_parallel, where torch has one

// This thread among all that ever computed here, in the order of their coming.
int64_t thread_number() {
  static std::atomic<int64_t> threads{0};
  static thread_local const int64_t number = threads.fetch_add(1);
  return number;
}

// Tasks in a run for each thread. A thread begins with the same run in every call, where it finds
// rows in its cache that it wrote there; then it helps the others.
template <class Task>
class Queue {
 public:
  Queue(int64_t tasks, int64_t threads, const Task& task)
      : count_(std::clamp<int64_t>(threads, 1, kRuns)), task_(task) {
    for (int64_t i = 0; i < count_; ++i) {
      runs_[i].next = i * tasks / count_;
      runs_[i].end = (i + 1) * tasks / count_;
    }
  }

  static void drain(void* self) {
    auto& queue = *static_cast<Queue*>(self);
    const int64_t first = thread_number();
    for (int64_t i = 0; i < queue.count_; ++i) {
      Run& run = queue.runs_[(first + i) % queue.count_];
      for (int64_t t; (t = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) {
        queue.task_(t);
      }
    }
  }

 private:
  static constexpr int64_t kRuns = 64;  // more threads share them
  struct alignas(64) Run {
    std::atomic<int64_t> next;
    int64_t end;
  };
  Run runs_[kRuns];
  int64_t count_;
  const Task& task_;
};

template <class Task>
void parallel(int64_t tasks, int64_t threads, const Task& task) {
  threads = std::min(threads, tasks);
  Queue<Task> queue(tasks, threads, task);
  thread_number();  // of the caller, before its helpers get theirs
  if (threads <= 1) {
    queue.drain(&queue);
  } else if (fork_join != nullptr) {
    fork_join(queue.drain, &queue, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> pool;
    for (int64_t i = 1; i < threads; ++i) pool.emplace_back(queue.drain, &queue);
    queue.drain(&queue);
    for (auto& thread : pool) thread.join();
  }
}

// ---- Arithmetic ----

inline Vec madd(Vec a, Vec b, Vec c) { return at::vec::fmadd(a, b, c); }

template <bool full>
inline Vec load(const float* p, int64_t lanes) {
  return full ? Vec::loadu(p) : Vec::loadu(p, lanes);
}

template <bool full>
inline void store(Vec v, float* p, int64_t lanes) {
  full ? v.store(p) : v.store(p, static_cast<int>(lanes));
}

// 2^t = 2^k · 2^r, where k is t rounded to a multiple of 1 / kSteps. Adding kRounding to t leaves
// k · kSteps in the low bits of the sum. The power of two of k's whole part comes from the low bits too,
// shifted into the exponent, and 2^fraction from a table, or it is 1.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kSteps = 16;
constexpr bool kAnyDepth = true;  // its instructions underflow by themselves
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kSteps = 8;
constexpr bool kAnyDepth = false;
#else
constexpr int kSteps = 1;
constexpr bool kAnyDepth = false;
#endif
constexpr float kRounding = 12582912.0f / kSteps;  // 1.5 · 2^23
constexpr float kLowest = -125.0f;                  // below it 2^t would not be a normal number

// The states of the scan whose exponentials are computed together, few where 16 registers hold all.
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
constexpr int kChains = 2;
#else
constexpr int kChains = 4;
#endif

// 2^r · 2^k into r, k with kRounding still added. Written stage by stage over the whole group:
// independent chains keep the floating-point units busy. The polynomials are minimax with p(0) = 1, so
// that decays close to 1 keep their accuracy over many steps.
template <int kCount>
inline void multiply_powers(Vec (&r)[kCount], Vec (&k)[kCount]) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512 table = _mm512_setr_ps(
      1.0f, 1.0442737824f, 1.0905077327f, 1.1387886348f, 1.1892071150f, 1.2418578121f, 1.2968395547f,
      1.3542555469f, 1.4142135624f, 1.4768261460f, 1.5422108254f, 1.6104903319f, 1.6817928305f,
      1.7562521604f, 1.8340080864f, 1.9152065614f);
  Vec power[kCount], p[kCount];
  for (int i = 0; i < kCount; ++i) {
    power[i] = _mm512_permutexvar_ps(_mm512_castps_si512(k[i]), table);
  }
  for (int i = 0; i < kCount; ++i) {
    p[i] = madd(Vec(5.55021364931333e-2f), r[i], Vec(2.402342880141823e-1f));
    power[i] = _mm512_scalef_ps(power[i], k[i] - Vec(kRounding));  // scalef floors its exponent
  }
  for (int i = 0; i < kCount; ++i) p[i] = madd(p[i], r[i], Vec(6.931471826666384e-1f));
  for (int i = 0; i < kCount; ++i) r[i] = r[i] * power[i];
  for (int i = 0; i < kCount; ++i) r[i] = madd(p[i], r[i], power[i]);
#elif defined(CPU_CAPABILITY_AVX2)
  // The bits of 2^(n/8), less n << 20: the shift that brings the whole part of k into the exponent
  // brings its fraction there.
  const __m256i table = _mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                          0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7);
  Vec power[kCount], p[kCount];
  for (int i = 0; i < kCount; ++i) {
    const __m256i bits = _mm256_castps_si256(k[i]);
    const __m256i fraction = _mm256_permutevar8x32_epi32(table, bits);
    power[i] = _mm256_castsi256_ps(_mm256_add_epi32(fraction, _mm256_slli_epi32(bits, 20)));
  }
  for (int i = 0; i < kCount; ++i) {
    p[i] = madd(Vec(5.549622e-2f), r[i], Vec(2.4025763e-1f));
  }
  for (int i = 0; i < kCount; ++i) p[i] = madd(p[i], r[i], Vec(6.9314721e-1f));
  for (int i = 0; i < kCount; ++i) r[i] = r[i] * power[i];
  for (int i = 0; i < kCount; ++i) r[i] = madd(p[i], r[i], power[i]);
#else
  constexpr float kCoefficients[] = {9.671512641905034e-3f, 5.5507337433581674e-2f,
                                     2.402224208532593e-1f, 6.931469775990905e-1f, 1.0f};
  Vec p[kCount];
  for (int i = 0; i < kCount; ++i) p[i] = Vec(1.3264727165355572e-3f);
  for (const float coefficient : kCoefficients) {
    for (int i = 0; i < kCount; ++i) p[i] = madd(p[i], r[i], Vec(coefficient));
  }
  for (int i = 0; i < kCount; ++i) {
    const auto exponent = at::vec::cast<int32_t>(k[i]) << at::vec::Vectorized<int32_t>(23);
    r[i] = at::vec::cast<float>(at::vec::cast<int32_t>(p[i]) + exponent);
  }
#endif
}

// 2^t, t < 127, for several vectors; underflows to (about) zero. What the callers compute from NaN is
// NaN.
template <int kCount>
inline void exp2_group(Vec (&t)[kCount]) {
  Vec k[kCount];
  for (int i = 0; i < kCount; ++i) {
    if (!kAnyDepth) t[i] = at::vec::clamp_min(t[i], Vec(kLowest));
    k[i] = t[i] + Vec(kRounding);
  }
  for (int i = 0; i < kCount; ++i) t[i] = t[i] - (k[i] - Vec(kRounding));
  multiply_powers(t, k);
}

// 2^(x · y[i]); shallow: none of the products is below kLowest, which saves two of 13 operations.
template <bool shallow, int kCount>
inline void exp2_products(Vec x, const float* y, Vec (&t)[kCount]) {
  if constexpr (shallow && !kAnyDepth) {
    Vec k[kCount];
    for (int i = 0; i < kCount; ++i) k[i] = madd(x, Vec::loadu(y + i * kLanes), Vec(kRounding));
    for (int i = 0; i < kCount; ++i) {
      t[i] = at::vec::fmsub(x, Vec::loadu(y + i * kLanes), k[i] - Vec(kRounding));
    }
    multiply_powers(t, k);
  } else {
    for (int i = 0; i < kCount; ++i) t[i] = x * Vec::loadu(y + i * kLanes);
    exp2_group(t);
  }
}

// a / b for b in [1, 3].
inline Vec divide(Vec a, Vec b) {
#if defined(CPU_CAPABILITY_AVX512)
  const Vec inverse(_mm512_rcp14_ps(b));  // good to 14 bits; one correction makes it 23
  const Vec quotient = a * inverse;
  return madd(Vec(_mm512_fnmadd_ps(quotient, b, a)), inverse, quotient);
#else
  return a / b;
#endif
}

// log(1 + e^x) as max(x, 0) + log1p(y), y = e^-|x|; log1p(y) = 2 artanh(y / (2 + y)), a series in
// the square of its argument, at most 1/9: relative error 4e-9.
template <int kCount>
inline void softplus_group(Vec (&x)[kCount]) {
  constexpr float kSeries[] = {2.796060296958807e-1f, 4.002491026369237e-1f, 6.666631468257039e-1f,
                               2.000000007920995f};
  Vec y[kCount], square[kCount], p[kCount];
  for (int i = 0; i < kCount; ++i) y[i] = x[i].abs() * Vec(-kLog2E);
  exp2_group(y);
  for (int i = 0; i < kCount; ++i) y[i] = divide(y[i], y[i] + Vec(2.0f));
  for (int i = 0; i < kCount; ++i) square[i] = y[i] * y[i];
  for (int i = 0; i < kCount; ++i) p[i] = Vec(2.817833406401510e-1f);
  for (const float term : kSeries) {
    for (int i = 0; i < kCount; ++i) p[i] = madd(p[i], square[i], Vec(term));
  }
  for (int i = 0; i < kCount; ++i) {
    x[i] = madd(p[i], y[i], at::vec::clamp_min(x[i], Vec(0.0f)));
  }
}

// x · sigmoid(x) as (x or x · y) / (1 + y), y = e^-|x|.
template <int kCount>
inline void silu_group(Vec (&x)[kCount]) {
  Vec y[kCount];
  for (int i = 0; i < kCount; ++i) y[i] = x[i].abs() * Vec(-kLog2E);
  exp2_group(y);
  for (int i = 0; i < kCount; ++i) {
    const Vec upper = Vec::blendv(x[i], x[i] * y[i], x[i] < Vec(0.0f));
    x[i] = divide(upper, y[i] + Vec(1.0f));
  }
}

}  // namespace

// ---- Selective scan ----

extern "C" struct ScanDirection {
  const float *u, *step, *step_weight, *delta_bias, *A_log, *B, *C, *D;  // rank 0: step (B, L, E)
  int64_t u_batch, u_token, step_batch, step_token, b_batch, b_token, c_batch, c_token;
};

extern "C" struct ScanArguments {
  ScanDirection forward, backward;
  const float* z;
  int64_t z_batch, z_token;
  float* out;  // (B, L, E) contiguous
  int64_t batch, length, channels, states, rank, threads;
};

namespace {

// The channels of one task: up to kGroup vectors side by side, so that rows are read in runs of
// several cache lines.
struct Block {
  int64_t image, channel, channels;
  int64_t lanes(int vector) const {
    return std::clamp(channels - vector * kLanes, int64_t{0}, kLanes);
  }
};

// Zeros that begin at a cache line.
class Floats {
 public:
  float* assign(int64_t count) {
    lines_.assign((count + kLine - 1) / kLine, Line{});
    return data();
  }
  float* data() { return lines_.data()->of; }
  const float* data() const { return lines_.data()->of; }

 private:
  static constexpr int64_t kLine = 16;
  struct alignas(64) Line {
    float of[kLine];
  };
  std::vector<Line> lines_;
};

// The weights of a block in one direction, a lane for each channel; lanes without one are zero.
struct BlockWeights {
  Floats decay;       // (kGroup, N, kLanes): A · log2(e)
  Floats step;        // (R, kGroup, kLanes)
  Floats bias, skip;  // (kGroup, kLanes)
  float fastest;      // of the decays

  void fill(const ScanArguments& s, const ScanDirection& d, int64_t first) {
    const int64_t count = std::min(kWidth, s.channels - first);
    float* const a = decay.assign(kWidth * s.states);
    float* const weight = step.assign(kWidth * s.rank);
    std::copy_n(d.delta_bias + first, count, bias.assign(kWidth));
    std::copy_n(d.D + first, count, skip.assign(kWidth));
    for (int64_t e = 0; e < count; ++e) {
      const float* row = d.step_weight + (first + e) * s.rank;
      for (int64_t r = 0; r < s.rank; ++r) weight[r * kWidth + e] = row[r];
      const float* a_log = d.A_log + (first + e) * s.states;
      float* lane = a + e / kLanes * kLanes * s.states + e % kLanes;
      for (int64_t n = 0; n < s.states; ++n) lane[n * kLanes] = a_log[n];
    }
    float* const end = a + kWidth * s.states;
    for (float* each = a; each != end; each += kLanes) scale(each);
    fastest = *std::min_element(a, end);
  }

  // a = -exp(a) · log2(e); beyond 2^±40 it makes no difference.
  static void scale(float* a) {
    constexpr float kFar = 40.0f / kLog2E;
    float factor[kLanes];
    Vec(kLog2E).store(factor);
    Vec power[1];
    exp2_products<true>(at::vec::clamp(Vec::loadu(a), Vec(-kFar), Vec(kFar)), factor, power);
    (power[0] * Vec(-kLog2E)).store(a);
  }
};

// A stretch of time of a block: what the recurrence reads, and y, which it adds to.
struct Tile {
  static constexpr int64_t kTokens = 16;
  alignas(64) float delta[kGroup][kTokens * kLanes];
  alignas(64) float input[kGroup][kTokens * kLanes];
  alignas(64) float y[kGroup][kTokens * kLanes];
  int64_t first, count;  // the tokens, in memory order

  // Whether all delta · rate of a vector of channels are above kLowest; false where one is NaN.
  bool is_shallow(int vector, float rate) const {
    Vec largest(0.0f);
    for (int64_t i = 0; i < count; ++i) {
      largest = at::vec::maximum(largest, Vec::loadu(delta[vector] + i * kLanes));
    }
    float lanes[kLanes];
    largest.store(lanes);
    return std::all_of(lanes, lanes + kLanes, [rate](float d) { return d * rate > kLowest; });
  }
};

// delta = step · weight, of kTokens tokens from the tile's i on.
template <int kTokens>
inline void project(Tile& tile, int64_t i, const float* step, int64_t stride, const float* weight,
                    int64_t rank) {
  Vec sum[kTokens][kGroup];
  for (auto& token : sum) {
    for (Vec& each : token) each = Vec(0.0f);
  }
  for (int64_t r = 0; r < rank; ++r, weight += kWidth) {
    for (int j = 0; j < kTokens; ++j) {
      const Vec of(step[(i + j) * stride + r]);
      for (int v = 0; v < kGroup; ++v) {
        sum[j][v] = madd(of, Vec::loadu(weight + v * kLanes), sum[j][v]);
      }
    }
  }
  for (int j = 0; j < kTokens; ++j) {
    for (int v = 0; v < kGroup; ++v) sum[j][v].store(tile.delta[v] + (i + j) * kLanes);
  }
}

// delta = softplus(..), input = delta · u, y = D · u. Apart from the projection and the recurrence,
// whose registers and latency these long chains would cost.
template <bool full>
void fill(Tile& tile, const ScanDirection& d, const Block& block, const BlockWeights& weights,
          int64_t rank) {
  const float* u_row = d.u + block.image * d.u_batch + tile.first * d.u_token + block.channel;
  const float* step = d.step + block.image * d.step_batch + tile.first * d.step_token;
  const float* weight = weights.step.data();
  for (int64_t i = 0; rank > 0 && i < tile.count;) {
    if (i + 2 <= tile.count) {
      project<2>(tile, i, step, d.step_token, weight, rank);
      i += 2;
    } else {
      project<1>(tile, i++, step, d.step_token, weight, rank);
    }
  }
  for (int64_t i = 0; i < tile.count; ++i, u_row += d.u_token, step += d.step_token) {
    Vec delta[kGroup];
    for (int v = 0; v < kGroup; ++v) {
      delta[v] = rank > 0 ? Vec::loadu(tile.delta[v] + i * kLanes)
                          : load<full>(step + block.channel + v * kLanes, block.lanes(v));
      delta[v] = delta[v] + Vec::loadu(weights.bias.data() + v * kLanes);
    }
    softplus_group(delta);
    for (int v = 0; v < kGroup; ++v) {
      const Vec u = load<full>(u_row + v * kLanes, block.lanes(v));
      delta[v].store(tile.delta[v] + i * kLanes);
      (delta[v] * u).store(tile.input[v] + i * kLanes);
      (Vec::loadu(weights.skip.data() + v * kLanes) * u).store(tile.y[v] + i * kLanes);
    }
  }
}

template <bool shallow, int kFirst, int kStates>
inline void advance_group(Vec (&h)[kStates], Vec (&y)[2], Vec delta, Vec input, const float* a,
                          const float* b, const float* c) {
  Vec decay[kChains];
  exp2_products<shallow>(delta, a + kFirst * kLanes, decay);
  for (int i = 0; i < kChains; ++i) {
    h[kFirst + i] = madd(decay[i], h[kFirst + i], input * Vec(b[kFirst + i]));
    y[i % 2] = madd(h[kFirst + i], Vec(c[kFirst + i]), y[i % 2]);
  }
}

// Rows to bring into the cache while the recurrence computes; one a token. The hardware's
// prefetchers do not see the next tile coming. Prefetching past the end is harmless.
struct Ahead {
  const float* row;
  int64_t stride;
};

// The states, one for each of n, walk through the tile in registers, which is why they are counted
// at compile time and written out by pack expansion. a[n] is A[:, n] · log2(e).
template <bool shallow, int... n, int... group>
void recur(Tile& tile, int vector, const ScanDirection& d, int64_t image, bool reverse,
           const float* a, float* states, const Ahead (&ahead)[3], std::integer_sequence<int, n...>,
           std::integer_sequence<int, group...>) {
  Vec h[sizeof...(n)] = {Vec::loadu(states + n * kLanes)...};
  for (int64_t step = 0; step < tile.count; ++step) {
    const int64_t i = reverse ? tile.count - 1 - step : step;
    const float* b = d.B + image * d.b_batch + (tile.first + i) * d.b_token;
    const float* c = d.C + image * d.c_batch + (tile.first + i) * d.c_token;
    const Vec delta = Vec::loadu(tile.delta[vector] + i * kLanes);
    const Vec input = Vec::loadu(tile.input[vector] + i * kLanes);
    Vec y[2] = {Vec::loadu(tile.y[vector] + i * kLanes), Vec(0.0f)};
    for (const Ahead& rows : ahead) __builtin_prefetch(rows.row + i * rows.stride);
    (advance_group<shallow, group * kChains>(h, y, delta, input, a, b, c), ...);
    (y[0] + y[1]).store(tile.y[vector] + i * kLanes);
  }
  (h[n].store(states + n * kLanes), ...);
}

// The same for any number of states.
void recur_any(Tile& tile, int vector, const ScanDirection& d, int64_t image, bool reverse,
               const float* a, float* states, int64_t count) {
  for (int64_t step = 0; step < tile.count; ++step) {
    const int64_t i = reverse ? tile.count - 1 - step : step;
    const float* b = d.B + image * d.b_batch + (tile.first + i) * d.b_token;
    const float* c = d.C + image * d.c_batch + (tile.first + i) * d.c_token;
    const Vec delta = Vec::loadu(tile.delta[vector] + i * kLanes);
    const Vec input = Vec::loadu(tile.input[vector] + i * kLanes);
    Vec y = Vec::loadu(tile.y[vector] + i * kLanes);
    for (int64_t n = 0; n < count; ++n) {
      Vec decay[1] = {delta * Vec::loadu(a + n * kLanes)};
      exp2_group(decay);
      const Vec h = madd(decay[0], Vec::loadu(states + n * kLanes), input * Vec(b[n]));
      h.store(states + n * kLanes);
      y = madd(h, Vec(c[n]), y);
    }
    y.store(tile.y[vector] + i * kLanes);
  }
}

// One direction of a block; `emit` takes each finished tile, for which it reads or writes rows of
// `out` and `z` (token 0 of the image, at the block's channels).
template <bool full, class Emit>
void scan_direction(const ScanArguments& s, const ScanDirection& d, const BlockWeights& weights,
                    bool reverse, const Block& block, const float* out, const float* z,
                    const Emit& emit) {
  static thread_local Floats scratch;
  const int64_t floats = s.states * kLanes;  // of one vector
  float* states = scratch.assign(kGroup * floats);
  const float* a = weights.decay.data();
  Tile tile;
  const int64_t tiles = (s.length + Tile::kTokens - 1) / Tile::kTokens;
  for (int64_t step = 0; step < tiles; ++step) {
    tile.first = (reverse ? tiles - 1 - step : step) * Tile::kTokens;
    tile.count = std::min(Tile::kTokens, s.length - tile.first);
    fill<full>(tile, d, block, weights, s.rank);
    const int64_t next = tile.first + (reverse ? -Tile::kTokens : Tile::kTokens);
    for (int v = 0; v < kGroup && block.lanes(v) > 0; ++v) {
      if (s.states == 16) {
        const int64_t channel = block.channel + v * kLanes;
        const Ahead ahead[3] = {
            {d.u + block.image * d.u_batch + next * d.u_token + channel, d.u_token},
            {out + tile.first * s.channels + v * kLanes, s.channels},
            {z + tile.first * s.z_token + v * kLanes, s.z_token},
        };
        const auto run = [&](auto shallow) {
          recur<shallow.value>(tile, v, d, block.image, reverse, a + v * floats,
                               states + v * floats, ahead, std::make_integer_sequence<int, 16>{},
                               std::make_integer_sequence<int, 16 / kChains>{});
        };
        kAnyDepth || tile.is_shallow(v, weights.fastest) ? run(std::true_type{}) : run(std::false_type{});
      } else {
        recur_any(tile, v, d, block.image, reverse, a + v * floats, states + v * floats, s.states);
      }
    }
    emit(tile);
  }
}

template <bool full>
void scan_task(const ScanArguments& s, const Block& block,
               const std::array<BlockWeights, 2>& weights) {
  float* const out = s.out + block.image * s.length * s.channels + block.channel;
  const float* const z = s.z + block.image * s.z_batch + block.channel;
  scan_direction<full>(s, s.forward, weights[0], false, block, out, z, [&](const Tile& tile) {
    for (int64_t i = 0; i < tile.count; ++i) {
      float* row = out + (tile.first + i) * s.channels;
      for (int v = 0; v < kGroup; ++v) {
        store<full>(Vec::loadu(tile.y[v] + i * kLanes), row + v * kLanes, block.lanes(v));
      }
    }
  });
  scan_direction<full>(s, s.backward, weights[1], true, block, out, z, [&](const Tile& tile) {
    for (int64_t i = 0; i < tile.count; ++i) {
      float* row = out + (tile.first + i) * s.channels;
      Vec gate[kGroup];
      for (int v = 0; v < kGroup; ++v) {
        gate[v] = load<full>(z + (tile.first + i) * s.z_token + v * kLanes, block.lanes(v));
      }
      silu_group(gate);
      for (int v = 0; v < kGroup; ++v) {
        const Vec forward = load<full>(row + v * kLanes, block.lanes(v));
        const Vec both = Vec::loadu(tile.y[v] + i * kLanes) + forward;
        store<full>(both * Vec(0.5f) * gate[v], row + v * kLanes, block.lanes(v));
      }
    }
  });
}

}  // namespace

extern "C" void vim_scan(const ScanArguments* arguments) {
  const ScanArguments s = *arguments;
  const int64_t blocks = (s.channels + kWidth - 1) / kWidth;
  std::vector<std::array<BlockWeights, 2>> weights(blocks);
  parallel(2 * blocks, s.threads, [&](int64_t i) {
    weights[i / 2][i % 2].fill(s, i % 2 ? s.backward : s.forward, i / 2 * kWidth);
  });
  parallel(s.batch * blocks, s.threads, [&](int64_t i) {
    const int64_t channel = i % blocks * kWidth;
    const Block block{i / blocks, channel, std::min(kWidth, s.channels - channel)};
    if (block.channels == kWidth) {
      scan_task<true>(s, block, weights[i % blocks]);
    } else {
      scan_task<false>(s, block, weights[i % blocks]);
    }
  });
}

// ---- Convolution and SiLU ----

extern "C" struct ConvArguments {
  const float *x, *weight, *bias;  // weight (E, K) contiguous
  int64_t x_batch, x_token;
  float* out;  // (B, L, E) contiguous
  int64_t batch, length, channels, taps, reverse, threads;
};

namespace {

template <int kVectors, bool full>
inline void conv_lanes(const ConvArguments& c, const float* weight, int64_t image, int64_t t,
                       int64_t channel, int64_t lanes) {
  const int64_t reach = c.reverse ? c.length - 1 - t : t;  // neighbours that exist
  const int64_t taps = std::min(c.taps, reach + 1);
  const int64_t stride = c.reverse ? c.x_token : -c.x_token;
  const float* x = c.x + image * c.x_batch + t * c.x_token + channel;
  const float* w = weight + (c.taps - 1) * c.channels + channel;
  Vec sum[kVectors];
  for (int i = 0; i < kVectors; ++i) sum[i] = load<full>(c.bias + channel + i * kLanes, lanes);
  for (int64_t tap = 0; tap < taps; ++tap, x += stride, w -= c.channels) {
    for (int i = 0; i < kVectors; ++i) {
      sum[i] = madd(load<full>(x + i * kLanes, lanes), load<full>(w + i * kLanes, lanes), sum[i]);
    }
  }
  silu_group(sum);
  float* out = c.out + (image * c.length + t) * c.channels + channel;
  for (int i = 0; i < kVectors; ++i) store<full>(sum[i], out + i * kLanes, lanes);
}

}  // namespace

extern "C" void vim_conv_silu(const ConvArguments* arguments) {
  const ConvArguments c = *arguments;
  constexpr int64_t kRows = 32;
  std::vector<float> weight(c.taps * c.channels);  // (K, E)
  for (int64_t e = 0; e < c.channels; ++e) {
    for (int64_t k = 0; k < c.taps; ++k) weight[k * c.channels + e] = c.weight[e * c.taps + k];
  }
  const int64_t tiles = (c.length + kRows - 1) / kRows;
  parallel(c.batch * tiles, c.threads, [&](int64_t i) {
    const int64_t image = i / tiles, first = i % tiles * kRows;
    for (int64_t t = first; t < std::min(first + kRows, c.length); ++t) {
      int64_t e = 0;
      for (; e + kGroup * kLanes <= c.channels; e += kGroup * kLanes) {
        conv_lanes<kGroup, true>(c, weight.data(), image, t, e, kLanes);
      }
      for (; e + kLanes <= c.channels; e += kLanes) {
        conv_lanes<1, true>(c, weight.data(), image, t, e, kLanes);
      }
      if (e < c.channels) conv_lanes<1, false>(c, weight.data(), image, t, e, c.channels - e);
    }
  });
}

// ---- Residual and RMS norm ----

extern "C" struct NormArguments {
  const float *hidden, *residual, *weight;  // residual may be null
  float *normed, *stream;                   // all (rows, D) contiguous
  int64_t rows, channels;
  float eps;
  int64_t threads;
};

namespace {

void norm_row(const NormArguments& a, int64_t row) {
  const int64_t begin = row * a.channels, full = a.channels / kLanes * kLanes;
  const float* hidden = a.hidden + begin;
  const float* residual = a.residual == nullptr ? nullptr : a.residual + begin;
  float* stream = a.stream + begin;
  float* normed = a.normed + begin;
  Vec squares(0.0f);
  const auto accumulate = [&](int64_t e, int64_t lanes) {
    Vec sum = Vec::loadu(hidden + e, lanes);
    if (residual != nullptr) sum = sum + Vec::loadu(residual + e, lanes);
    sum.store(stream + e, static_cast<int>(lanes));
    squares = madd(sum, sum, squares);
  };
  for (int64_t e = 0; e < full; e += kLanes) accumulate(e, kLanes);
  if (full < a.channels) accumulate(full, a.channels - full);
  float lanes[kLanes], total = 0.0f;
  squares.store(lanes);
  for (const float lane : lanes) total += lane;
  const Vec scale(1.0f / std::sqrt(total / static_cast<float>(a.channels) + a.eps));
  const auto rescale = [&](int64_t e, int64_t lanes) {
    const Vec weighted = Vec::loadu(stream + e, lanes) * scale * Vec::loadu(a.weight + e, lanes);
    weighted.store(normed + e, static_cast<int>(lanes));
  };
  for (int64_t e = 0; e < full; e += kLanes) rescale(e, kLanes);
  if (full < a.channels) rescale(full, a.channels - full);
}

}  // namespace

extern "C" void vim_add_norm(const NormArguments* arguments) {
  const NormArguments a = *arguments;
  constexpr int64_t kRows = 64;
  parallel((a.rows + kRows - 1) / kRows, a.threads, [&](int64_t i) {
    for (int64_t row = i * kRows; row < std::min((i + 1) * kRows, a.rows); ++row) norm_row(a, row);
  });
}

extern "C" void vim_set_fork_join(ForkJoin function) { fork_join = function; }
