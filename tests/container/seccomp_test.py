#!/usr/bin/env python3
"""The filter of config.json's linux.seccomp holds for all processes of the container."""

import harness
from harness import default_config


def profile(default, *rules, **more):
    return {"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": list(rules), **more}


def rule(action, *names, **more):
    return {"names": list(names), "action": action, **more}


class SeccompTest(harness.ContainerTest):

    def run_under(self, seccomp, script):
        def edit(config):
            config["linux"]["seccomp"] = seccomp
        return self.sb.run(["sh", "-c", script], edit=edit)

    def test_denied_call_fails_with_its_errno(self):
        r = self.run_under(profile("SCMP_ACT_ALLOW",
                                   rule("SCMP_ACT_ERRNO", "mkdir", "mkdirat", "nosuchcall"),
                                   rule("SCMP_ACT_ERRNO", "rmdir", errnoRet=28)),
                           "mkdir /tmp/a; rmdir /tmp; grep Seccomp: /proc/self/status")
        self.assertIn("mkdir: cannot create directory '/tmp/a': Operation not permitted",
                      r.stderr.replace("\u2018", "'").replace("\u2019", "'"))
        self.assertIn("No space left on device", r.stderr)
        self.assertEqual("Seccomp:\t2\n", r.stdout)

    def test_arguments(self):
        ops = [{"index": 1, "value": 0, "op": "SCMP_CMP_EQ"},
               {"index": 1, "value": 15, "op": "SCMP_CMP_EQ"}]
        r = self.run_under(profile("SCMP_ACT_ALLOW",
                                   rule("SCMP_ACT_ERRNO", "kill", args=ops)),
                           "kill -0 $$ || echo zero; kill -CONT $$ && echo continue")
        self.assertEqual("zero\ncontinue\n", r.stdout)

    def test_killed_process(self):
        r = self.run_under(profile("SCMP_ACT_ALLOW", rule("SCMP_ACT_KILL_PROCESS", "mkdir", "mkdirat")),
                           "(mkdir /tmp/a); echo $?")
        self.assertEqual("159\n", r.stdout.splitlines()[-1] + "\n")  # 128 + SIGSYS

    def test_exec_is_under_it_too(self):
        config = default_config(["sleep", "100"])
        config["linux"]["seccomp"] = profile("SCMP_ACT_ALLOW", rule("SCMP_ACT_ERRNO", "mkdir", "mkdirat"))
        id = self.sb.create(config)
        self.sb.runsc("start", id)
        r = self.sb.runsc("exec", id, "mkdir", "/tmp/a")
        self.assertEqual(1, r.returncode, r.stderr)
        self.assertIn("Operation not permitted", r.stderr)
        self.sb.runsc("delete", "-f", id)

    def test_mistakes_are_named(self):
        config = default_config(["true"])
        config["linux"]["seccomp"] = profile("SCMP_ACT_WHATEVER")
        r = self.sb.runsc("create", "--bundle", self.sb.bundle(config), "bad")
        self.assertEqual(1, r.returncode)
        self.assertIn("linux.seccomp.defaultAction", r.stderr)


if __name__ == "__main__":
    harness.main()
