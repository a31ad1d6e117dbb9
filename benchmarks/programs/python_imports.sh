# about: python3 start with 20 imports, five times
# needs: python3
# seconds: 0.9
setup() {
  cat >imports.py <<'END'
import argparse, asyncio, base64, collections, csv, ctypes, datetime, decimal, email.message, hashlib
import http.client, json, logging, multiprocessing, pathlib, random, re, sqlite3, subprocess, xml.dom
print(len(argparse.__name__))
END
  python3 imports.py
}
run() { for _ in 1 2 3 4 5; do python3 imports.py || return 1; done; }
