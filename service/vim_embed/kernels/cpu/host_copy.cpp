// Copies rows into one buffer with a few threads: host_copy.py calls it through ctypes.
//
// The caller copies too and never waits for a thread to wake up: whoever is free takes the next
// piece. The buffer is one that a device reads, so stores go past the caches where they can. Nothing
// here needs a newer C++ library than the other kernels do (no condition variable, no shared
// pointer): one prebuilt library serves old systems too.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
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

struct Piece {
  char* to;
  const char* from;
  int64_t bytes;
};

// A caller's copy; it lives on that caller's stack until no helper is at it any more.
struct Job {
  std::vector<Piece> pieces;
  std::atomic<int64_t> next{0};
  Job* after = nullptr;  // in the list of jobs, as helpers: under the mutex of these
  int64_t helpers = 0;

  bool is_open() const { return next.load() < static_cast<int64_t>(pieces.size()); }

  void drain() {
    for (int64_t i; (i = next.fetch_add(1)) < static_cast<int64_t>(pieces.size());) {
      copy_past_caches(pieces[i].to, pieces[i].from, pieces[i].bytes);
    }
  }
};

class Helpers {
 public:
  explicit Helpers(int64_t threads) {
    for (int64_t i = 0; i < threads; ++i) std::thread([this] { serve(); }).detach();
  }

  void copy(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job.after = jobs_;
      jobs_ = &job;
    }
    tell(begun_);
    job.drain();
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
        if (job.helpers == 0) return;
      }
      left_.wait(seen);
    }
  }

 private:
  [[noreturn]] void serve() {
    for (;;) {
      const uint32_t seen = begun_.load();
      if (Job* const job = join()) {
        job->drain();
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

// `parts` runs of bytes, one behind the other, to `to`. From any thread.
extern "C" void vim_copy(void* helpers, char* to, const char* const* from, const int64_t* bytes,
                         int64_t parts) {
  Job job;
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t at = 0; at < bytes[part]; at += kPiece, to += job.pieces.back().bytes) {
      job.pieces.push_back({to, from[part] + at, std::min(kPiece, bytes[part] - at)});
    }
  }
  static_cast<Helpers*>(helpers)->copy(job);
}
