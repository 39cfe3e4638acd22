// What the kernels share: a block of a matrix product that lives in registers, and threads that take tasks.
//
// Only compiler vector extensions are used (GCC, Clang): AVX-512, AVX2, SSE and NEON come from this one source.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kTile = 16;  // outputs side by side, as in packed.py

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

constexpr int kPerTile = kTile / kLanes;                             // vectors of one tile
constexpr int kWide = std::max(2, kPerTile);                         // of a wide block: two tiles where a vector is one
constexpr int kMostWide = (kRegisters - kWide - 1) / kWide;          // rows whose sums fit into registers
constexpr int kMostNarrow = (kRegisters - kPerTile - 1) / kPerTile;  // the same for a block of one tile
constexpr int64_t kAhead = 2048;                                     // bytes to prefetch ahead in each stream

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

inline Vector Load(const float* from) {
  Vector out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline Vector Load(const uint16_t* from) {  // bfloat16: the upper half of a float32
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Vector)(__builtin_convertvector(halves, Words) << 16);
}

inline void Store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

struct Strides {
  int64_t inputs;  // terms of each sum
  int64_t step;    // from one input of w to the next
  int64_t tile;    // from one tile of w to the next
  int64_t row;     // from one row of y to the next
};

// y[row, :] = (kApart: y[row, :] +) sum over k of x[row, k] * w[k, :] for `kRows` rows and `kVectors` vectors of outputs.
// x is [inputs, kRows], or with kApart [kRows, kApart]. Each sum is taken in the order of k, whatever the number of rows.
template <int kVectors, int kRows, int kApart, typename Weight>
void Block(const float* __restrict x, const Weight* __restrict w, float* __restrict y, Strides strides) {
  Vector sums[kRows][kVectors];
#pragma GCC unroll 32
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[row][v] = kApart ? Load(y + row * strides.row + v * kLanes) : Vector{};
  }
  for (int64_t k = 0; k < strides.inputs; ++k) {
    Vector weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Weight* from = w + (v / kPerTile) * strides.tile + k * strides.step + (v % kPerTile) * kLanes;
      weights[v] = Load(from);
      if (v % kPerTile == 0) __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
    }
#pragma GCC unroll 32
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[row][v] += weights[v] * (kApart ? x[row * kApart + k] : x[k * kRows + row]);
    }
  }
#pragma GCC unroll 32
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) Store(y + row * strides.row + v * kLanes, sums[row][v]);
  }
}

template <typename Weight>
using BlockFn = void (*)(const float*, const Weight*, float*, Strides);

template <int kVectors, int kApart, typename Weight, int... kRows>
BlockFn<Weight> PickFrom(int64_t rows, std::integer_sequence<int, kRows...>) {
  static constexpr BlockFn<Weight> blocks[] = {&Block<kVectors, kRows + 1, kApart, Weight>...};
  return blocks[rows - 1];
}

// The block of one tile for `rows` rows, at most kMostNarrow; with `wide` one of kWide vectors, at most kMostWide.
template <int kApart, typename Weight>
BlockFn<Weight> PickBlock(int64_t rows, bool wide) {
  if (wide) return PickFrom<kWide, kApart, Weight>(rows, std::make_integer_sequence<int, kMostWide>());
  return PickFrom<kPerTile, kApart, Weight>(rows, std::make_integer_sequence<int, kMostNarrow>());
}

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Runs task(0), ..., task(count - 1) on this thread and on others of the pool. Threads take tasks from a counter until
// none is left; the caller takes part and then waits for tasks that somebody has begun. It never waits for a thread to
// come: XLA runs independent calls at the same time, and two callers that waited for threads would each occupy the one
// that the other needs. A thread that comes late finds no task and touches nothing but the counter, which it shares.
inline void ForEach(ffi::ThreadPool& pool, int64_t threads, int64_t count, std::function<void(int64_t)> task) {
  struct Shared {
    std::function<void(int64_t)> task;
    int64_t count;
    std::atomic<int64_t> next{0}, done{0};
    void Work() {
      for (int64_t mine; (mine = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        task(mine);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  threads = std::min(threads, count);
  if (threads <= 1) {
    for (int64_t mine = 0; mine < count; ++mine) task(mine);
    return;
  }
  auto shared = std::make_shared<Shared>();
  shared->task = std::move(task);
  shared->count = count;
  for (int64_t thread = 1; thread < threads; ++thread) pool.Schedule([shared] { shared->Work(); });
  shared->Work();
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < 10000) {
      Pause();
    } else {
      std::this_thread::yield();  // whoever has the last task may need this core
    }
  }
}

}  // namespace
