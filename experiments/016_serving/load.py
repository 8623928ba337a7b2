"""How does `imgrec serve` bear many clients? Starts it, asks it with CLIENTS threads for SECONDS, and writes a record.

python experiments/016_serving/load.py --workdir=RUN IMAGE... [--clients=32] [--seconds=60] [--queue=64] [--out=records.jsonl]

Each client sends one of the images after another over a connection that it keeps; each answer must be 200 or 429. Memory is the
server's resident set, after 2 seconds of load and at the end.
"""

import argparse
import http.client
import json
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path


def form(path: Path) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of a form with an image."""
    mark = "a-boundary-that-no-image-holds"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{mark}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={mark}"}


def client(port: int, forms: list, start: int, until: float, seconds: list[float], counts: Counter) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    turn = start
    while (began := time.perf_counter()) < until:
        body, headers = forms[turn % len(forms)]
        turn += 1
        try:
            connection.request("POST", "/predict", body, headers)
            answer = connection.getresponse()
            answer.read()
            counts[answer.status] += 1
        except OSError as error:
            counts[type(error).__name__] += 1
            connection.close()
            continue
        if answer.status == 200:
            seconds.append(time.perf_counter() - began)
        elif answer.status == 429:
            time.sleep(0.05)


def resident(pid: int) -> float:
    """Megabytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    command = [sys.executable, "-m", "imgrec_jax.serve", f"--workdir={given.workdir}", "--port=0", f"--queue={given.queue}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = int(re.search(r":(\d+) \(", server.stdout.readline())[1])
    try:
        while True:  # until its programs are compiled
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/health")
                if json.load(connection.getresponse())["status"] == "ok":
                    break
            except ConnectionError:
                pass
            time.sleep(0.2)
        forms, seconds, counts = [form(path) for path in given.images], [], Counter()
        until = time.perf_counter() + given.seconds
        threads = [threading.Thread(target=client, args=(port, forms, n, until, seconds, counts)) for n in range(given.clients)]
        for thread in threads:
            thread.start()
        time.sleep(min(2, given.seconds / 2))
        first = resident(server.pid)
        for thread in threads:
            thread.join()
        last = resident(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    seconds.sort()
    record = {
        "workdir": Path(given.workdir).name,
        "clients": given.clients,
        "seconds": given.seconds,
        "queue": given.queue,
        "answers": {str(key): value for key, value in counts.items()},
        "answers_per_s": round(len(seconds) / given.seconds, 1),
        "p50_ms": round(1e3 * seconds[len(seconds) // 2], 1),
        "p99_ms": round(1e3 * seconds[len(seconds) * 99 // 100], 1),
        "memory_mb": [round(first), round(last)],
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(record))
    if given.out:
        with given.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
