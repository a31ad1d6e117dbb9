# normalise: s/\t[0-9.]+s/\tTIME/; s/\([0-9.]+s\)/(TIME)/
# go build, go vet, go test of a package with goroutines and net; the race-free stress of the scheduler.
export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local GOPATH=/tmp/go HOME=/tmp
mkdir -p /tmp/m/lib && cd /tmp/m
printf 'module example.org/m\n\ngo 1.19\n' > go.mod
cat > lib/lib.go <<'END'
// Package lib is what the test tests.
package lib

import (
	"bufio"
	"fmt"
	"net"
	"sync"
)

// Sum adds by n goroutines.
func Sum(n int) int {
	c := make(chan int)
	var wg sync.WaitGroup
	for i := 0; i < n; i++ {
		wg.Add(1)
		go func(i int) { defer wg.Done(); c <- i }(i)
	}
	go func() { wg.Wait(); close(c) }()
	s := 0
	for v := range c {
		s += v
	}
	return s
}

// Serve answers each line.
func Serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			s := bufio.NewScanner(c)
			for s.Scan() {
				fmt.Fprintf(c, "got %s\n", s.Text())
			}
		}()
	}
}
END
cat > lib/lib_test.go <<'END'
package lib

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	if s := Sum(10000); s != 49995000 {
		t.Fatal(s)
	}
}

func TestServe(t *testing.T) {
	for _, n := range []string{"tcp4", "tcp6", "unix"} {
		addr := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": t.TempDir() + "/s"}[n]
		l, err := net.Listen(n, addr)
		if err != nil {
			t.Fatal(err)
		}
		go Serve(l)
		var wg sync.WaitGroup
		for i := 0; i < 50; i++ {
			wg.Add(1)
			go func(i int) {
				defer wg.Done()
				c, err := net.Dial(n, l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				for j := 0; j < 20; j++ {
					fmt.Fprintf(c, "%d %d\n", i, j)
					line, err := bufio.NewReader(c).ReadString('\n')
					if err != nil || line != fmt.Sprintf("got %d %d\n", i, j) {
						t.Error(line, err)
					}
				}
			}(i)
		}
		wg.Wait()
		l.Close()
	}
}

func TestHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	defer s.Close()
	var wg sync.WaitGroup
	for i := 0; i < 100; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := http.Post(s.URL, "text/plain", io.LimitReader(zeros{}, 100000))
			if err != nil {
				t.Error(err)
				return
			}
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if len(b) != 100000 {
				t.Error(len(b))
			}
		}()
	}
	wg.Wait()
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	defer tls.Close()
	r, err := tls.Client().Get(tls.URL)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(r.Body); string(b) != "HTTP/1.1" {
		t.Error(string(b))
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestDeadline(t *testing.T) {
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err = c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if _, err = net.Dial("tcp", "127.0.0.1:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := exec.CommandContext(ctx, "sleep", "100").Run(); err == nil {
		t.Error("slept")
	}
	i, err := net.Interfaces()
	if err != nil || len(i) == 0 || i[0].Name != "lo" {
		t.Error(i, err)
	}
}

func TestSignalsAndPreemption(t *testing.T) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	<-c
	runtime.GOMAXPROCS(2)
	var stop int32
	for i := 0; i < 2; i++ {
		go func() {
			for atomic.LoadInt32(&stop) == 0 {
			}
		}()
	}
	for i := 0; i < 3; i++ {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	atomic.StoreInt32(&stop, 1)
}

func TestPanics(t *testing.T) {
	defer func() {
		if e := recover(); e == nil {
			t.Error("no panic")
		}
	}()
	var p *int
	*p = 1
}

func BenchmarkSum(b *testing.B) {
	for i := 0; i < b.N; i++ {
		Sum(100)
	}
}
END
cat > main.go <<'END'
package main

import (
	"fmt"
	"os"
	"os/user"
	"runtime"

	"example.org/m/lib"
)

func main() {
	u, err := user.Current()
	fmt.Println(lib.Sum(1000), runtime.GOOS, runtime.NumCPU() > 0, u.Username, err)
	locked := make(chan bool)
	for i := 0; i < 100; i++ {
		go func() { runtime.LockOSThread(); locked <- true }()
	}
	for i := 0; i < 100; i++ {
		<-locked
	}
	os.Exit(5)
}
END
go build -o main . ; echo "build $?"; ./main; echo "status $?"
CGO_ENABLED=0 go build -o static . && ./static; echo "status $?"
go vet ./...; echo "vet $?"
go test ./lib; echo "test $?"
go test -run XXX -bench Sum -benchtime 200x ./lib | grep -c 'ns/op'
gofmt -l .; go list ./...
echo 'package main; func main() { var a []int; _ = a[5] }' > /tmp/p.go; go run /tmp/p.go 2>&1 | grep panic
