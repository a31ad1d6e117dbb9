# about: bash: 300 times echo | wc
# seconds: 0.4
setup() { :; }
run() { for ((i = 0; i < 300 / SCALE; i++)); do echo hello | wc || return 1; done; }
