// Gradients of a Vim block's operations on a CPU: float32, for training/native.py.
//
// The forward pass is the service's own (vim_embed/kernels/cpu/cpu.cpp). Nothing is kept of it: states
// and activations are computed anew, an image and a channel at a time, so that they stay in the first
// levels of cache. Sums over images are taken in a fixed number of parts, so that the result does not
// depend on the number of threads.
//
// Names: B images, L tokens, E channels, N = 16 states, K taps, P parts; strides count floats.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(float))));
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

inline Vec all(float x) { return Vec{} + x; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline Vec load(const float* p, int64_t lanes) {
  if (lanes >= kLanes) return load(p);
  Vec v{};
  std::memcpy(&v, p, lanes * sizeof(float));
  return v;
}

inline void store(Vec v, float* p, int64_t lanes = kLanes) {
  std::memcpy(p, &v, std::min<int64_t>(lanes, kLanes) * sizeof(float));
}

inline void add(Vec v, float* p, int64_t lanes = kLanes) { store(load(p, lanes) + v, p, lanes); }

// 2^t for t <= 0, about zero below 2^-125. Adding 1.5 · 2^23 rounds t to an integer, which then stands
// in the low bits; the rest, at most 1/2 in size, goes through a minimax polynomial.
inline Vec exp2_of(Vec t) {
  const Vec least = all(-125.0f), magic = all(12582912.0f);
  t = t < least ? least : t;
  const Vec whole = t + magic;
  const Vec r = t - (whole - magic);
  Vec p = all(1.3264727165355572e-3f);
  p = p * r + 9.671512641905034e-3f;
  p = p * r + 5.5507337433581674e-2f;
  p = p * r + 2.402224208532593e-1f;
  p = p * r + 6.931469775990905e-1f;
  p = p * r + 1.0f;
  return (Vec)((Ints)p + ((Ints)whole << 23));
}

inline Vec minus_abs(Vec x) { return x < 0.0f ? x : -x; }

struct Gate {
  Vec silu, slope;  // x · sigmoid(x) and its derivative
};

inline Vec sigmoid(Vec x) {
  const Vec y = exp2_of(minus_abs(x) * kLog2E);
  return (x < 0.0f ? y : all(1.0f)) / (1.0f + y);
}

inline Gate gate(Vec x) {
  const Vec s = sigmoid(x), silu = x * s;
  return {silu, s + silu * (1.0f - s)};
}

// log(1 + e^x) as max(x, 0) + log1p(y), y = e^-|x|; log1p(y) = 2 artanh(y / (2 + y)), as a series.
inline Vec softplus(Vec x) {
  const Vec y = exp2_of(minus_abs(x) * kLog2E);
  const Vec w = y / (2.0f + y), square = w * w;
  Vec p = all(2.817833406401510e-1f);
  p = p * square + 2.796060296958807e-1f;
  p = p * square + 4.002491026369237e-1f;
  p = p * square + 6.666631468257039e-1f;
  p = p * square + 2.000000007920995f;
  return p * w + (x < 0.0f ? all(0.0f) : x);
}

// Lanes [0, w) of each run of 2w are sums of halves of a's run, lanes [w, 2w) of b's.
template <int w>
inline Vec folded(Vec a, Vec b) {
#define LOW(i) ((i) / w % 2 * 16 + (i) / (2 * w) * 2 * w + (i) % w)
#define LANES(of)                                                                          \
  of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), of(9), of(10), of(11), of(12), \
      of(13), of(14), of(15)
#define HIGH(i) (LOW(i) + w)
  return __builtin_shufflevector(a, b, LANES(LOW)) + __builtin_shufflevector(a, b, LANES(HIGH));
#undef LOW
#undef HIGH
#undef LANES
}

// Lane i of the result is the sum over the lanes of rows[i].
inline Vec row_sums(const Vec (&rows)[kLanes]) {
  Vec a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) a[i] = folded<8>(rows[i], rows[i + 8]);
  for (int i = 0; i < 4; ++i) b[i] = folded<4>(a[i], a[i + 4]);
  for (int i = 0; i < 2; ++i) c[i] = folded<2>(b[i], b[i + 2]);
  return folded<1>(c[0], c[1]);
}

inline float sum(Vec v) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

}  // namespace

// ---- Selective scan ----

extern "C" struct ScanDirection {
  const float *u, *delta, *delta_bias, *A, *B, *C, *D;
  int64_t u_batch, u_token, delta_batch, delta_token, b_batch, b_token, c_batch, c_token;
  float *du, *ddelta, *dB, *dC;    // (B, L, E) twice, (B, L, N) twice, contiguous
  float *dA, *ddelta_bias, *dD;    // (P, E, N), (P, E), (P, E), zero
};

extern "C" struct ScanArguments {
  ScanDirection forward, backward;
  const float *z, *dout;
  int64_t z_batch, z_token;
  float* dz;  // (B, L, E) contiguous, as dout
  int64_t batch, length, channels, parts, threads;
};

namespace {

// Sixteen channels of one image, in the order in which a direction walks the tokens.
struct Work {
  explicit Work(int64_t tokens)
      : length(tokens), tiles((tokens + kLanes - 1) / kLanes), rows(9 * tokens),
        tile_sums(2 * kLanes * tiles), image_sums(4 * tokens) {
    Vec** named[] = {&delta, &slope, &u, &drive, &half, &dy, &y, &h, &a};
    for (int64_t i = 0; i < 9; ++i) *named[i] = rows.data() + i * length;
  }
  Work(const Work&) = delete;

  int64_t length, tiles;
  std::vector<Vec> rows;
  std::vector<Vec> tile_sums;      // what row_sums gave, by channel and tile: of drives, of decays
  std::vector<Vec> image_sums;     // dB and dC of both directions, over all channels
  Vec *delta, *slope, *u, *drive;  // a row a step, a lane a channel
  Vec *half, *dy, *y;              // a row a token: dout / 2, that times the gate, both directions' y
  Vec *h, *a;                      // of one channel: a row a step, a lane a state
};

void scan_backward(Work& w, const ScanDirection& d, bool reverse, int64_t image, int64_t channels,
                   int64_t first, int64_t part) {
  Vec *dB = w.image_sums.data() + (reverse ? 2 * w.length : 0), *dC = dB + w.length;
  const int64_t length = w.length, count = std::min<int64_t>(kLanes, channels - first);
  const auto place = [&](int64_t step) { return reverse ? length - 1 - step : step; };
  const Vec bias = load(d.delta_bias + first, count), skip = load(d.D + first, count);
  for (int64_t s = 0; s < length; ++s) {
    const int64_t t = place(s);
    const Vec x = load(d.delta + image * d.delta_batch + t * d.delta_token + first, count) + bias;
    w.delta[s] = softplus(x);
    w.slope[s] = sigmoid(x);
    w.u[s] = load(d.u + image * d.u_batch + t * d.u_token + first, count);
    w.drive[s] = w.delta[s] * w.u[s];
    w.y[t] += skip * w.u[s];
  }
  const auto b_row = [&](int64_t s) { return load(d.B + image * d.b_batch + place(s) * d.b_token); };
  const auto c_row = [&](int64_t s) { return load(d.C + image * d.c_batch + place(s) * d.c_token); };
  Vec ddrive[kLanes], ddecay[kLanes];
  Vec* const drive_sums = w.tile_sums.data();
  Vec* const decay_sums = drive_sums + kLanes * w.tiles;
  for (int j = 0; j < count; ++j) {
    const Vec rate = load(d.A + (first + j) * kLanes), rate2 = rate * kLog2E;
    Vec h{}, products[kLanes];
    for (int64_t begin = 0; begin < length; begin += kLanes) {
      const int64_t here = std::min<int64_t>(kLanes, length - begin);
      for (int64_t i = 0; i < here; ++i) {
        const int64_t s = begin + i;
        const Vec a = exp2_of(w.delta[s][j] * rate2);
        h = a * h + w.drive[s][j] * b_row(s);
        w.a[s] = a;
        w.h[s] = h;
        products[i] = h * c_row(s);
      }
      for (int64_t i = here; i < kLanes; ++i) products[i] = Vec{};
      const Vec y = row_sums(products);
      for (int64_t i = 0; i < here; ++i) w.y[place(begin + i)][j] += y[i];
    }
    Vec carry{}, drate{};  // a[t+1] g[t+1], the gradient of A
    for (int64_t tile = w.tiles - 1; tile >= 0; --tile) {
      const int64_t begin = tile * kLanes, here = std::min<int64_t>(kLanes, length - begin);
      for (int64_t i = here; i < kLanes; ++i) ddrive[i] = ddecay[i] = Vec{};
      for (int64_t i = here - 1; i >= 0; --i) {
        const int64_t s = begin + i, t = place(s);
        const float dy = w.dy[t][j];
        const Vec g = carry + c_row(s) * dy;
        dC[s] += w.h[s] * dy;
        dB[s] += g * w.drive[s][j];
        ddrive[i] = g * b_row(s);
        carry = w.a[s] * g;
        const Vec inner = s > 0 ? carry * w.h[s - 1] : Vec{};  // of delta[t] A
        ddecay[i] = inner * rate;
        drate += inner * w.delta[s][j];
      }
      drive_sums[j * w.tiles + tile] = row_sums(ddrive);
      decay_sums[j * w.tiles + tile] = row_sums(ddecay);
    }
    add(drate, d.dA + (part * channels + first + j) * kLanes);
  }
  Vec dbias{}, dskip{};
  for (int64_t s = 0; s < length; ++s) {
    const int64_t t = place(s), tile = s / kLanes;
    Vec drive{}, decay{};
    for (int j = 0; j < count; ++j) {
      drive[j] = drive_sums[j * w.tiles + tile][s % kLanes];
      decay[j] = decay_sums[j * w.tiles + tile][s % kLanes];
    }
    const Vec ddelta = (drive * w.u[s] + decay) * w.slope[s];
    const int64_t row = (image * length + t) * channels + first;
    store(drive * w.delta[s] + skip * w.dy[t], d.du + row, count);
    store(ddelta, d.ddelta + row, count);
    dbias += ddelta;
    dskip += w.dy[t] * w.u[s];
  }
  add(dbias, d.ddelta_bias + part * channels + first, count);
  add(dskip, d.dD + part * channels + first, count);
}

void scan_image(const ScanArguments& s, Work& w, int64_t image, int64_t part) {
  std::fill(w.image_sums.begin(), w.image_sums.end(), Vec{});
  for (int64_t first = 0; first < s.channels; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, s.channels - first);
    for (int64_t t = 0; t < w.length; ++t) {
      const Vec z = load(s.z + image * s.z_batch + t * s.z_token + first, count);
      w.half[t] = 0.5f * load(s.dout + (image * w.length + t) * s.channels + first, count);
      w.dy[t] = w.half[t] * gate(z).silu;
      w.y[t] = Vec{};
    }
    scan_backward(w, s.forward, false, image, s.channels, first, part);
    scan_backward(w, s.backward, true, image, s.channels, first, part);
    for (int64_t t = 0; t < w.length; ++t) {
      const Vec z = load(s.z + image * s.z_batch + t * s.z_token + first, count);
      const Vec dz = w.half[t] * w.y[t] * gate(z).slope;
      store(dz, s.dz + (image * w.length + t) * s.channels + first, count);
    }
  }
  for (int64_t step = 0; step < w.length; ++step) {
    const int64_t forward = (image * w.length + step) * kLanes;
    const int64_t backward = (image * w.length + w.length - 1 - step) * kLanes;
    const Vec* sums = w.image_sums.data() + step;
    store(sums[0], s.forward.dB + forward);
    store(sums[w.length], s.forward.dC + forward);
    store(sums[2 * w.length], s.backward.dB + backward);
    store(sums[3 * w.length], s.backward.dC + backward);
  }
}

// Calls each(image, part) for the images of every part; parts are tasks.
template <class Make>
void by_parts(int64_t batch, int64_t parts, int64_t threads, const Make& make) {
  parallel(parts, threads, [&](int64_t part) {
    auto each = make();
    for (int64_t i = part * batch / parts; i < (part + 1) * batch / parts; ++i) each(i, part);
  });
}

}  // namespace

extern "C" void vim_scan_backward(const ScanArguments* arguments) {
  const ScanArguments s = *arguments;
  by_parts(s.batch, s.parts, s.threads, [&] {
    return [&s, work = Work(s.length)](int64_t image, int64_t part) mutable {
      scan_image(s, work, image, part);
    };
  });
}

// ---- Convolution and SiLU ----

extern "C" struct ConvArguments {
  const float *x, *weight, *bias, *dout;  // weight (K, E), dout (B, L, E), contiguous
  int64_t x_batch, x_token;
  float *dx, *dweight, *dbias;  // (B, L, E); (P, K, E), (P, E), zero
  int64_t batch, length, channels, taps, reverse, parts, threads;
};

namespace {

void conv_image(const ConvArguments& c, std::vector<Vec>& rows, int64_t image, int64_t part) {
  Vec *x = rows.data(), *ds = x + c.length;  // in the order in which the direction walks
  const auto place = [&](int64_t s) { return c.reverse ? c.length - 1 - s : s; };
  for (int64_t first = 0; first < c.channels; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, c.channels - first);
    const auto tap = [&](int64_t back) {  // what meets x[s - back]
      return load(c.weight + (c.taps - 1 - back) * c.channels + first, count);
    };
    const Vec bias = load(c.bias + first, count);
    for (int64_t s = 0; s < c.length; ++s) {
      x[s] = load(c.x + image * c.x_batch + place(s) * c.x_token + first, count);
      Vec before = bias;
      for (int64_t k = 0; k < c.taps && k <= s; ++k) before += tap(k) * x[s - k];
      const int64_t row = (image * c.length + place(s)) * c.channels + first;
      ds[s] = load(c.dout + row, count) * gate(before).slope;
    }
    for (int64_t k = 0; k < c.taps; ++k) {
      Vec total{};
      for (int64_t s = k; s < c.length; ++s) total += ds[s] * x[s - k];
      add(total, c.dweight + (part * c.taps + c.taps - 1 - k) * c.channels + first, count);
    }
    Vec total{};
    for (int64_t s = 0; s < c.length; ++s) {
      total += ds[s];
      Vec dx{};
      for (int64_t k = 0; k < c.taps && s + k < c.length; ++k) dx += tap(k) * ds[s + k];
      store(dx, c.dx + (image * c.length + place(s)) * c.channels + first, count);
    }
    add(total, c.dbias + part * c.channels + first, count);
  }
}

}  // namespace

extern "C" void vim_conv_silu_backward(const ConvArguments* arguments) {
  const ConvArguments c = *arguments;
  by_parts(c.batch, c.parts, c.threads, [&] {
    return [&c, rows = std::vector<Vec>(2 * c.length)](int64_t image, int64_t part) mutable {
      conv_image(c, rows, image, part);
    };
  });
}

// ---- Residual and RMS norm ----

extern "C" struct NormArguments {
  const float *stream, *weight, *dnormed, *dstream;  // dstream may be null
  float *dinput, *dweight;                           // (rows, D); (P, D), zero
  int64_t rows, channels;
  float eps;
  int64_t parts, threads;
};

extern "C" void vim_add_norm_backward(const NormArguments* arguments) {
  const NormArguments a = *arguments;
  by_parts(a.rows, a.parts, a.threads, [&] {
    return [&a](int64_t row, int64_t part) {
      const int64_t begin = row * a.channels;
      Vec squares{}, products{};
      for (int64_t e = 0; e < a.channels; e += kLanes) {
        const int64_t lanes = a.channels - e;
        const Vec x = load(a.stream + begin + e, lanes);
        squares += x * x;
        products += x * load(a.weight + e, lanes) * load(a.dnormed + begin + e, lanes);
      }
      const float mean = static_cast<float>(a.channels);
      const float scale = 1.0f / std::sqrt(sum(squares) / mean + a.eps);
      const float along = sum(products) / mean * scale * scale * scale;
      for (int64_t e = 0; e < a.channels; e += kLanes) {
        const int64_t lanes = a.channels - e;
        const Vec x = load(a.stream + begin + e, lanes);
        const Vec dnormed = load(a.dnormed + begin + e, lanes);
        Vec d = scale * load(a.weight + e, lanes) * dnormed - along * x;
        if (a.dstream != nullptr) d += load(a.dstream + begin + e, lanes);
        store(d, a.dinput + begin + e, lanes);
        add(scale * x * dnormed, a.dweight + part * a.channels + e, lanes);
      }
    };
  });
}

extern "C" void vim_set_fork_join(ForkJoin function) { fork_join = function; }
