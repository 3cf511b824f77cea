#!/usr/bin/env python3
"""The stopwatch of start.sh, in the client's namespace.

ROUNDS PROGRAM SETTINGS SOCKET ADDRESS   starts of the daemon until its first packet comes to ADDRESS
flush COUNT                              from a flush of all rules until a table stands again, as the kernel tells both
"""
import ctypes, os, socket, struct, subprocess, sys, threading, time

PORT = 7
PATIENCE = 20
ROUND = b"%d"


def listen():
    """A socket on the server: its namespace is entered by a thread of its own."""
    sockets = []

    def inside():
        with open("/run/netns/server") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                sys.exit(os.strerror(ctypes.get_errno()))
        sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sockets[0].bind(("0.0.0.0", PORT))
        sockets[0].settimeout(PATIENCE)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return sockets[0]


def send(address, number, stop):
    """A packet a millisecond, each the first of its flow."""
    while not stop.is_set():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(ROUND % number, (address, PORT))
            except OSError:
                pass  # unreachable while no daemon runs
        time.sleep(0.001)


def measure(program, settings, admin, address, listener, number):
    """The daemon, and the milliseconds until its first packet came and until it was ready."""
    if os.path.exists(admin):
        os.unlink(admin)
    stop = threading.Event()
    sender = threading.Thread(target=send, args=(address, number, stop))
    sender.start()
    time.sleep(0.02)
    begun = time.monotonic()
    with open("client.log", "a") as log:
        daemon = subprocess.Popen([program, "daemon", "--config", settings], stdout=log, stderr=log)
    while listener.recv(64) != ROUND % number:
        pass
    took = time.monotonic() - begun
    stop.set()
    sender.join()
    return daemon, took * 1e3


def heard(sock, wanted):
    """Waits until the kernel tells of a message of this kind; when that was."""
    while True:
        data = sock.recv(1 << 20)
        now, at = time.monotonic(), 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("IH", data, at)
            if kind == wanted:
                return now
            at += (length + 3) & ~3


def flush(count):
    netfilter, new_table, del_table = 12, 10 << 8, 10 << 8 | 2
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.settimeout(PATIENCE)
    sock.bind((0, 1 << 6))
    taken = []
    for number in range(count):
        # not in step with what the daemon does by itself
        time.sleep(0.1 + number % 7 / 100)
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        gone = heard(sock, del_table)
        taken.append((heard(sock, new_table) - gone) * 1e3)
    tell("flush to rules installed again:", taken)


def tell(what, taken):
    taken.sort()
    late = taken[len(taken) * 95 // 100]
    print(f"{what:<34} median {taken[len(taken) // 2]:.0f} ms, p95 {late:.0f} ms, most {taken[-1]:.0f} ms, {len(taken)} times")


def main(rounds, program, settings, admin, address):
    listener, cold, again = listen(), [], []
    for number in range(0, 2 * rounds, 2):
        daemon, took = measure(program, settings, admin, address, listener, number)
        cold.append(took)
        daemon.kill()
        daemon.wait()
        daemon, took = measure(program, settings, admin, address, listener, number + 1)
        again.append(took)
        daemon.terminate()
        daemon.wait()
        subprocess.run([program, "down", "--config", settings], check=True, stdout=subprocess.DEVNULL)
    tell("start to first packet, cold:", cold)
    tell("start to first packet, kill -9:", again)


if sys.argv[1:2] == ["flush"] and len(sys.argv) == 3:
    flush(int(sys.argv[2]))
elif len(sys.argv) == 6:
    main(int(sys.argv[1]), *sys.argv[2:])
else:
    sys.exit(__doc__)
