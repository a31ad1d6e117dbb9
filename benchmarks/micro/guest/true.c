// Ends at once: what the start of a sandbox and posix_spawn are measured with.
int main(void) { return 0; }
