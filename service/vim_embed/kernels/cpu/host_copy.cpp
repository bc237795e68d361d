// Copies rows into one buffer with a few threads: host_copy.py calls it through ctypes. float32 rows may
// be rounded to half precision on the way. What is there already may be sent to a device meanwhile.
//
// The caller copies too and never waits for a thread to wake up: whoever is free takes the next
// piece. The buffer is one that a device reads, so stores go past the caches where they can. Nothing
// here needs a newer C++ library than the other kernels do (no condition variable, no shared
// pointer): one prebuilt library serves old systems too.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#define ROUNDS 1
#else
#define ROUNDS 0
#endif

namespace {

constexpr int64_t kPiece = 256 * 1024;

void copy_past_caches(char* to, const char* from, int64_t bytes) {
#if defined(__SSE2__)
  constexpr int64_t kLine = 64;
  const int64_t ahead = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(to) & (kLine - 1));
  std::memcpy(to, from, ahead);
  int64_t at = ahead;
  for (; at + kLine <= bytes; at += kLine) {
    for (int64_t i = at; i < at + kLine; i += 16) {
      const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), some);
    }
  }
  std::memcpy(to + at, from + at, bytes - at);
  _mm_sfence();  // before the device is told of the buffer
#else
  std::memcpy(to, from, bytes);
#endif
}

#if ROUNDS
__m128i half_of(__m256 v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

__m128i bfloat_of(__m256 v) {  // to nearest, ties to even; of finite numbers
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i high = _mm256_srli_epi32(_mm256_add_epi32(bits, up), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

// to[i] = the nearest half-precision number to from[i] + offset. Whether all of `from` is finite.
template <__m128i rounded(__m256)>
bool round_numbers(uint16_t* to, const float* from, int64_t count, float offset) {
  const __m256 more = _mm256_set1_ps(offset), infinity = _mm256_set1_ps(INFINITY);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 bad = _mm256_setzero_ps();
  const auto eight = [&](const float* some) {
    const __m256 v = _mm256_loadu_ps(some);
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(_mm256_and_ps(v, magnitude), infinity, _CMP_NLT_UQ));
    return rounded(_mm256_add_ps(v, more));
  };
  const bool aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0;
  int64_t at = 0;
  for (; at + 8 <= count; at += 8) {
    __m128i* const place = reinterpret_cast<__m128i*>(to + at);
    if (aligned)
      _mm_stream_si128(place, eight(from + at));
    else
      _mm_storeu_si128(place, eight(from + at));
  }
  if (at < count) {
    float last[8] = {};
    uint16_t found[8];
    std::memcpy(last, from + at, (count - at) * sizeof(float));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(found), eight(last));
    std::memcpy(to + at, found, (count - at) * sizeof(uint16_t));
  }
  _mm_sfence();
  return _mm256_movemask_ps(bad) == 0;
}
#endif

enum class As { bytes, half, bfloat };

// `size` bytes, or float32 numbers of which each becomes one of half precision.
struct Piece {
  char* to;
  const char* from;
  int64_t size;
  As as = As::bytes;
  float offset = 0.0f;

  bool copy() const {
    if (as == As::bytes) {
      copy_past_caches(to, from, size);
      return true;
    }
#if ROUNDS
    uint16_t* const numbers = reinterpret_cast<uint16_t*>(to);
    const float* const given = reinterpret_cast<const float*>(from);
    return as == As::half ? round_numbers<half_of>(numbers, given, size, offset)
                          : round_numbers<bfloat_of>(numbers, given, size, offset);
#else
    return false;
#endif
  }
};

// The way of the buffer to a device, in slices, each as soon as it is full. The last is the caller's.
struct Sending {
  int (*send)(uint64_t to, const void* from, size_t bytes, void* stream);  // 0: it is on its way
  uint64_t to;
  void* stream;
  int64_t slice;   // bytes of a slice, or a piece more
  int64_t sent;    // out: bytes, the first of the buffer
  int64_t status;  // out: of the last call of `send`
};

// A caller's copy; it lives on that caller's stack until no helper is at it any more.
struct Job {
  std::vector<Piece> pieces;  // one behind the other in the buffer
  Sending* sending = nullptr;
  std::atomic<int64_t> next{0};
  std::atomic<bool> finite{true};
  Job* after = nullptr;  // in the list of jobs, as helpers: under the mutex of these
  int64_t helpers = 0;

  bool is_open() const { return next.load() < count(); }

  // Pieces until there are none left. caller: between two of its own it sends what is there.
  void drain(bool caller) {
    for (int64_t i; (i = next.fetch_add(1)) < count();) {
      if (!pieces[i].copy()) finite.store(false);
      if (sending != nullptr) filled_[i].store(true, std::memory_order_release);
      if (caller) send(false);
    }
  }

  void prepare() {
    if (sending != nullptr) filled_ = std::vector<std::atomic<bool>>(pieces.size());
  }

  // The slices that are full, in their order, but for the last. all: all of them are full.
  void send(bool all) {
    if (sending == nullptr || pieces.empty() || !finite.load()) return;
    while (sending->status == 0) {
      const char* const from = pieces[sent_].to;
      for (; full_ < count() && pieces[full_].to - from < sending->slice; ++full_) {
        if (!all && !filled_[full_].load(std::memory_order_acquire)) return;
      }
      if (full_ == count()) return;
      const int64_t bytes = pieces[full_].to - from;
      sending->status = sending->send(sending->to + sending->sent, from, bytes, sending->stream);
      if (sending->status == 0) sending->sent += bytes;
      sent_ = full_;
    }
  }

 private:
  int64_t count() const { return static_cast<int64_t>(pieces.size()); }

  std::vector<std::atomic<bool>> filled_;
  int64_t sent_ = 0, full_ = 0;  // pieces that were sent, and that are known to be full
};

class Helpers {
 public:
  explicit Helpers(int64_t threads) {
    for (int64_t i = 0; i < threads; ++i) std::thread([this] { serve(); }).detach();
  }

  void copy(Job& job) {
    job.prepare();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job.after = jobs_;
      jobs_ = &job;
    }
    tell(begun_);
    job.drain(true);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      Job** at = &jobs_;
      while (*at != &job) at = &(*at)->after;
      *at = job.after;
    }
    for (;;) {
      const uint32_t seen = left_.load();
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (job.helpers == 0) break;
      }
      left_.wait(seen);
    }
    job.send(true);
  }

 private:
  [[noreturn]] void serve() {
    for (;;) {
      const uint32_t seen = begun_.load();
      if (Job* const job = join()) {
        job->drain(false);
        {
          std::lock_guard<std::mutex> lock(mutex_);
          --job->helpers;
        }
        tell(left_);
      } else {
        begun_.wait(seen);
      }
    }
  }

  // A job that has pieces left, whose caller waits for this helper from now on; or null.
  Job* join() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Job* job = jobs_; job != nullptr; job = job->after) {
      if (job->is_open()) {
        ++job->helpers;
        return job;
      }
    }
    return nullptr;
  }

  static void tell(std::atomic<uint32_t>& times) {
    times.fetch_add(1);
    times.notify_all();
  }

  std::mutex mutex_;
  Job* jobs_ = nullptr;
  std::atomic<uint32_t> begun_{0}, left_{0};  // how often
};

}  // namespace

// Threads that help until the process ends, besides each caller of `vim_copy`.
extern "C" void* vim_copy_helpers(int64_t threads) { return new Helpers(threads); }

// `parts` runs of bytes, one behind the other, to `to`. sending: or null. From any thread.
extern "C" void vim_copy(void* helpers, char* to, const char* const* from, const int64_t* bytes,
                         int64_t parts, Sending* sending) {
  Job job;
  job.sending = sending;
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t at = 0; at < bytes[part]; at += kPiece, to += job.pieces.back().size) {
      job.pieces.push_back({to, from[part] + at, std::min(kPiece, bytes[part] - at)});
    }
  }
  static_cast<Helpers*>(helpers)->copy(job);
}

// Whether this library has `vim_copy_rounded`'s code.
extern "C" int vim_rounds() { return ROUNDS; }

// `planes` runs of `count` float32 numbers, channel after channel, each number plus its channel's
// offset rounded to half precision (bfloat: to bfloat16). Whether all of them are finite; if not, what
// was sent is of no use.
extern "C" int vim_copy_rounded(void* helpers, char* to, const char* from, int64_t planes, int64_t count,
                                const float* offsets, int64_t channels, int bfloat,
                                Sending* sending) {
  Job job;
  job.sending = sending;
  job.pieces.reserve(planes);
  for (int64_t plane = 0; plane < planes; ++plane) {
    job.pieces.push_back({to + plane * count * 2, from + plane * count * 4, count,
                          bfloat ? As::bfloat : As::half, offsets[plane % channels]});
  }
  static_cast<Helpers*>(helpers)->copy(job);
  return job.finite.load();
}
