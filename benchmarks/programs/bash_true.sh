# about: bash: 500 times /bin/true
# seconds: 0.4
setup() { :; }
run() { for ((i = 0; i < 500 / SCALE; i++)); do /bin/true || return 1; done; }
