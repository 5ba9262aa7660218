# embed_texts.cmake: writes `output`, a C++ file with the texts of `files`, which are relative to `root`.
set(rows "")
foreach(file ${files})
  file(READ ${root}/${file} text)
  # A string literal has a length limit, so each line is one; adjacent literals are joined.
  string(REPLACE "\\" "\\\\" text "${text}")
  string(REPLACE "\"" "\\\"" text "${text}")
  string(REPLACE "\n" "\\n\"\n    \"" text "${text}")
  string(APPEND rows "    {\"${file}\",\n    \"${text}\"},\n")
endforeach()
file(WRITE ${output} "#include \"zmlx/kernel/cuda/source.h\"

namespace zmlx {

const SourceText source_texts[] = {
${rows}    {nullptr, nullptr}};

} // namespace zmlx
")
