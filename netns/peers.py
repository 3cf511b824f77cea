#!/usr/bin/env python3
"""The applications of peers.sh: a UDP echo, one datagram from every client address to every server address, and a stream
of one pair; and what `identun status` says of sessions.

echo                  answers on UDP port 7 of the server's addresses
open SIDE             opens SIDE x SIDE sessions: prints the seconds until each pair has its echo
stream PPS SECONDS    prints packets sent, packets echoed, and the median round trip in microseconds
standing, handshakes  count sessions of the status on stdin
back SOCKET COUNT     waits for a daemon, then until so many sessions stand: prints the milliseconds until it answered, and from
                      there until the first, half of them and all stood
"""
import http.client, json, selectors, socket, struct, sys, time

PORT = 7
# Handshakes under way at once: fewer than make a daemon ask for proof of the address.
WINDOW = 32
AGAIN, GIVE_UP = 2.0, 60.0


def listen():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: the answer leaves from the address that was asked
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("0.0.0.0", PORT))
    return sock


def echo():
    sock = listen()
    print("listening", flush=True)
    while True:
        data, ancillary, _, peer = sock.recvmsg(2048, 64)
        for level, kind, info in ancillary:
            if level == socket.IPPROTO_IP and kind == 8:
                _, _, own = struct.unpack("I4s4s", info)
                ancillary = [(socket.IPPROTO_IP, 8, struct.pack("I4s4s", 0, own, b"\0" * 4))]
        try:
            sock.sendmsg([data], ancillary, 0, peer)
        except OSError as error:
            print(error, flush=True)


def source(index):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((f"10.1.0.{index}", 0))
    sock.setblocking(False)
    return sock


def open_all(side):
    sockets = [source(index + 1) for index in range(side)]
    ready = selectors.DefaultSelector()
    for index, sock in enumerate(sockets):
        ready.register(sock, selectors.EVENT_READ, index)
    # Each pair after the others of its addresses, so that no address has all of them at once.
    waiting = [(a, (a + b) % side) for b in range(side) for a in range(side)]
    waiting.reverse()
    asked, first, begun = {}, {}, time.monotonic()
    while waiting or asked:
        now = time.monotonic()
        for pair in [pair for pair, at in asked.items() if now - at > AGAIN]:
            if now - first[pair] > GIVE_UP:
                sys.exit(f"no echo from 10.2.0.{pair[1] + 1} to 10.1.0.{pair[0] + 1}; {len(waiting)} not yet asked")
            asked.pop(pair)
            waiting.append(pair)
        while waiting and len(asked) < WINDOW:
            pair = waiting.pop()
            asked[pair] = now
            first.setdefault(pair, now)
            sockets[pair[0]].sendto(b"open", (f"10.2.0.{pair[1] + 1}", PORT))
        for key, _ in ready.select(0.5):
            _, (address, _) = key.fileobj.recvfrom(2048)
            asked.pop((key.data, int(address.rsplit(".", 1)[1]) - 1), None)
    print(f"{time.monotonic() - begun:.1f}")


def stream(pps, seconds):
    sock = source(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    begun = time.monotonic()
    sent, trips = 0, []

    def take():
        while True:
            try:
                data = sock.recv(2048)
            except BlockingIOError:
                return
            trips.append(time.monotonic() - struct.unpack("d", data[:8])[0])

    while (now := time.monotonic()) < begun + seconds:
        while sent < (now - begun) * pps:
            sock.sendto(struct.pack("d", time.monotonic()) + bytes(56), ("10.2.0.1", PORT))
            sent += 1
        take()
        time.sleep(0.001)
    time.sleep(0.5)
    take()
    trips.sort()
    print(sent, len(trips), int(trips[len(trips) // 2] * 1e6) if trips else 0)


def tunnels():
    return json.load(sys.stdin)["tunnels"]


def up(tunnels):
    return sum(tunnel["state"] == "up" for tunnel in tunnels)


def ask(path):
    connection = http.client.HTTPConnection("identun")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(GIVE_UP)
    connection.sock.connect(path)
    connection.request("GET", "/v1/status")
    return json.load(connection.getresponse())["tunnels"]


def back(path, count):
    begun, ready, reached = time.monotonic(), None, {}
    while count not in reached:
        if time.monotonic() - begun > GIVE_UP:
            sys.exit(f"{reached} of {count} came back")
        try:
            standing = up(ask(path))
        except OSError:
            time.sleep(0.002)
            continue
        now = time.monotonic()
        ready = ready or now
        for goal in (1, count // 2, count):
            if standing >= goal:
                reached.setdefault(goal, now)
        time.sleep(0.01)
    since_ready = [reached[goal] - ready for goal in (1, count // 2, count)]
    print(*(f"{seconds * 1e3:.0f}" for seconds in [ready - begun, *since_ready]))


match sys.argv[1:]:
    case ["echo"]:
        echo()
    case ["open", side]:
        open_all(int(side))
    case ["stream", pps, seconds]:
        stream(int(pps), float(seconds))
    case ["standing"]:
        print(up(tunnels()))
    case ["handshakes"]:
        print(sum(tunnel["handshakes"] for tunnel in tunnels()))
    case ["back", path, count]:
        back(path, int(count))
    case _:
        sys.exit(__doc__)
