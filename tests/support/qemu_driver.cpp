// Runs one operation of cpu.cpp on arguments from standard input and writes its outputs: so that
// code for another kind of processor can be tested through an emulator (qemu_kernels.py).
#include <cstdio>
#include <cstdlib>

#include "cpu.cpp"

namespace {

int64_t integer() {
  int64_t value;
  if (fread(&value, sizeof value, 1, stdin) != 1) exit(3);
  return value;
}

// An array with its length before it; length -1 is a null pointer.
float* array() {
  const int64_t count = integer();
  if (count < 0) return nullptr;
  float* values = static_cast<float*>(aligned_alloc(64, (count * sizeof(float) / 64 + 1) * 64));
  if (fread(values, sizeof(float), count, stdin) != size_t(count)) exit(3);
  return values;
}

void give(const float* values, int64_t count) { fwrite(values, sizeof(float), count, stdout); }

ScanDirection direction() {
  ScanDirection d;
  d.u = array(), d.step = array(), d.step_weight = array(), d.delta_bias = array();
  d.A_log = array(), d.B = array(), d.C = array(), d.D = array();
  d.u_batch = integer(), d.u_token = integer(), d.step_batch = integer();
  d.step_token = integer(), d.b_batch = integer(), d.b_token = integer();
  d.c_batch = integer(), d.c_token = integer();
  return d;
}

void scan() {
  ScanArguments s;
  s.forward = direction(), s.backward = direction();
  s.z = array(), s.z_batch = integer(), s.z_token = integer();
  s.batch = integer(), s.length = integer(), s.channels = integer(), s.states = integer();
  s.rank = integer(), s.threads = integer();
  const int64_t count = s.batch * s.length * s.channels;
  std::vector<float> out(count);
  s.out = out.data();
  vim_scan(&s);
  give(s.out, count);
}

void conv() {
  ConvArguments c;
  c.x = array(), c.weight = array(), c.bias = array();
  c.x_batch = integer(), c.x_token = integer();
  c.batch = integer(), c.length = integer(), c.channels = integer(), c.taps = integer();
  c.reverse = integer(), c.threads = integer();
  const int64_t count = c.batch * c.length * c.channels;
  std::vector<float> out(count);
  c.out = out.data();
  vim_conv_silu(&c);
  give(c.out, count);
}

void norm() {
  NormArguments n;
  n.hidden = array(), n.residual = array(), n.weight = array();
  n.rows = integer(), n.channels = integer();
  const float* eps = array();
  n.eps = *eps, n.threads = integer();
  const int64_t count = n.rows * n.channels;
  std::vector<float> normed(count), stream(count);
  n.normed = normed.data(), n.stream = stream.data();
  vim_add_norm(&n);
  give(n.normed, count);
  give(n.stream, count);
}

}  // namespace

int main() {
  switch (integer()) {
    case 0: scan(); break;
    case 1: conv(); break;
    case 2: norm(); break;
    default: return 2;
  }
  return 0;
}
