# rsync locally, over a daemon on localhost, and through a pipe; ssh-keygen, ssh-agent; curl with files, ranges, uploads, TLS.
# normalise: s/[0-9a-f]{8,}/HEX/g
cd /tmp
mkdir -p src/a/b; for i in $(seq 200); do seq $i > src/a/b/$i; done; ln -s b src/a/link; ln src/a/b/1 src/a/hard; mkfifo src/fifo; chmod 640 src/a/b/2; touch -d 2001-01-01 src/a/b/3; truncate -s 10M src/sparse
rsync -aHS src/ one/; diff -r --no-dereference src/a one/a && echo same; stat -c '%a %Y %h' one/a/b/2 one/a/b/3 one/a/hard | cut -d' ' -f1,3; stat -c %Y one/a/b/3; stat -c %b one/sparse
echo changed >> src/a/b/9; rm src/a/b/10; touch -d 2002-02-02 src/a/b/9 src/a/b; rsync -ai --delete --exclude fifo src/ one/ | sort
rsync -ac --link-dest=/tmp/one src/a/ two/; find two -type f -links +1 | wc -l
printf 'use chroot = no\nuid = root\ngid = root\npid file = /tmp/rsync.pid\n[m]\npath = /tmp/src\nread only = no\nlist = yes\n' > rsyncd.conf
rsync --daemon --config=rsyncd.conf --address=127.0.0.1 --port=8730; for i in $(seq 50); do rsync rsync://127.0.0.1:8730/ > /dev/null 2>&1 && break; sleep 0.1; done
rsync -az rsync://127.0.0.1:8730/m/a/ three/; diff -r --no-dereference src/a three && echo same; head -c 3000000 /dev/zero > zeros; rsync -a zeros rsync://127.0.0.1:8730/m/up; cmp zeros src/up && echo uploaded
printf x | dd of=zeros bs=1 seek=1000000 conv=notrunc 2> /dev/null; rsync -a --no-whole-file -I --stats zeros rsync://127.0.0.1:8730/m/up | grep -E '^Literal'; kill "$(cat rsync.pid)"
rsync -a -e 'sh -c '"'"'shift; exec "$@"'"'"' sh' src/a host:/tmp/four; ls four/a/b | wc -l
ssh-keygen -q -t ed25519 -N '' -C c -f k && ssh-keygen -q -t rsa -b 2048 -N pass -f r && ssh-keygen -y -P pass -f r > r2 && cut -d' ' -f2 r.pub | cmp - <(cut -d' ' -f2 r2) && echo keys
eval "$(ssh-agent -s)" > /dev/null; ssh-add -q k && ssh-add -l | wc -l; echo data > d; ssh-keygen -q -Y sign -f k -n file d 2> /dev/null; echo "u $(cat k.pub)" > allowed; ssh-keygen -q -Y verify -f allowed -I u -n file -s d.sig < d; echo "verify $?"; ssh-agent -k > /dev/null
ssh -o BatchMode=yes -o StrictHostKeyChecking=no -p 1 127.0.0.1 true 2>&1 | sed 's/.*: //'
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost > /dev/null 2>&1
(cd src/a && exec openssl s_server -quiet -accept 127.0.0.1:8443 -key /tmp/key.pem -cert /tmp/cert.pem -WWW > /dev/null 2>&1) & pid=$!
for i in $(seq 100); do curl -sk https://localhost:8443/hard > got && break; sleep 0.1; done; cat got; curl -s --cacert cert.pem https://localhost:8443/b/100 | tail -n 1; curl -s https://localhost:8443/hard; echo "status $?"; kill $pid
curl -s file:///tmp/src/a/b/5 | wc -l; curl -s --connect-timeout 2 http://127.0.0.1:1/; echo "status $?"; curl -s http://no.such.invalid/; echo "status $?"
head -c 100000 /dev/urandom > up; nc -l -U /tmp/nc.sock > nc.out & sleep 0.5; nc -N -U /tmp/nc.sock < up; wait $!; cmp up nc.out && echo nc
