#include <charconv>

#include "sentry/fs/tmpfs/tmpfs_inode.h"

namespace sentry {
namespace {

// A number with an optional suffix, or, of `percent_of`, a percentage (Linux: memparse).
bool ParseSize(std::string_view text, uint64_t percent_of, uint64_t* out) {
  uint64_t n;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc()) return false;
  std::string_view suffix(end, text.data() + text.size() - end);
  if (suffix.empty()) return *out = n, true;
  if (suffix.size() != 1) return false;
  int shift = 0;
  switch (suffix[0]) {
    case '%':
      if (percent_of == 0 || n > 10000) return false;
      return *out = percent_of / 100 * n, true;
    case 'k':
    case 'K':
      shift = 10;
      break;
    case 'm':
    case 'M':
      shift = 20;
      break;
    case 'g':
    case 'G':
      shift = 30;
      break;
    case 't':
    case 'T':
      shift = 40;
      break;
    default:
      return false;
  }
  if (n >> (63 - shift) != 0) return false;
  return *out = n << shift, true;
}

bool ParseNumber(std::string_view text, int base, uint64_t max, uint64_t* out) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out, base);
  return error == std::errc() && end == text.data() + text.size() && *out <= max;
}

base::Status ParseOption(std::string_view key, std::string_view value, uint64_t total_memory,
                         TmpfsOptions* options) {
  uint64_t n = 0;
  if (key == "size") {
    if (!ParseSize(value, total_memory, &options->size)) return base::Error(EINVAL);
  } else if (key == "nr_blocks") {
    if (!ParseSize(value, 0, &n) || n > UINT64_MAX / 4096) return base::Error(EINVAL);
    options->size = n * 4096;
  } else if (key == "nr_inodes") {
    if (!ParseSize(value, 0, &options->inodes)) return base::Error(EINVAL);
  } else if (key == "mode") {
    if (!ParseNumber(value, 8, UINT32_MAX, &n)) return base::Error(EINVAL);
    options->mode = static_cast<mode_t>(n & 07777);
  } else if (key == "uid") {
    if (!ParseNumber(value, 10, UINT32_MAX - 1, &n)) return base::Error(EINVAL);
    options->uid = static_cast<uid_t>(n);
  } else if (key == "gid") {
    if (!ParseNumber(value, 10, UINT32_MAX - 1, &n)) return base::Error(EINVAL);
    options->gid = static_cast<gid_t>(n);
  } else if (key != "huge" && key != "mpol" && key != "inode64" && key != "inode32" &&
             key != "noswap" && key != "context" && key != "rw" && key != "ro") {
    return base::Error(ENOENT);
  }
  return base::Ok();
}

class TmpfsType : public FilesystemType {
 public:
  TmpfsType(uint64_t total_memory, std::string_view name)
      : total_memory_(total_memory), name_(name) {}
  std::string_view name() const override { return name_; }
  base::Result<base::Ref<Inode>> Mount(const MountArgs& args) override {
    TmpfsOptions options;
    options.type_name = name_;
    options.size = total_memory_ / 2;
    options.inodes = total_memory_ / 4096 / 2;
    options.uid = args.creds.fsuid;
    options.gid = args.creds.fsgid;
    TRY(ParseTmpfsOptions(args.data, total_memory_, &options));
    return NewTmpfs(options);
  }
  base::Status CheckOption(std::string_view key, std::string_view value) const override {
    TmpfsOptions options;
    return ParseOption(key, value, total_memory_, &options);
  }

 private:
  const uint64_t total_memory_;
  const std::string name_;
};

}  // namespace

base::Status ParseTmpfsOptions(std::string_view data, uint64_t total_memory,
                               TmpfsOptions* options) {
  for (size_t start = 0; start < data.size();) {
    const size_t comma = data.find(',', start);
    const size_t end = comma == std::string_view::npos ? data.size() : comma;
    const std::string_view option = data.substr(start, end - start);
    start = end + 1;
    if (option.empty()) continue;
    const size_t equals = option.find('=');
    const bool has_value = equals != std::string_view::npos;
    if (!ParseOption(option.substr(0, equals), has_value ? option.substr(equals + 1) : "",
                     total_memory, options)
             .ok()) {
      return base::Error(EINVAL);
    }
  }
  return base::Ok();
}

base::Ref<Inode> NewTmpfs(const TmpfsOptions& options) {
  auto fs = base::MakeRef<TmpfsFilesystem>(options);
  const NewInode root{S_IFDIR | (options.mode & 07777), options.uid, options.gid, 0};
  return base::MakeRef<TmpfsDirectory>(fs.get(), *fs->TakeInode(), root);
}

std::unique_ptr<FilesystemType> MakeTmpfsType(uint64_t total_memory, std::string_view name) {
  return std::make_unique<TmpfsType>(total_memory, name);
}

}  // namespace sentry
