# nginx under wrk and ab: static files, sendfile, gzip, a proxy to another server, reload under load, graceful stop.
mkdir -p /tmp/n/www /tmp/n/logs && cd /tmp/n
head -c 100 /dev/zero | tr '\0' a > www/small; head -c 3000000 /dev/zero | tr '\0' b > www/big; seq 10000 > www/numbers.txt
cat > nginx.conf <<'END'
user root;
worker_processes 2;
pid /tmp/n/pid;
error_log /tmp/n/logs/error.log;
events { worker_connections 512; }
http {
  types { text/plain txt; }
  access_log /tmp/n/logs/access.log;
  client_body_temp_path /tmp/n/body; proxy_temp_path /tmp/n/proxy; fastcgi_temp_path /tmp/n/f; uwsgi_temp_path /tmp/n/u; scgi_temp_path /tmp/n/s;
  sendfile on; tcp_nopush on; keepalive_requests 100000;
  upstream back { server 127.0.0.1:8082; server unix:/tmp/n/back; keepalive 8; }
  server { listen 127.0.0.1:8081 reuseport backlog=511; listen [::1]:8081; root /tmp/n/www; gzip on; gzip_types text/plain;
    location /p/ { proxy_pass http://back/; proxy_http_version 1.1; proxy_set_header Connection ""; }
    location /status { return 204; } }
}
END
# The server behind the proxy is not reloaded: a request on a kept connection may meet its close.
cat > back.conf <<'END'
user root;
pid /tmp/n/back.pid;
error_log /tmp/n/logs/back.log;
events { }
http {
  access_log off;
  client_body_temp_path /tmp/n/body; proxy_temp_path /tmp/n/proxy; fastcgi_temp_path /tmp/n/f; uwsgi_temp_path /tmp/n/u; scgi_temp_path /tmp/n/s;
  keepalive_requests 1000000; keepalive_timeout 600s;
  server { listen 127.0.0.1:8082; listen unix:/tmp/n/back; root /tmp/n/www; }
}
END
nginx -c /tmp/n/back.conf
nginx -t -c /tmp/n/nginx.conf 2>&1 | tail -n 1
nginx -c /tmp/n/nginx.conf
for i in $(seq 100); do curl -s http://127.0.0.1:8081/small -o /dev/null && break; sleep 0.1; done
curl -s http://127.0.0.1:8081/small | md5sum; curl -s 'http://[::1]:8081/big' | md5sum; curl -s http://127.0.0.1:8081/p/big | md5sum
curl -s --compressed http://127.0.0.1:8081/numbers.txt | md5sum; curl -s -r 10-19 http://127.0.0.1:8081/numbers.txt | od -c | head -n 1
curl -s -o /dev/null -w '%{http_code} %{size_download}\n' http://127.0.0.1:8081/none
curl -s -I http://127.0.0.1:8081/big | grep -c 'Content-Length: 3000000'
errors() { grep -E 'Socket errors|Non-2xx' || echo "no errors"; }
wrk --timeout 30s -t2 -c40 -d3s http://127.0.0.1:8081/small > w1; errors < w1; grep -c Requests/sec w1
wrk --timeout 30s -t2 -c10 -d2s http://127.0.0.1:8081/big > w2; errors < w2
wrk --timeout 30s -t2 -c20 -d2s http://127.0.0.1:8081/p/small > w3 & job=$!
sleep 0.5; nginx -c /tmp/n/nginx.conf -s reload; wait $job; grep -c Non-2xx w3
ab -q -n 1000 -c 20 http://127.0.0.1:8081/small | grep -E '^(Complete|Failed|Non)'
ab -q -k -n 1000 -c 20 http://127.0.0.1:8081/numbers.txt | grep -E '^(Complete|Failed|Non)'
pid=$(cat pid); nginx -c /tmp/n/nginx.conf -s quit; for i in $(seq 100); do [ -e pid ] || break; sleep 0.1; done
nginx -c /tmp/n/back.conf -s stop; [ -e pid ] && echo "still there"; grep -c alert logs/error.log; curl -s http://127.0.0.1:8081/small; echo "refused $?"
