#!/usr/bin/env python3
"""What engines ask of mounts, devices, sysctls and names, beyond a plain configuration."""

import os
import socket

import harness
from harness import default_config


class MountsTest(harness.ContainerTest):

    def test_tmpfs_begins_with_what_the_image_has(self):
        data = os.path.join(self.sb.rootfs, "srv", "data")
        os.makedirs(os.path.join(data, "deep", "er"))
        with open(os.path.join(data, "big"), "wb") as f:
            f.write(b"0123456789abcdef" * 10000)
        os.chmod(os.path.join(data, "big"), 0o4750)
        os.chown(os.path.join(data, "deep"), 33, 44)
        os.chmod(os.path.join(data, "deep"), 0o711)
        os.utime(os.path.join(data, "big"), (1000000000, 1000000000))
        os.symlink("/nowhere", os.path.join(data, "deep", "link"))
        os.mkfifo(os.path.join(data, "deep", "er", "fifo"))
        os.chmod(data, 0o751)
        mounts = [{"destination": "/srv/data", "type": "tmpfs", "source": "tmpfs",
                   "options": ["rw", "nosuid", "nodev", "tmpcopyup", "size=1m"]}]
        r = self.sb.run(["sh", "-c",
                         "cd /srv/data; stat -c '%n %F %a %u %g' . big deep deep/link deep/er/fifo; "
                         "stat -c %Y big; readlink deep/link; cksum < big; stat -f -c %T .; touch new"],
                        mounts=mounts)
        with open(os.path.join(data, "big"), "rb") as f:
            sum = os.popen(f"cksum < {f.name}").read()
        self.assertEqual(". directory 751 0 0\nbig regular file 4750 0 0\ndeep directory 711 33 44\n"
                         "deep/link symbolic link 777 0 0\ndeep/er/fifo fifo 644 0 0\n"
                         f"1000000000\n/nowhere\n{sum}tmpfs\n", r.stdout, r.stderr)
        self.assertFalse(os.path.exists(os.path.join(data, "new")))

    def test_tmpfs_too_small_for_what_the_image_has(self):
        os.makedirs(os.path.join(self.sb.rootfs, "srv/data"))
        with open(os.path.join(self.sb.rootfs, "srv/data/big"), "wb") as f:
            f.truncate(1 << 20)
        mounts = [{"destination": "/srv/data", "type": "tmpfs", "source": "tmpfs",
                   "options": ["tmpcopyup", "size=64k"]}]
        r = self.sb.run(["true"], mounts=mounts)
        self.assertEqual(1, r.returncode)
        self.assertRegex(r.stderr, r'/srv/data.*: No space left on device')

    def test_tmpfs_has_the_mode_of_what_it_covers(self):
        for name, mode in (("a", 0o711), ("b", 0o711)):
            os.mkdir(os.path.join(self.sb.rootfs, "srv", name))
            os.chmod(os.path.join(self.sb.rootfs, "srv", name), mode)
        mounts = [{"destination": "/srv/" + n, "type": "tmpfs", "source": "tmpfs", "options": o}
                  for n, o in (("a", []), ("b", ["mode=700"]), ("c", []))]
        r = self.sb.run(["stat", "-c", "%a", "/srv/a", "/srv/b", "/srv/c"], mounts=mounts)
        self.assertEqual("711\n700\n1777\n", r.stdout, r.stderr)

    def test_device_below_a_missing_directory(self):
        def edit(c):
            c["linux"]["devices"] = [{"path": "/dev/cpu/0/msr", "type": "c", "major": 1, "minor": 5,
                                      "fileMode": 0o600, "uid": 0, "gid": 0}]
        r = self.sb.run(["stat", "-c", "%F %t %T", "/dev/cpu/0/msr"], edit=edit)
        self.assertEqual("character special file 1 5\n", r.stdout, r.stderr)

    def test_sysctls_with_a_read_only_proc_sys(self):
        def edit(c):
            c["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0",
                                    "net.ipv4.ping_group_range": "0 2147483647",
                                    "net.ipv4.ip_forward": "1"}
        r = self.sb.run(["sh", "-c", "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ip_forward "
                         "ping_group_range; echo 0 > ip_forward"], edit=edit)
        self.assertEqual("0\n1\n0\t2147483647\n", r.stdout, r.stderr)
        self.assertIn("Read-only file system", r.stderr)

    def test_name_of_a_shared_uts_namespace(self):
        def edit(c):
            del c["hostname"]
            c["linux"]["namespaces"] = [n for n in c["linux"]["namespaces"] if n["type"] != "uts"]
        r = self.sb.run(["uname", "-n"], edit=edit)
        self.assertEqual(socket.gethostname() + "\n", r.stdout, r.stderr)

    def test_name_of_a_joined_uts_namespace(self):
        """As the containers of a pod have it."""
        first = self.sb.create(default_config(["sleep", "100"]))
        pid = self.sb.state(first)["pid"]
        def edit(c):
            del c["hostname"]
            for n in c["linux"]["namespaces"]:
                if n["type"] == "uts":
                    n["path"] = f"/proc/{pid}/ns/uts"
        r = self.sb.run(["uname", "-n"], edit=edit)
        self.assertEqual("sandbox\n", r.stdout, r.stderr)

    def test_root_that_the_host_changes_too(self):
        for flags in ([], ["--file-access", "shared"]):
            id = self.sb.create(default_config(["sleep", "100"]), flags=flags)
            self.sb.runsc("start", id)
            path = os.path.join(self.sb.rootfs, "root", "note")
            run = lambda *args: self.sb.runsc("exec", id, *args).stdout
            if flags:
                self.assertEqual("", run("cat", "/root/note"))
            for text in ("first\n", "and second\n"):
                with open(path + ".new", "w") as f:
                    f.write(text)
                os.rename(path + ".new", path)
                self.assertEqual(text, run("cat", "/root/note"), flags)
                if not flags:
                    break  # it has learnt the name, and may believe in what it knows
            os.unlink(path)
        self.assertEqual("", run("cat", "/root/note"))
        self.assertIn("exclusive", self.sb.runsc("--file-access", "none", "list").stderr)


if __name__ == "__main__":
    harness.main()
