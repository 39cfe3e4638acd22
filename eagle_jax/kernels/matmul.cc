// y = x W for few rows x, on a CPU: every weight is read once for up to a dozen rows.
//
// W [K, N] arrives packed as [N / 16, K, 16]: sixteen outputs side by side in a tile, all inputs of them in a row, so
// that a tile is one stream through memory. Tiles are float32 or bfloat16; sums are float32, in the order of k whatever
// the number of rows, so that a row's result does not depend on its company.
//
//   for two tiles at a time, for k = 0 .. K-1:          sums stay in registers: rows x 2 vectors
//       load w[k, 0:16] of both tiles                   x is transposed, [K, rows], so that a k reads one line
//       sum[row] += x[k, row] * w[k, :]                 (a scalar, broadcast)

#include "block.h"

namespace {

constexpr int64_t kParallel = 100000;  // weights below which a second thread starts too late to help
constexpr int64_t kChunksPerThread = 4;

// How the rows are cut: into groups of `size` (the last may be smaller), each the work of one block.
struct Plan {
  int64_t rows, size;
  bool wide;  // two tiles a block, which halves the loads of x, where so many sums fit

  explicit Plan(int64_t rows) : rows(rows) {
    wide = kPerTile == kWide || rows <= kMostWide || rows > kMostNarrow;
    const int64_t most = wide ? kMostWide : kMostNarrow;
    const int64_t groups = (rows + most - 1) / most;
    size = (rows + groups - 1) / groups;
  }
};

// x [rows, K] as [groups][K][size].
std::vector<float> Transpose(const float* x, const Plan& plan, int64_t inputs) {
  std::vector<float> out(plan.rows * inputs);
  float* to = out.data();
  for (int64_t first = 0; first < plan.rows; first += plan.size) {
    const int64_t size = std::min(plan.size, plan.rows - first);
    for (int64_t row = 0; row < size; ++row) {
      const float* from = x + (first + row) * inputs;
      for (int64_t k = 0; k < inputs; ++k) to[k * size + row] = from[k];
    }
    to += size * inputs;
  }
  return out;
}

// Tiles `begin` to `end` of all rows; `x` as `Transpose` leaves it.
template <typename Weight>
void Tiles(const Plan& plan, const float* x, const Weight* w, float* y, int64_t inputs, int64_t tiles, int64_t begin,
           int64_t end) {
  const int64_t step = plan.wide ? kWide / kPerTile : 1;
  const Strides strides{inputs, kTile, inputs * kTile, tiles * kTile};
  for (int64_t tile = begin; tile < end;) {
    const int64_t taken = std::min(step, end - tile);  // one is left over where their number is odd
    for (int64_t first = 0; first < plan.rows; first += plan.size) {
      const int64_t size = std::min(plan.size, plan.rows - first);
      auto block = PickBlock<0, Weight>(size, plan.wide && taken == step);
      block(x + first * inputs, w + tile * strides.tile, y + first * strides.row + tile * kTile, strides);
    }
    tile += taken;
  }
}

template <typename Weight>
void Multiply(ffi::ThreadPool& pool, const float* x, const Weight* w, float* y, int64_t rows, int64_t inputs,
              int64_t tiles) {
  const Plan plan(rows);
  std::vector<float> transposed;
  if (rows > 1) {
    transposed = Transpose(x, plan, inputs);
    x = transposed.data();
  }
  int64_t threads = tiles * kTile * inputs < kParallel ? 1 : pool.num_threads();
  const int64_t pairs = (tiles + 1) / 2;
  const int64_t chunk = threads > 1 ? 2 * std::max<int64_t>(1, pairs / (threads * kChunksPerThread)) : tiles;
  ForEach(pool, threads, (tiles + chunk - 1) / chunk, [&](int64_t mine) {
    Tiles(plan, x, w, y, inputs, tiles, mine * chunk, std::min(tiles, (mine + 1) * chunk));
  });
}

ffi::Error PackedMatmul(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w, ffi::ResultBuffer<ffi::F32> y) {
  const auto shape = w.dimensions(), given = x.dimensions(), wanted = y->dimensions();
  if (shape.size() != 3 || given.size() != 2 || wanted.size() != 2 || shape[2] != kTile || given[1] != shape[1] ||
      wanted[0] != given[0] || wanted[1] != shape[0] * kTile) {
    return ffi::Error::InvalidArgument("packed_matmul takes x [M, K] and w [tiles, K, 16], and gives [M, tiles * 16]");
  }
  if (given[0] == 0 || shape[0] == 0) return ffi::Error::Success();
  if (w.element_type() == ffi::F32) {
    Multiply(pool, x.typed_data(), static_cast<const float*>(w.untyped_data()), y->typed_data(), given[0], given[1],
             shape[0]);
  } else if (w.element_type() == ffi::U16) {
    Multiply(pool, x.typed_data(), static_cast<const uint16_t*>(w.untyped_data()), y->typed_data(), given[0], given[1],
             shape[0]);
  } else {
    return ffi::Error::InvalidArgument("packed_matmul takes weights of float32, or of bfloat16 as uint16");
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(EagleJaxPackedMatmul, PackedMatmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
