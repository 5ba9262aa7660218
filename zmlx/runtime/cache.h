// zmlx/runtime/cache.h: what was made once and is kept on disk, by its key.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace zmlx {

/// `$XDG_CACHE_HOME/zmlx`, by default `~/.cache/zmlx`; empty where neither is known.
std::string cache_folder();

/// The bytes kept for `key`, or those that `make` returns, which are then kept. A folder that
/// cannot be written costs the next process the work again, nothing else.
std::string
cached(std::string_view extension, std::string_view key, const std::function<std::string()>& make);

} // namespace zmlx
