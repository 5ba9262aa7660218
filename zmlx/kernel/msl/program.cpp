// zmlx/kernel/msl/program.cpp: signatures around a body, and what each machine's program needs.
#include "zmlx/kernel/msl/program.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "zmlx/kernel/cuda/source.h"
#include "zmlx/kernel/msl/rewrite.h"
#include "zmlx/kernel/msl/tokens.h"
#include "zmlx/runtime/error.h"

namespace zmlx::msl {
namespace {

constexpr const char* msl_names[] = {
    "bool",
    "uint8_t",
    "uint16_t",
    "uint32_t",
    "uint64_t",
    "int8_t",
    "int16_t",
    "int32_t",
    "int64_t",
    "float16_t",
    "bfloat16_t",
    "float"};

std::string name_in_msl(Dtype dtype) {
  return msl_names[static_cast<size_t>(dtype)];
}

/// A thread's attribute, and what it is in terms of Place.
struct Attribute {
  const char* name;
  const char* type;
  const char* value;
};
constexpr Attribute attributes[] = {
    {"dispatch_quadgroups_per_threadgroup",
     "uint",
     "(p.nominal.x * p.nominal.y * p.nominal.z + 3) / 4"},
    {"dispatch_simdgroups_per_threadgroup",
     "uint",
     "(p.nominal.x * p.nominal.y * p.nominal.z + 31) / 32"},
    {"dispatch_threads_per_threadgroup", "uint3", "p.nominal"},
    {"grid_origin", "uint3", "uint3(0)"},
    {"grid_size", "uint3", "p.grid"},
    {"quadgroup_index_in_threadgroup", "uint", "p.index() / 4"},
    {"quadgroups_per_threadgroup", "uint", "(p.count() + 3) / 4"},
    {"simdgroup_index_in_threadgroup", "uint", "p.index() / 32"},
    {"simdgroups_per_threadgroup", "uint", "(p.count() + 31) / 32"},
    {"thread_execution_width", "uint", "32"},
    {"thread_index_in_quadgroup", "uint", "p.index() % 4"},
    {"thread_index_in_simdgroup", "uint", "p.index() % 32"},
    {"thread_index_in_threadgroup", "uint", "p.index()"},
    {"thread_position_in_grid", "uint3", "position"},
    {"thread_position_in_threadgroup", "uint3", "p.inside"},
    {"threadgroup_position_in_grid", "uint3", "p.group"},
    {"threadgroups_per_grid", "uint3", "p.groups"},
    {"threads_per_grid", "uint3", "p.grid"},
    {"threads_per_simdgroup", "uint", "32"},
    {"threads_per_threadgroup", "uint3", "p.actual"},
};

std::string joined(const std::vector<std::string>& parts, const char* between) {
  std::string out;
  for (auto& part : parts) {
    out += (out.empty() ? "" : between) + part;
  }
  return out;
}

/// Files of zmlx/kernel, one behind the other.
std::string embedded(const std::vector<std::string>& files) {
  std::string text;
  for (auto& file : files) {
    auto* row = source_texts;
    while (row->path && "zmlx/kernel/" + file != row->path) {
      ++row;
    }
    if (!row->path) {
      fail("metal_kernel", "the library lacks the text ", file, ".");
    }
    text += row->text;
  }
  return text;
}

void check_names(const Source& source, const Types& types) {
  auto* name = source.name.c_str();
  std::set<std::string> seen;
  auto check = [&](const std::string& word, const char* what) {
    bool letters = !word.empty() && !std::isdigit(static_cast<unsigned char>(word[0])) &&
        std::all_of(word.begin(), word.end(), [](char c) {
          return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
        });
    if (!letters) {
      fail(name, what, " must be names as in C but got '", word, "'.");
    }
    if (!seen.insert(word).second) {
      fail(name, "'", word, "' names two things.");
    }
  };
  for (auto& word : source.inputs) {
    check(word, "input_names");
  }
  for (auto& word : source.outputs) {
    check(word, "output_names");
  }
  for (auto& [word, value] : types.arguments) {
    check(word, "template arguments");
  }
  if (source.outputs.empty()) {
    fail(name, "must have at least one output.");
  }
  for (size_t i = 0; source.atomic_outputs && i < types.outputs.size(); ++i) {
    if (size_of(types.outputs[i]) != 4 && size_of(types.outputs[i]) != 8) {
      fail(
          name,
          "atomic_outputs must have 32 or 64 bits but ",
          source.outputs[i],
          " is ",
          name_of(types.outputs[i]),
          ".");
    }
  }
}

struct Signature {
  std::string text; // "template <typename T> void zmlx_body(...)", before the body
  std::string call; // "zmlx_body<float>"
};

/// The function around the body. `metal` keeps address spaces and attributes.
Signature signature(
    const Source& source,
    const Types& types,
    const std::vector<View>& views,
    const std::string& name,
    bool metal) {
  std::vector<std::string> parameters;
  auto number = [&](const std::string& text) {
    auto slot = " [[buffer(" + std::to_string(parameters.size()) + ")]]";
    parameters.push_back("\n  " + text + (metal ? slot : ""));
  };
  std::string device = metal ? "device " : "";
  std::string constant = metal ? "constant " : "";
  for (size_t i = 0; i < types.inputs.size(); ++i) {
    auto& in = source.inputs[i];
    auto type = name_in_msl(types.inputs[i].dtype);
    number(
        "const " + (types.inputs[i].rank ? device : constant) + type +
        (types.inputs[i].rank ? "* " : "& ") + in);
    if (views[i].shape) {
      number("const " + constant + "int* " + in + "_shape");
    }
    if (views[i].strides) {
      number("const " + constant + "int64_t* " + in + "_strides");
    }
    if (views[i].rank) {
      number("const " + constant + "int& " + in + "_ndim");
    }
  }
  for (size_t i = 0; i < types.outputs.size(); ++i) {
    auto type = name_in_msl(types.outputs[i]);
    number(
        device + (source.atomic_outputs ? "atomic<" + type + ">" : type) + "* " +
        source.outputs[i]);
  }
  for (auto& row : attributes) {
    if (source.body.find(row.name) != std::string::npos) {
      parameters.push_back(
          std::string("\n  ") + row.type + " " + row.name +
          (metal ? " [[" + std::string(row.name) + "]]" : ""));
    }
  }
  std::vector<std::string> kinds;
  std::vector<std::string> values;
  for (auto& [word, value] : types.arguments) {
    if (auto* dtype = std::get_if<Dtype>(&value)) {
      kinds.push_back("typename " + word);
      values.push_back(name_in_msl(*dtype));
    } else if (auto* truth = std::get_if<bool>(&value)) {
      kinds.push_back("bool " + word);
      values.emplace_back(*truth ? "true" : "false");
    } else {
      kinds.push_back("int " + word);
      values.push_back(std::to_string(std::get<int64_t>(value)));
    }
  }
  Signature out;
  if (!kinds.empty()) {
    out.text = "template <" + joined(kinds, ", ") + ">\n";
    out.call = "<" + joined(values, ", ") + ">";
  }
  out.call = name + out.call;
  out.text += (metal ? "[[kernel]] void " : "zmlx_inline void ") + name + "(" +
      joined(parameters, ",") + ") {\n";
  return out;
}

/// Arguments of the body, where `input` and so on write what stands for each.
template <typename Write>
std::string arguments_of(
    const Source& source,
    const Types& types,
    const std::vector<View>& views,
    Write write) {
  std::vector<std::string> out;
  for (size_t i = 0; i < types.inputs.size(); ++i) {
    auto type = "const " + name_in_msl(types.inputs[i].dtype) + "*";
    out.push_back((types.inputs[i].rank ? "" : "*") + write("in", type, i));
    if (views[i].shape) {
      out.push_back(write("shape", "", i));
    }
    if (views[i].strides) {
      out.push_back(write("strides", "", i));
    }
    if (views[i].rank) {
      out.push_back(write("rank", "", i));
    }
  }
  for (size_t i = 0; i < types.outputs.size(); ++i) {
    auto type = name_in_msl(types.outputs[i]);
    out.push_back(write("out", (source.atomic_outputs ? "atomic<" + type + ">" : type) + "*", i));
  }
  for (auto& row : attributes) {
    if (source.body.find(row.name) != std::string::npos) {
      out.emplace_back(row.value);
    }
  }
  return joined(out, ",\n      ");
}

std::string swizzle_list(const std::set<std::string>& names) {
  std::string out = "#define zmlx_swizzles";
  for (auto& name : names) {
    out += " zmlx_swizzle_" + std::to_string(name.size()) + "(" + name;
    for (char c : name) {
      out += std::string(", ") + c;
    }
    out += ")";
  }
  return out + "\n";
}

std::string cuda_entry(
    const Source& source,
    const Types& types,
    const std::vector<View>& views,
    const std::string& call) {
  std::string parameters = "Extent gx, Extent gy, Extent gz, Extent tx, Extent ty, Extent tz";
  std::string locals;
  for (size_t i = 0; i < types.inputs.size(); ++i) {
    auto n = std::to_string(i);
    parameters += ", Pointer in" + n;
    std::vector<std::string> shape;
    std::vector<std::string> strides;
    for (int a = 0; a < types.inputs[i].rank; ++a) {
      auto place = n + "_" + std::to_string(a);
      if (views[i].shape) {
        parameters += ", Extent d" + place;
        shape.push_back("int(d" + place + ".value)");
      }
      if (views[i].strides) {
        parameters += ", Extent s" + place;
        strides.push_back("s" + place + ".value");
      }
    }
    if (views[i].shape) {
      locals += "  const int shape" + n + "[] = {" + joined(shape, ", ") + "};\n";
    }
    if (views[i].strides) {
      locals += "  const int64_t strides" + n + "[] = {" + joined(strides, ", ") + "};\n";
    }
  }
  for (size_t i = 0; i < types.outputs.size(); ++i) {
    parameters += ", Pointer out" + std::to_string(i);
  }
  auto arguments = arguments_of(
      source, types, views, [&](const std::string& what, const std::string& type, size_t i) {
        auto n = std::to_string(i);
        return what == "rank" ? std::to_string(types.inputs[i].rank)
            : type.empty()    ? what + n
                              : "static_cast<" + type + ">(" + what + n + ".address)";
      });
  return "extern \"C\" __global__ void __launch_bounds__(1024) zmlx_kernel(" + parameters +
      ") {\n  Place p;\n"
      "  if (!p.find(uint3(gx.value, gy.value, gz.value), uint3(tx.value, ty.value, tz.value))) {\n"
      "    return;\n  }\n  const uint3 position = p.position();\n" +
      locals + "  zmlx_user::" + call + "(\n      " + arguments + ");\n}\n";
}

} // namespace

Program program(const Source& source, const Types& types) {
  check_names(source, types);
  Program out;
  for (size_t i = 0; i < types.inputs.size(); ++i) {
    bool array = types.inputs[i].rank > 0;
    auto used = [&](const char* what) {
      return array && source.body.find(source.inputs[i] + what) != std::string::npos;
    };
    out.views.push_back({used("_shape"), used("_strides"), used("_ndim")});
  }
  bool small = names_small_floats(source.body) || names_small_floats(source.header);
  auto is_small = [](Dtype d) { return d == Dtype::f16 || d == Dtype::bf16; };
  for (auto& in : types.inputs) {
    small = small || is_small(in.dtype);
  }
  for (auto dtype : types.outputs) {
    small = small || is_small(dtype);
  }
  for (auto& [name, value] : types.arguments) {
    small = small || (std::holds_alternative<Dtype>(value) && is_small(std::get<Dtype>(value)));
  }
  Needs needs;
  std::string header;
  std::string body;
  const std::string* text = &source.header;
  try {
    header = rewritten(source.header, false, small, needs);
    text = &source.body;
    body = rewritten(source.body, true, small, needs);
  } catch (Mistake& mistake) {
    auto* part = text == &source.body ? "source" : "header";
    fail(source.name.c_str(), shown(*text, part, mistake.place, mistake.what));
  }
  out.together = needs.together;
  auto has_text = [&](const char* text) {
    return (source.header + source.body).find(text) != std::string::npos;
  };
  bool floats = has_text("atomic_float") || has_text("atomic<float>");
  for (auto dtype : types.outputs) {
    floats = floats || (source.atomic_outputs && dtype == Dtype::f32);
  }
  out.in_order = floats && has_text("atomic_fetch_");

  auto metal = signature(source, types, out.views, "custom_kernel_" + source.name, true);
  out.metal = source.header + metal.text + source.body + "\n}\n";

  auto ours = signature(source, types, out.views, "zmlx_body", false);
  auto swizzles = swizzle_list(needs.swizzles);
  auto user = "namespace zmlx_user {\nusing namespace metal;\n#line 1 \"zmlx_header\"\n" + header +
      "\n" + ours.text + "#line 1 \"zmlx_source\"\n" + body +
      "\n}\n} // namespace zmlx_user\n#line 1 \"zmlx_generated\"\n";

  auto arguments = arguments_of(
      source, types, out.views, [](const std::string& what, const std::string& type, size_t i) {
        auto n = "[" + std::to_string(i) + "]";
        return what == "shape"  ? "l.shapes" + n
            : what == "strides" ? "l.strides" + n
            : what == "rank"    ? "l.ranks" + n
                                : "static_cast<" + type + ">(l." + what + n + ")";
      });
  out.cpp = "namespace zmlx_math {\n" + embedded({"lang/math_cpp.h", "lang/math.h"}) + "}\n" +
      embedded({"msl/library/host_switch.h"}) + swizzles + "namespace {\nnamespace metal {\n" +
      embedded(
                {"msl/library/host.h",
                 "msl/library/types.h",
                 "msl/library/vectors.h",
                 "msl/library/functions.h",
                 "msl/library/integers.h",
                 "msl/library/host_threads.h",
                 "msl/library/groups.h"}) +
      user +
      "struct Body {\n  const Launch& l;\n"
      "  zmlx_inline void operator()(const Place& p, uint3 position) const {\n    zmlx_user::" +
      ours.call + "(\n      " + arguments +
      ");\n  }\n};\n} // namespace metal\n} // namespace\n"
      "extern \"C\" void zmlx_run(const metal::Launch* l, long begin, long end) {\n"
      "  metal::zmlx_run_groups<" +
      (out.together ? "true" : "false") + ">(*l, begin, end, metal::Body{*l});\n}\n";
  out.cuda = swizzles + "namespace metal {\n" +
      embedded(
                 {"msl/library/cuda.h",
                  "msl/library/types.h",
                  "msl/library/vectors.h",
                  "msl/library/functions.h",
                  "msl/library/integers.h",
                  "msl/library/cuda_threads.h",
                  "msl/library/groups.h"}) +
      user + cuda_entry(source, types, out.views, ours.call) + "} // namespace metal\n";
  return out;
}

} // namespace zmlx::msl
