// Random bits of keyed noise, on a CPU: Threefry-2x32 with 20 rounds (Salmon et al., SC 2011, section 4.1), as JAX has it.
//
// Word i of a row is both halves of the block of counter (0, i) under the row's key, joined by xor: the bits of
// `jax.random.bits` with its partitionable Threefry, one for one. XLA's own code for it takes several times as long.

#include "block.h"

namespace {

constexpr int64_t kWords = 8192;             // of a task
constexpr int64_t kParallelWords = 1 << 15;  // below which one thread is as fast

inline Words RotateLeft(Words x, int by) { return (x << by) | (x >> (32 - by)); }

struct Cipher {
  Words left, right;

  void FourRounds(int first, int second, int third, int fourth) {
    for (const int by : {first, second, third, fourth}) {
      left += right;
      right = RotateLeft(right, by) ^ left;
    }
  }

  void AddKey(uint32_t to_left, uint32_t to_right) {
    left += to_left;
    right += to_right;
  }
};

inline Words Bits(uint32_t key0, uint32_t key1, Words counter) {
  const uint32_t key2 = key0 ^ key1 ^ 0x1BD11BDAu;
  Cipher block{Words{} + key0, counter + key1};
  block.FourRounds(13, 15, 26, 6);
  block.AddKey(key1, key2 + 1);
  block.FourRounds(17, 29, 16, 24);
  block.AddKey(key2, key0 + 2);
  block.FourRounds(13, 15, 26, 6);
  block.AddKey(key0, key1 + 3);
  block.FourRounds(17, 29, 16, 24);
  block.AddKey(key1, key2 + 4);
  block.FourRounds(13, 15, 26, 6);
  block.AddKey(key2, key0 + 5);
  return block.left ^ block.right;
}

ffi::Error Threefry(ffi::ThreadPool pool, ffi::Buffer<ffi::U32> keys, ffi::ResultBuffer<ffi::U32> bits) {
  const auto given = keys.dimensions(), wanted = bits->dimensions();
  if (given.size() != 2 || given[1] != 2 || wanted.size() != 2 || wanted[0] != given[0]) {
    return ffi::Error::InvalidArgument("threefry takes keys [rows, 2] and gives bits [rows, words]");
  }
  const int64_t rows = wanted[0], words = wanted[1], parts = (words + kWords - 1) / kWords;
  const int64_t threads = rows * words < kParallelWords ? 1 : pool.num_threads();
  Words lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  ForEach(pool, threads, rows * parts, [&](int64_t task) {
    const int64_t row = task / parts, begin = task % parts * kWords, end = std::min(words, begin + kWords);
    const uint32_t* key = keys.typed_data() + row * 2;
    uint32_t* to = bits->typed_data() + row * words;
    for (int64_t word = begin; word < end; word += kLanes) {
      const Words drawn = Bits(key[0], key[1], lanes + static_cast<uint32_t>(word));
      std::memcpy(to + word, &drawn, sizeof(uint32_t) * std::min<int64_t>(kLanes, end - word));
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(EagleJaxThreefry, Threefry,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Ret<ffi::Buffer<ffi::U32>>());
