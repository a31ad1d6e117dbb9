#!/usr/bin/env python3
"""Programs of a large Debian root file system (scripts/rootfs --programs), programs/SUBJECT/*: output and exit status
as in a chroot on the host. docs/programs.md holds what they have shown."""

import comparing
import harness


class Languages(comparing.ComparedTest):
    pass


class Servers(comparing.ComparedTest):
    pass


class Terminals(comparing.ComparedTest):
    pass


class Tools(comparing.ComparedTest):
    pass


Languages.add("programs/languages", "programs")
Servers.add("programs/servers", "programs")
Terminals.add("programs/terminals", "programs")
Tools.add("programs/tools", "programs")

if __name__ == "__main__":
    harness.main()
