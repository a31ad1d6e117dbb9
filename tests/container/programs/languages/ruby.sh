# Ruby: fork, threads, pipes, signals, sockets, Process.spawn, Tempfile, Open3, Ractor-free concurrency, GC.
cat > /tmp/a.rb <<'END'
require 'socket'; require 'tempfile'; require 'open3'; require 'fileutils'; require 'timeout'; require 'digest'; require 'pty'; require 'io/console'
$stdout.sync = true
r, w = IO.pipe
pids = 10.times.map { |i| fork { r.close; w.write("child #{i}\n"); exit!(i) } }
w.close
puts r.read.lines.sort.join
puts pids.map { |p| Process.wait2(p)[1].exitstatus }.inspect
q = Queue.new
consumers = 4.times.map { Thread.new { s = 0; while (v = q.pop) != :end; s += v; end; s } }
10000.times { |i| q << i }; 4.times { q << :end }
puts consumers.sum(&:value)
m, c, ready = Mutex.new, ConditionVariable.new, false
t = Thread.new { m.synchronize { c.wait(m) until ready; :woken } }
m.synchronize { ready = true; c.signal }
puts t.value
Signal.trap('USR1') { $got = true }
Process.kill('USR1', Process.pid); sleep 0.01 until $got
puts "signal"
server = TCPServer.new('127.0.0.1', 0)
st = Thread.new { 20.times { s = server.accept; Thread.new { while l = s.gets; s.puts l.reverse.strip; end; s.close } } }
puts 20.times.map { |i| s = TCPSocket.new('127.0.0.1', server.addr[1]); s.puts "abc#{i}"; a = s.gets; s.close; a.strip }.join(' ')
st.join
UNIXServer.open('/tmp/rb.sock') { |u| Thread.new { s = u.accept; s.write s.read; s.close }; s = UNIXSocket.new('/tmp/rb.sock'); s.write 'unix'; s.close_write; puts s.read }
a, b = UNIXSocket.pair; a.send_io($stdout); io = b.recv_io; io.puts 'passed'; io.flush
out, err, st = Open3.capture3('sh', '-c', 'cat; echo e >&2; exit 6', stdin_data: 'z' * 300000)
puts out.size, err, st.exitstatus
Tempfile.create('t') { |f| f.write('x' * 1000); f.flush; puts File.size(f.path); f.flock(File::LOCK_EX); puts f.pread(5, 10) }
begin; Timeout.timeout(0.05) { sleep 10 }; rescue Timeout::Error; puts 'timeout'; end
begin; File.read('/none'); rescue Errno::ENOENT => e; puts e.message; end
begin; TCPSocket.new('127.0.0.1', 1); rescue Errno::ECONNREFUSED; puts 'refused'; end
PTY.spawn('stty size; tty | sed s/[0-9].*//') { |o, i, pid| begin; o.each_line { |l| puts l }; rescue Errno::EIO; puts 'eio'; end }
x = []; 200000.times { |i| x << "s#{i}"; x.clear if i % 20000 == 0 }; GC.start; puts GC.count > 0
puts Digest::SHA256.hexdigest('a' * 100000)
rd, wr = IO.pipe; puts IO.select([rd], nil, nil, 0.02).inspect; wr << 'a'; puts IO.select([rd], nil, nil, 1)[0].size
puts Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID) > 0, Process.times.utime >= 0, Etc.respond_to?(:nprocessors) || (require 'etc'; Etc.nprocessors > 0)
puts Dir.mktmpdir { |d| 50.times { |i| File.write("#{d}/#{i}", i) }; Dir.children(d).size } if require 'tmpdir'
pid = spawn('sleep 100'); Process.kill('KILL', pid); puts Process.wait2(pid)[1].termsig
exit 9
END
ruby /tmp/a.rb; echo "status $?"
ruby -e 'Process.kill(:SEGV, $$)' > /dev/null 2>&1; echo "status $?"
ruby -ne 'puts $_.upcase if /b/' <<< $'abc\nxyz'
