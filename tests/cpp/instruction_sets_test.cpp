// tests/cpp/instruction_sets_test.cpp: every op on each instruction set that this CPU has, not just
// the best.
#include "zmlx/kernel/cpu/instruction_sets.h"

#include <fstream>
#include <iterator>
#include <string>

#include "op_testing.h"

namespace zmlx {
namespace {

using namespace testing;

/// The best instruction set again, however a test ends.
struct Restore {
  ~Restore() {
    cpu::use_instruction_set("");
  }
};

/// The kernel's outputs as arrays.
Arrays outputs_of(const Op& op, const Arrays& inputs, const Attrs& attrs, Team& team) {
  auto types = op.types(types_of(inputs), attrs);
  auto memory = run_kernel(op, inputs, attrs, team);
  Arrays out;
  for (size_t i = 0; i < types.size(); ++i) {
    mx::array bytes(
        reinterpret_cast<const uint8_t*>(memory[i].data()),
        {static_cast<int>(memory[i].size())},
        mx::uint8);
    auto values = mx::view(bytes, mlx_dtype(types[i].dtype));
    out.push_back(mx::reshape(values, mlx_shape(types[i].shape)));
  }
  return out;
}

TEST(InstructionSets, AllGiveEveryOpsReference) {
  Restore restore;
  Team team(2);
  for (auto& name : cpu::instruction_sets()) {
    cpu::use_instruction_set(name);
    for (auto* op : all_ops()) {
      for (auto& example : op->cases) {
        for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
          SCOPED_TRACE(name + ", " + op->name + ", " + example.name);
          auto inputs = example.inputs(dtype);
          auto in = types_of(inputs);
          auto types = op->types(in, example.attrs);
          const bool ordered = std::all_of(types.begin(), types.end(), [](auto& type) {
            return is_floating(type.dtype); // experts may come in any order
          });
          if (!ordered || !op->cpu || !op->cpu(in, types, example.attrs).run) {
            continue;
          }
          auto got = outputs_of(*op, inputs, example.attrs, team);
          auto want = op->reference(in_float32(inputs), example.attrs);
          for (size_t i = 0; i < got.size(); ++i) {
            expect_close(got[i], want[i], tolerance_of(dtype));
          }
        }
      }
    }
  }
}

TEST(InstructionSets, AreNamedAndAnUnknownOneIsRefused) {
  Restore restore;
  auto names = cpu::instruction_sets();
  ASSERT_FALSE(names.empty());
  cpu::use_instruction_set(names.back());
  EXPECT_TRUE(cpu::is_restricted());
  EXPECT_EQ(
      message_of([] { cpu::use_instruction_set("MMX"); }),
      "[use_instruction_set] this CPU or build has no MMX.");
  cpu::use_instruction_set("");
  EXPECT_FALSE(cpu::is_restricted());
  EXPECT_EQ(cpu::instruction_sets(), names);
}

TEST(InstructionSets, HaveOnlyTilesThatTheProcessorHas) {
  std::ifstream file("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto has = [&](const char* flag) { return text.find(flag) != std::string::npos; };
  EXPECT_LE(cpu::tiles().int8, has("amx_int8"));
  EXPECT_LE(cpu::tiles().bf16, has("amx_bf16"));
  EXPECT_EQ(&cpu::tiles(), &cpu::tiles());
}

} // namespace
} // namespace zmlx
