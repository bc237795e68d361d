// The operations of a Vim block for CPUs: float32, one SIMD lane per channel.
//
// A plain C interface (no Python, no torch library): cpu.py calls it through ctypes with data
// pointers and strides, and hands over the fork-join function of the OpenMP runtime that torch
// uses, so that there is one thread pool in the process. The specification is ops.py.
//
// Names: B images, L tokens, E channels, N states; strides count floats; channels, and the
// states of B and C, are contiguous.

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Vec::size();
constexpr float kLog2E = 1.44269504088896341f;

// ---- Threads ----

using Worker = void (*)(void*);
using ForkJoin = void (*)(Worker, void*, unsigned threads, unsigned flags);
ForkJoin fork_join = nullptr;  // GOMP_parallel, where torch has one

template <class Task>
struct Queue {
  std::atomic<int64_t> next{0};
  int64_t tasks;
  const Task& task;

  static void drain(void* self) {
    auto& queue = *static_cast<Queue*>(self);
    for (int64_t i; (i = queue.next.fetch_add(1, std::memory_order_relaxed)) < queue.tasks;) {
      queue.task(i);
    }
  }
};

template <class Task>
void parallel(int64_t tasks, int64_t threads, const Task& task) {
  Queue<Task> queue{{0}, tasks, task};
  threads = std::min(threads, tasks);
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

// 2^r for r in [0, 1): minimax polynomial, relative error 8e-8.
inline Vec exp2_fraction(Vec r) {
  Vec p(1.877576658421199e-3f);
  p = madd(p, r, Vec(8.989340131089839e-3f));
  p = madd(p, r, Vec(5.582631801921838e-2f));
  p = madd(p, r, Vec(2.401536170560859e-1f));
  p = madd(p, r, Vec(6.931530731988349e-1f));
  return madd(p, r, Vec(9.999999250635492e-1f));
}

// 2^t; underflows to (about) zero and passes NaN on.
inline Vec exp2(Vec t) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512 fraction = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_fraction(fraction), t);  // scalef floors its exponent
#else
  t = at::vec::clamp(t, Vec(-126.0f), Vec(127.0f));
  const Vec whole = t.floor();
  const auto exponent = at::vec::convert_to_int_of_same_size(whole + Vec(127.0f));
  const auto bits = exponent << at::vec::Vectorized<int32_t>(23);
  return exp2_fraction(t - whole) * at::vec::cast<float>(bits);
#endif
}

// log(1 + e^x) as max(x, 0) + log1p(y), y = e^-|x|; log1p(y) = 2 artanh(y / (2 + y)), a series in
// the square of its argument, at most 1/9: relative error 4e-9.
inline Vec softplus(Vec x) {
  const Vec y = exp2(x.abs() * Vec(-kLog2E));
  const Vec s = y / (y + Vec(2.0f));
  const Vec s2 = s * s;
  Vec p(2.817833406401510e-1f);
  p = madd(p, s2, Vec(2.796060296958807e-1f));
  p = madd(p, s2, Vec(4.002491026369237e-1f));
  p = madd(p, s2, Vec(6.666631468257039e-1f));
  p = madd(p, s2, Vec(2.000000007920995f));
  return madd(p, s, at::vec::maximum(x, Vec(0.0f)));
}

inline Vec silu(Vec x) { return x / (exp2(x * Vec(-kLog2E)) + Vec(1.0f)); }

}  // namespace

// ---- Selective scan ----

extern "C" struct ScanDirection {
  const float *u, *delta, *delta_bias, *A, *B, *C, *D;
  int64_t u_batch, u_token, delta_batch, delta_token, b_batch, b_token, c_batch, c_token;
};

extern "C" struct ScanArguments {
  ScanDirection forward, backward;
  const float* z;
  int64_t z_batch, z_token;
  float* out;  // (B, L, E) contiguous
  int64_t batch, length, channels, states, threads;
};

namespace {

// One direction of one image and `lanes` channels from `channel` on. `emit(t, y)` takes the result.
// The states live in registers: kStates is a compile-time constant, a[n] is A[:, n] · log2(e).
template <int kStates, bool full, class Emit>
void scan_lanes(const ScanDirection& d, int64_t image, int64_t channel, int64_t lanes,
                int64_t length, bool reverse, const float* a, const Emit& emit) {
  const Vec bias = load<full>(d.delta_bias + channel, lanes);
  const Vec skip = load<full>(d.D + channel, lanes);
  const float* u_row = d.u + image * d.u_batch + channel;
  const float* delta_row = d.delta + image * d.delta_batch + channel;
  const float* b_row = d.B + image * d.b_batch;
  const float* c_row = d.C + image * d.c_batch;
  Vec h[kStates];
  for (auto& state : h) state = Vec(0.0f);
  for (int64_t step = 0; step < length; ++step) {
    const int64_t t = reverse ? length - 1 - step : step;
    const float* b = b_row + t * d.b_token;
    const float* c = c_row + t * d.c_token;
    const Vec u = load<full>(u_row + t * d.u_token, lanes);
    const Vec delta = softplus(load<full>(delta_row + t * d.delta_token, lanes) + bias);
    const Vec input = delta * u;
    Vec y[2] = {skip * u, Vec(0.0f)};
    const auto advance = [&](int n) {
      const Vec decay = exp2(delta * Vec::loadu(a + n * kLanes));
      h[n] = madd(decay, h[n], input * Vec(b[n]));
      y[n % 2] = madd(h[n], Vec(c[n]), y[n % 2]);
    };
    [&]<int... n>(std::integer_sequence<int, n...>) {
      (advance(n), ...);
    }(std::make_integer_sequence<int, kStates>{});
    emit(t, y[0] + y[1]);
  }
}

// The same for any number of states, kept in `h` (states × kLanes floats).
template <bool full, class Emit>
void scan_lanes_any(const ScanDirection& d, int64_t image, int64_t channel, int64_t lanes,
                    int64_t length, bool reverse, int64_t states, const float* a, float* h,
                    const Emit& emit) {
  const Vec bias = load<full>(d.delta_bias + channel, lanes);
  const Vec skip = load<full>(d.D + channel, lanes);
  std::fill(h, h + states * kLanes, 0.0f);
  for (int64_t step = 0; step < length; ++step) {
    const int64_t t = reverse ? length - 1 - step : step;
    const float* b = d.B + image * d.b_batch + t * d.b_token;
    const float* c = d.C + image * d.c_batch + t * d.c_token;
    const Vec u = load<full>(d.u + image * d.u_batch + t * d.u_token + channel, lanes);
    const Vec delta = softplus(
        load<full>(d.delta + image * d.delta_batch + t * d.delta_token + channel, lanes) + bias);
    const Vec input = delta * u;
    Vec y = skip * u;
    for (int64_t n = 0; n < states; ++n) {
      const Vec decay = exp2(delta * Vec::loadu(a + n * kLanes));
      const Vec state = madd(decay, Vec::loadu(h + n * kLanes), input * Vec(b[n]));
      state.store(h + n * kLanes);
      y = madd(state, Vec(c[n]), y);
    }
    emit(t, y);
  }
}

// A (E, N) of the lanes, transposed to (N, kLanes) and scaled for exp2; unused lanes stay zero.
void transpose_decay(const float* decay, int64_t channel, int64_t lanes, int64_t states, float* a) {
  std::fill(a, a + states * kLanes, 0.0f);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t n = 0; n < states; ++n) {
      a[n * kLanes + lane] = decay[(channel + lane) * states + n] * kLog2E;
    }
  }
}

template <bool full>
void scan_task(const ScanArguments& s, int64_t image, int64_t channel, int64_t lanes) {
  constexpr int64_t kUnrolled = 16;
  static thread_local std::vector<float> scratch;
  scratch.resize(2 * s.states * kLanes);
  float* a = scratch.data();
  float* h = a + s.states * kLanes;
  float* out = s.out + image * s.length * s.channels + channel;
  const float* z = s.z + image * s.z_batch + channel;
  const auto run = [&](const ScanDirection& d, bool reverse, const auto& emit) {
    transpose_decay(d.A, channel, lanes, s.states, a);
    if (s.states == kUnrolled) {
      scan_lanes<kUnrolled, full>(d, image, channel, lanes, s.length, reverse, a, emit);
    } else {
      scan_lanes_any<full>(d, image, channel, lanes, s.length, reverse, s.states, a, h, emit);
    }
  };
  run(s.forward, false, [&](int64_t t, Vec y) { store<full>(y, out + t * s.channels, lanes); });
  run(s.backward, true, [&](int64_t t, Vec y) {
    const Vec both = y + load<full>(out + t * s.channels, lanes);
    const Vec gate = silu(load<full>(z + t * s.z_token, lanes));
    store<full>(both * Vec(0.5f) * gate, out + t * s.channels, lanes);
  });
}

}  // namespace

extern "C" void vim_scan(const ScanArguments* arguments) {
  const ScanArguments s = *arguments;
  const int64_t groups = (s.channels + kLanes - 1) / kLanes;
  parallel(s.batch * groups, s.threads, [&](int64_t i) {
    const int64_t channel = i % groups * kLanes;
    const int64_t lanes = std::min(kLanes, s.channels - channel);
    if (lanes == kLanes) {
      scan_task<true>(s, i / groups, channel, lanes);
    } else {
      scan_task<false>(s, i / groups, channel, lanes);
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

template <bool full>
inline void conv_lanes(const ConvArguments& c, const float* weight, int64_t image, int64_t t,
                       int64_t channel, int64_t lanes) {
  Vec sum = load<full>(c.bias + channel, lanes);
  for (int64_t back = 0; back < c.taps; ++back) {
    const int64_t source = c.reverse ? t + back : t - back;
    if (source < 0 || source >= c.length) break;
    const Vec x = load<full>(c.x + image * c.x_batch + source * c.x_token + channel, lanes);
    sum = madd(x, load<full>(weight + (c.taps - 1 - back) * c.channels + channel, lanes), sum);
  }
  store<full>(silu(sum), c.out + (image * c.length + t) * c.channels + channel, lanes);
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
      for (; e + kLanes <= c.channels; e += kLanes) {
        conv_lanes<true>(c, weight.data(), image, t, e, kLanes);
      }
      if (e < c.channels) conv_lanes<false>(c, weight.data(), image, t, e, c.channels - e);
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
