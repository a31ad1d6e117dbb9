# overlay
# git: init, add, commit, branches, merge, log, gc, clone over a local path and over localhost.
set -e
export GIT_AUTHOR_DATE="2024-01-02T03:04:05Z" GIT_COMMITTER_DATE="2024-01-02T03:04:05Z"
git config --global user.name Tester
git config --global user.email tester@example.org
git config --global init.defaultBranch main
git config --global advice.detachedHead false
mkdir -p /tmp/work && cd /tmp/work
git init -q repo && cd repo
for d in $(seq 20); do
  mkdir -p dir$d
  for f in $(seq 20); do seq $d $((d + f * 20)) > dir$d/file$f; done
done
git add -A && git commit -qm "First"
for i in $(seq 10); do
  echo "line $i" >> dir$i/file1
  git commit -qam "Change $i"
done
git log --oneline | cat
git checkout -qb topic HEAD~5 && echo topic > topic && git add topic && git commit -qm "Topic"
git checkout -q main && git merge -q -m "Merged" topic
git log --graph --format='%h %s' | cat
git diff --stat HEAD~5 | tail -n 3
git mv dir1/file1 moved && git rm -q dir2/file2 && git status --short && git commit -qm "Moved"
git stash list; echo more >> moved; git stash -q; git stash pop -q; git diff --numstat; git checkout -q moved
git grep -c 'line 1' | head -n 5
git blame -s moved | tail -n 1
git rebase -q --onto HEAD~3 HEAD~1 2>&1 | cat
git gc -q --prune=now
git count-objects -v | grep -E '^(count|packs|garbage)'
git fsck --full 2>&1 | tail -n 1
git bisect start HEAD HEAD~3 > /dev/null; git bisect run true 2>&1 | tail -n 1; git bisect reset > /dev/null 2>&1
cd ..
git clone -q repo local && git clone -q --no-local repo copied && git clone -q --depth 2 file:///tmp/work/repo shallow
for c in local copied shallow; do git -C $c rev-parse HEAD; git -C $c ls-files | wc -l; done
git daemon --reuseaddr --listen=127.0.0.1 --port=9418 --base-path=/tmp/work --export-all --enable=receive-pack \
  --pid-file=/tmp/work/daemon.pid --detach
for i in $(seq 50); do git ls-remote -q git://127.0.0.1/repo > /dev/null 2>&1 && break; sleep 0.1; done
git clone -q git://127.0.0.1/repo network
git -C network rev-parse HEAD
git clone -q --bare repo bare.git
git clone -q git://127.0.0.1/bare.git pusher && cd pusher
echo pushed > pushed && git add pushed && git commit -qm "Pushed" && git push -q origin HEAD 2>&1 | cat
git -C ../bare.git log -1 --format=%s
git worktree add -q ../tree HEAD~1 && git worktree list | wc -l
kill "$(cat /tmp/work/daemon.pid)"
git archive --format=tar HEAD | tar t | wc -l
