#!/usr/bin/env python3
"""Bad input: each mistake is one line on stderr and in the JSON log, exit code 1, nothing left."""

import json
import os

import harness
from harness import default_config


class ConfigTest(harness.ContainerTest):

    def fails(self, config, word, raw=None, name=None, command="create"):
        bundle = self.sb.bundle(config or {}, name=name)
        path = os.path.join(bundle, "config.json")
        if raw is not None:
            with open(path, "w") as f:
                f.write(raw)
        elif config is None:
            os.unlink(path)
        log = os.path.join(self.sb.dir, "log.json")
        if os.path.exists(log):
            os.unlink(log)
        r = self.sb.runsc(command, "--bundle", bundle, "bad", flags=["--log", log, "--log-format", "json"])
        self.sb.containers.append("bad")
        self.assertEqual(1, r.returncode, (word, r.stdout, r.stderr))
        lines = r.stderr.strip().splitlines()
        self.assertEqual(1, len(lines), r.stderr)
        self.assertIn(word, lines[0])
        entries = [json.loads(l) for l in open(log)]
        self.assertTrue(any(word in e["msg"] and e["level"] == "error" for e in entries), entries)
        self.assertFalse(os.path.exists(os.path.join(self.sb.root, "bad")))
        self.assertEqual("", self.sb.runsc("list", "-q").stdout)

    def test_no_config(self):
        self.fails(None, "config.json")

    def test_malformed(self):
        self.fails({}, "config.json", raw="{ not json")
        self.fails({}, "config.json", raw="")
        self.fails({}, "config.json", raw="[" * 100000)

    def test_wrong_types_and_versions(self):
        def changed(path, value):
            c = default_config(["true"])
            target = c
            for key in path[:-1]:
                target = target[key]
            if value is None:
                del target[path[-1]]
            else:
                target[path[-1]] = value
            return c
        for path, value, word in [
                (["ociVersion"], "9.0.0", "ociVersion"), (["ociVersion"], None, "ociVersion"),
                (["ociVersion"], 3, "ociVersion"), (["process", "args"], "string", "args"),
                (["process", "args"], [], "args"), (["process", "args"], [1], "args"),
                (["process", "cwd"], "relative", "cwd"), (["process", "user", "uid"], -1, "uid"),
                (["process", "user", "uid"], 1 << 40, "uid"), (["process", "env"], [3], "env"),
                (["process", "rlimits"], [{"type": "RLIMIT_NOPE", "soft": 1, "hard": 1}], "RLIMIT_NOPE"),
                (["process", "capabilities"], {"effective": ["CAP_NOPE"]}, "CAP_NOPE"),
                (["root"], None, "root"), (["root", "path"], 5, "path"),
                (["mounts"], [{"type": "proc"}], "destination"),
                (["mounts"], [{"destination": "/x", "type": "nofs", "source": "x"}], "nofs"),
                (["hostname"], 7, "hostname")]:
            with self.subTest(path=path, value=value):
                self.fails(changed(path, value), word)

    def test_missing_root_and_mount_source(self):
        c = default_config(["true"], root="/no/such/root")
        self.fails(c, "/no/such/root")
        c = default_config(["true"])
        c["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]})
        self.fails(c, "/no/such/source")

    def test_programs_that_cannot_start(self):
        for args, word in [(["/no/such/program"], "no/such/program"), (["nosuch"], "nosuch"), (["/etc"], "/etc"),
                           (["/etc/passwd"], "/etc/passwd")]:
            with self.subTest(args=args):
                self.fails(default_config(args), word, command="run")
        with open(os.path.join(self.sb.rootfs, "badelf"), "wb") as f:
            f.write(b"\x7fELF" + b"\0" * 10)
        os.chmod(os.path.join(self.sb.rootfs, "badelf"), 0o755)
        self.fails(default_config(["/badelf"]), "badelf", command="run")

    def test_odd_bundle_paths_work(self):
        c = default_config(["echo", "fine"])
        bundle = self.sb.bundle(c, name="a b\u00e9 'quoted'")
        r = self.sb.runsc("run", "--bundle", bundle, "odd")
        self.assertEqual((0, "fine\n"), (r.returncode, r.stdout), r.stderr)

    def test_arguments_beyond_arg_max(self):
        c = default_config(["true", "x" * 200000])
        self.fails(c, "true", command="run")


if __name__ == "__main__":
    harness.main()
