# Runs a bash workload in its container: sets it up, unless its server is elsewhere, then one timed run for each
# line of input.
exec 3>&1 4<&0
exec </dev/null >/tmp/driver.out 2>/tmp/driver.err
words() { tail -n 1 /tmp/driver.err | tr -d '\n' | cut -c 1-200; }
mkdir -p /srv/bench && cd /srv/bench || exit 1
prepare() { :; }  # untimed, before each run
. /bench/workload.sh
if [[ -z ${SERVER:-} ]] && ! setup; then
  echo "set-up failed: $(words)" >&3
  cat /tmp/driver.err >&3
  exit 1
fi
echo ready >&3
while read -r _ <&4; do
  prepare
  : >/tmp/driver.err
  begin=$EPOCHREALTIME
  run >/tmp/driver.out 2>>/tmp/driver.err
  status=$?
  end=$EPOCHREALTIME
  echo "time $status $((${end/./} - ${begin/./})) $([[ $status == 0 ]] || words)" >&3
done
