# bash: pipelines, subshells, here-documents, traps, jobs.
# overlay
echo one two three | tr ' ' '\n' | sort -r | head -2
(cd /usr && pwd; exit 3); echo "status $?"
cat <<END
here $((6 * 7)) $(echo nested)
END
cat <<< "here string"
trap 'echo trapped' USR1; kill -USR1 $$; trap 'echo bye' EXIT
for i in $(seq 200); do echo $i | wc -c; done | sort | uniq -c
sleep 0.2 & sleep 0.1 & wait; echo "jobs done"
(exit 7) & wait $!; echo "waited $?"
false | true; echo "${PIPESTATUS[@]}"
x=$(echo out; echo err >&2) 2>/dev/null; echo "$x"
diff <(echo a; echo b) <(echo a; echo c); echo "diff $?"
echo text > /tmp/f; echo more >> /tmp/f; wc -l < /tmp/f; exec 5< /tmp/f; read -r line <&5; echo "$line"
set -o pipefail; false | cat; echo "pipefail $?"
ulimit -n 512; ulimit -n; ulimit -c
printf '%s\n' {1..3}{a,b} | paste -sd,
kill -9 $BASHPID 2>/dev/null & wait $!; echo "killed $?"
coproc cat; echo hello >&"${COPROC[1]}"; read -r l <&"${COPROC[0]}"; echo "$l"
exit 5
