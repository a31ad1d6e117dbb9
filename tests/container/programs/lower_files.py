"""Files of an image's lower layer that are read, mapped, written and cut: overlayfs puts a copy in their place meanwhile."""

import mmap
import os

SIZE = 300_000


def read(fd):
    for _ in range(6):
        data = os.pread(fd, SIZE, 0)
    return data


def mapped(path, flags=mmap.MAP_SHARED):
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, SIZE, flags, mmap.PROT_READ) as m:
        data = m[:]
    os.close(fd)
    return data


def written(path):
    reader = os.open(path, os.O_RDONLY)
    data = read(reader)
    print(mapped(path) == data)
    writer = os.open(path, os.O_RDWR)
    os.pwrite(writer, b"new", 100_000)
    data = data[:100_000] + b"new" + data[100_003:]
    print(read(reader) == data, read(writer) == data)
    print(mapped(path) == data)
    os.close(writer)
    print(mapped(path) == data, mapped(path, mmap.MAP_PRIVATE) == data)


def cut(path):
    reader = os.open(path, os.O_RDONLY)
    data = read(reader)
    print(mapped(path) == data)
    os.truncate(path, 200_000)
    print(read(reader) == data[:200_000])
    os.truncate(path, SIZE)
    data = data[:200_000] + bytes(100_000)
    print(read(reader) == data, mapped(path) == data)


written("/bin/bash")
cut("/usr/bin/perl")
