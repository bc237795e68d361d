// Copies rows into one buffer with a few threads: host_copy.py calls it through ctypes.
//
// The caller copies too and never waits for a thread to wake up: whoever is free takes the next
// piece. The buffer is one that a device reads, so stores go past the caches where they can.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
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

struct Job {
  std::vector<Piece> pieces;
  std::atomic<int64_t> next{0}, done{0};

  int64_t count() const { return static_cast<int64_t>(pieces.size()); }

  void drain() {
    for (int64_t i; (i = next.fetch_add(1)) < count();) {
      copy_past_caches(pieces[i].to, pieces[i].from, pieces[i].bytes);
      if (done.fetch_add(1) + 1 == count()) done.notify_all();
    }
  }

  void wait() {
    for (int64_t seen; (seen = done.load()) < count();) done.wait(seen);
  }
};

class Helpers {
 public:
  explicit Helpers(int64_t threads) {
    for (int64_t i = 0; i < threads; ++i) std::thread([this] { serve(); }).detach();
  }

  void copy(std::shared_ptr<Job> job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(job);
    }
    changed_.notify_all();
    job->drain();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.erase(std::find(jobs_.begin(), jobs_.end(), job));
    }
    job->wait();
  }

 private:
  // The first job that has pieces left; nullptr while there is none.
  std::shared_ptr<Job> open() {
    for (const auto& job : jobs_) {
      if (job->next.load() < job->count()) return job;
    }
    return nullptr;
  }

  [[noreturn]] void serve() {
    for (;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return (job = open()) != nullptr; });
      }
      job->drain();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> jobs_;
};

}  // namespace

// Threads that help until the process ends, besides each caller of `vim_copy`.
extern "C" void* vim_copy_helpers(int64_t threads) { return new Helpers(threads); }

// `parts` runs of bytes, one behind the other, to `to`. From any thread.
extern "C" void vim_copy(void* helpers, char* to, const char* const* from, const int64_t* bytes,
                         int64_t parts) {
  auto job = std::make_shared<Job>();
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t at = 0; at < bytes[part]; at += kPiece, to += job->pieces.back().bytes) {
      job->pieces.push_back({to, from[part] + at, std::min(kPiece, bytes[part] - at)});
    }
  }
  static_cast<Helpers*>(helpers)->copy(std::move(job));
}
