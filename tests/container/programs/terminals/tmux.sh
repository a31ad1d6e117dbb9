# tmux with two panes: keys reach the right one, a resize reaches its program, a detached session lives on.
export LC_ALL=C.UTF-8 TERM=xterm SHELL=/bin/sh; cd /tmp
t() { tmux -L test -f /dev/null "$@"; }
until_shows() { for i in $(seq 200); do t capture-pane -p -t "$1" | grep -q "$2" && return; sleep 0.1; done; echo "no $2"; t capture-pane -p -t "$1"; }
t new-session -d -s main -x 160 -y 30 'PS1="one> " exec sh'
t split-window -h -t main 'PS1="two> " exec sh'
t list-panes -t main -F '#{pane_index} #{pane_width}x#{pane_height}'
until_shows main.0 'one>'; until_shows main.1 'two>'
t send-keys -t main.0 'echo first $((1 + 1)); stty size' Enter; until_shows main.0 'first 2'; until_shows main.0 '30 80'
t send-keys -t main.1 'echo second; tty | sed s/[0-9]*$//' Enter; until_shows main.1 '^second'; until_shows main.1 /dev/pts/
t send-keys -t main.1 'sleep 1000' Enter; for i in $(seq 100); do [ "$(t display -p -t main.1 '#{pane_current_command}')" = sleep ] && break; sleep 0.1; done
t display -p -t main.1 '#{pane_current_command}'
t send-keys -t main.1 C-c; t send-keys -t main.1 'echo status $?' Enter; until_shows main.1 'status 130'
t send-keys -t main.0 "sh -c \"trap 'stty size' WINCH; cat\"" Enter; for i in $(seq 100); do [ "$(t display -p -t main.0 '#{pane_current_command}')" = sh ] && break; sleep 0.1; done; sleep 1
t resize-pane -t main.0 -x 20; t send-keys -t main.0 C-d; until_shows main.0 '30 20'
t capture-pane -p -t main.0 | grep -v '^$' | tail -n 2
t pipe-pane -t main.1 'cat > /tmp/piped'; t send-keys -t main.1 'seq 500' Enter; until_shows main.1 '^500'; for i in $(seq 50); do grep -q '^500' piped && break; sleep 0.1; done; grep -c '^499' piped
t new-window -t main 'vi -u NONE /tmp/edited'; until_shows main:1.0 '~'; t send-keys -t main:1.0 ihello Escape ':wq' Enter; for i in $(seq 100); do [ -s edited ] && break; sleep 0.1; done; cat edited
# A client on a terminal of its own attaches, is sized, and detaches.
script -q -c 'stty rows 20 cols 80; tmux -L test attach -t main' /tmp/typescript < <(sleep 2; printf '\002d'; sleep 1) > /dev/null; grep -c 'detached' typescript
t kill-pane -t main:0.1; t list-panes -s -t main | wc -l; t kill-server; sleep 0.3; t ls 2>&1 | sed 's/ (.*//; s/ on .*//'
