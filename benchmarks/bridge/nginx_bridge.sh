# about: nginx in a container, ab across a bridge: a file of 1 KiB, 64 connections that stay
# needs: nginx ab
# seconds: 3
setup() {
  mkdir -p www && head -c 1024 /dev/zero >www/file
  cat >nginx.conf <<END
daemon on;
worker_processes 2;
pid $PWD/pid;
error_log $PWD/errors;
events { worker_connections 1024; }
http { access_log off; keepalive_requests 1000000; server { listen 8888; root $PWD/www; } }
END
  chmod -R a+rX . && nginx -c "$PWD/nginx.conf"
}
run() { ab -q -k -c 64 -n $((50000 / SCALE)) "http://$SERVER:8888/file"; }
