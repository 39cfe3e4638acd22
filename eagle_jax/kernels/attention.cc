// Attention of new tokens over a cached prefix and over each other, on a CPU.
//
// One task is a row of the batch, a key/value head, whose keys its queries share (T tokens x G query heads), and all of
// the queries or, where tasks would be too few for the threads to end together, a part of them. Keys are taken 64 at a time and transposed once, so that scores and weighted sums are the blocks of block.h; a running
// softmax (FlashAttention, arXiv 2205.14135, section 3.1) joins them. A query's result depends on no other query.
//
//   keys 64 x D -> tiles [D, 16]      scores [rows, 64] = q tiles      p = exp(scores - top)      sum += p values

#include "block.h"

namespace {

constexpr int64_t kSlots = 64;       // keys taken at a time
constexpr float kMasked = -1e30f;    // score of a key that a query may not see
constexpr int64_t kParallelWork = 1 << 18;  // multiply-adds below which one thread is as fast
constexpr int64_t kTasksPerThread = 4;       // so that they end together
constexpr int64_t kLeastQueries = 4;         // of a part: each transposes the keys for itself

// exp(x) for x <= 0 to a few units of the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes).
inline Vector Exp(Vector x) {
  x = x < -87.0f ? Vector{} - 87.0f : x;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // n in the low bits
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * (Vector)(((Words)shifted << 23) + 0x3f800000u);
}

struct Shape {
  int64_t queries, heads, kv_heads, size, new_tokens, slots;  // T, H, K, D, M, S
  int64_t group() const { return heads / kv_heads; }
  int64_t rows() const { return queries * group(); }
  int64_t padded() const { return (size + kTile - 1) / kTile * kTile; }
};

typedef float Four __attribute__((vector_size(16)));

// Keys [count, apart] as tiles [D, 16]; what stands in a tile past `count` is the last key once more. Four by four in
// registers: element by element, compilers make scatters of it, which cost more than the attention itself.
void TransposeKeys(const float* keys, int64_t apart, int64_t count, int64_t size, float* out) {
  for (int64_t key = 0; key < (count + kTile - 1) / kTile * kTile; key += 4) {
    const float* from[4];
    for (int i = 0; i < 4; ++i) from[i] = keys + std::min(key + i, count - 1) * apart;
    float* to = out + key / kTile * kTile * size + key % kTile;
    int64_t d = 0;
    for (; d + 4 <= size; d += 4) {
      Four in[4];
      for (int i = 0; i < 4; ++i) std::memcpy(&in[i], from[i] + d, sizeof(Four));
      for (int j = 0; j < 4; ++j) {
        const Four column = {in[0][j], in[1][j], in[2][j], in[3][j]};
        std::memcpy(to + (d + j) * kTile, &column, sizeof column);
      }
    }
    for (; d < size; ++d) {
      for (int i = 0; i < 4; ++i) to[d * kTile + i] = from[i][d];
    }
  }
}

// The queries of one row of the batch and one key/value head, and their softmax under way.
class Running {
 public:
  Running(const Shape& shape, const float* queries, int64_t head)
      : shape_(shape), head_(head), queries_(shape.rows() * shape.size), top_(shape.rows(), kMasked),
        total_(shape.rows()), mixed_(shape.rows() * shape.padded()), keys_(kSlots * shape.size) {
    for (int64_t row = 0; row < shape.rows(); ++row) {
      const int64_t first = row / kMostNarrow * kMostNarrow;
      const int64_t width = std::min<int64_t>(kMostNarrow, shape.rows() - first);
      const float* from = queries + Place(row);
      float* to = queries_.data() + first * shape.size + row - first;
      for (int64_t d = 0; d < shape.size; ++d) to[d * width] = from[d];
    }
  }

  // Take `count` keys and values. With `limited`, a key counts only where sees(query, key).
  template <typename Sees>
  void Add(const float* keys, const float* values, int64_t count, bool limited, Sees sees) {
    const int64_t tiles = (count + kTile - 1) / kTile;
    int64_t apart = shape_.kv_heads * shape_.size;
    TransposeKeys(keys, apart, count, shape_.size, keys_.data());
    if (shape_.size % kTile) {  // a vector would read the next head's values
      values_.assign(count * shape_.padded(), 0.0f);
      for (int64_t key = 0; key < count; ++key) {
        std::copy_n(values + key * apart, shape_.size, values_.data() + key * shape_.padded());
      }
      values = values_.data(), apart = shape_.padded();
    }
    for (int64_t first = 0; first < shape_.rows(); first += kMostNarrow) {
      const int64_t width = std::min<int64_t>(kMostNarrow, shape_.rows() - first);
      if (limited && !AnySees(first / shape_.group(), (first + width - 1) / shape_.group(), count, sees)) continue;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        PickBlock<0, float>(width, false)(queries_.data() + first * shape_.size,
                                          keys_.data() + tile * kTile * shape_.size, scores_ + tile * kTile,
                                          {shape_.size, kTile, 0, kSlots});
      }
      for (int64_t row = 0; row < width; ++row) {
        float* scores = scores_ + row * kSlots;
        for (int64_t key = limited ? 0 : count; key < tiles * kTile; ++key) {
          if (key >= count || !sees((first + row) / shape_.group(), key)) scores[key] = kMasked;
        }
        Weigh(first + row, scores, tiles * kTile);
      }
      float* mixed = mixed_.data() + first * shape_.padded();
      for (int64_t d = 0; d < shape_.padded(); d += kTile) {
        PickBlock<kSlots, float>(width, false)(scores_, values + d, mixed + d, {count, apart, 0, shape_.padded()});
      }
    }
  }

  // Where this head's part of query [T, H, D] number `row` begins.
  int64_t Place(int64_t row) const {
    return (row / shape_.group() * shape_.heads + head_ * shape_.group() + row % shape_.group()) * shape_.size;
  }

  // The outputs [T, H, D].
  void Write(float* out) const {
    for (int64_t row = 0; row < shape_.rows(); ++row) {
      for (int64_t d = 0; d < shape_.size; ++d) {
        out[Place(row) + d] = mixed_[row * shape_.padded() + d] / total_[row];
      }
    }
  }

 private:
  // Whether one of the queries `first` to `last` sees one of `count` keys: half of a long text does not, nor does
  // any document see another one.
  template <typename Sees>
  static bool AnySees(int64_t first, int64_t last, int64_t count, Sees sees) {
    for (int64_t query = first; query <= last; ++query) {
      for (int64_t key = 0; key < count; ++key) {
        if (sees(query, key)) return true;
      }
    }
    return false;
  }

  // From scores to weights, in place, with what was summed so far scaled to the new top.
  void Weigh(int64_t row, float* scores, int64_t count) {
    Vector most = Vector{} + top_[row], sum{};
    for (int64_t key = 0; key < count; key += kLanes) {
      const Vector score = Load(scores + key);
      most = score > most ? score : most;
    }
    float top = most[0], added = 0.0f;
    for (int lane = 1; lane < kLanes; ++lane) top = std::max(top, most[lane]);
    for (int64_t key = 0; key < count; key += kLanes) {
      const Vector score = Load(scores + key);
      const Vector weight = score > kMasked / 2 ? Exp(score - top) : Vector{};
      sum += weight;
      Store(scores + key, weight);
    }
    for (int lane = 0; lane < kLanes; ++lane) added += sum[lane];
    if (top != top_[row]) {
      const Vector shrink = Exp(Vector{} + std::max(top_[row] - top, -87.0f));
      total_[row] *= shrink[0];
      float* mixed = mixed_.data() + row * shape_.padded();
      for (int64_t d = 0; d < shape_.padded(); d += kLanes) Store(mixed + d, Load(mixed + d) * shrink);
      top_[row] = top;
    }
    total_[row] += added;
  }

  Shape shape_;
  int64_t head_;
  std::vector<float> queries_;  // [groups of rows][D][rows of the group]
  std::vector<float> top_, total_, mixed_, keys_, values_;
  alignas(64) float scores_[kMostNarrow * kSlots];
};

ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> queries, ffi::Buffer<ffi::F32> keys,
                     ffi::Buffer<ffi::F32> values, ffi::Buffer<ffi::PRED> mask, ffi::Buffer<ffi::F32> prefix_keys,
                     ffi::Buffer<ffi::F32> prefix_values, ffi::Buffer<ffi::S32> lengths, ffi::Buffer<ffi::S32> positions,
                     ffi::Buffer<ffi::S32> key_positions, int64_t window, ffi::ResultBuffer<ffi::F32> out) {
  const auto q = queries.dimensions(), k = keys.dimensions(), p = prefix_keys.dimensions();
  const Shape all{q[1], q[2], k[2], q[3], k[1], p[1]};
  const int64_t batch = q[0], each = all.kv_heads * all.size;
  int64_t work = 0;
  for (int64_t row = 0; row < batch; ++row) work += lengths.typed_data()[row] + all.new_tokens;
  work *= all.queries * all.heads * all.size * 2;
  const int64_t threads = work < kParallelWork ? 1 : pool.num_threads(), tasks = batch * all.kv_heads;
  const int64_t wanted = threads > 1 ? (kTasksPerThread * threads + tasks - 1) / tasks : 1;
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, all.queries / kLeastQueries));
  ForEach(pool, threads, tasks * parts, [&](int64_t task) {
    const int64_t row = task / parts / all.kv_heads, head = task / parts % all.kv_heads, part = task % parts;
    const int64_t begin = row * all.queries + part * all.queries / parts;  // of its queries, among those of all rows
    Shape shape = all;
    shape.queries = row * all.queries + (part + 1) * all.queries / parts - begin;
    const int32_t* at = positions.typed_data() + begin;
    const int32_t* key_at = key_positions.typed_data() + row * shape.new_tokens;
    const bool* seen = mask.typed_data() + begin * shape.new_tokens;
    Running running(shape, queries.typed_data() + begin * shape.heads * shape.size, head);
    int64_t oldest = 0;  // slot that some query sees
    if (window > 0) oldest = std::max<int64_t>(0, *std::min_element(at, at + shape.queries) - window + 1);
    const int64_t length = std::min<int64_t>(lengths.typed_data()[row], shape.slots);
    for (int64_t slot = oldest / kSlots * kSlots; slot < length; slot += kSlots) {
      const int64_t offset = (row * shape.slots + slot) * each + head * shape.size;
      running.Add(prefix_keys.typed_data() + offset, prefix_values.typed_data() + offset,
                  std::min(kSlots, length - slot), window > 0,
                  [&](int64_t query, int64_t key) { return at[query] - (slot + key) < window; });
    }
    for (int64_t first = 0; first < shape.new_tokens; first += kSlots) {
      const int64_t offset = (row * shape.new_tokens + first) * each + head * shape.size;
      running.Add(keys.typed_data() + offset, values.typed_data() + offset,
                  std::min(kSlots, shape.new_tokens - first), true, [&](int64_t query, int64_t key) {
                    return seen[query * shape.new_tokens + first + key] &&
                           (window == 0 || at[query] - key_at[first + key] < window);
                  });
    }
    running.Write(out->typed_data() + begin * shape.heads * shape.size);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(EagleJaxAttention, Attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("window")
                                  .Ret<ffi::Buffer<ffi::F32>>());
