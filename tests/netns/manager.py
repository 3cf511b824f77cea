"""A service manager as small as a test needs it: keeps the descriptors that a service hands over (FDSTORE=1) and gives
them to the next run (LISTEN_FDS), as systemd does.

Usage: manager.py NOTIFY_SOCKET PROGRAM ARGUMENTS...
Commands come on stdin, one a line: `start`, `kill` (-9), `term`. Answers go to stdout, one a line: `ready`, `ended`.
"""
import array
import os
import signal
import socket
import sys
import threading

path, command = sys.argv[1], sys.argv[2:]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(path)
kept = []  # name, descriptor
ready = threading.Event()


def listen():
    while True:
        data, ancillary, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(64 * 4))
        state = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(value[: len(value) // 4 * 4])
                for fd in fds:
                    same = [other for _, other in kept if os.path.sameopenfile(fd, other) and is_same(fd, other)]
                    if state.get("FDSTORE") == "1" and not same:
                        kept.append((state["FDNAME"], fd))
                    else:
                        os.close(fd)
        if state.get("FDSTOREREMOVE") == "1":
            for item in [item for item in kept if item[0] == state["FDNAME"]]:
                kept.remove(item)
                os.close(item[1])
        if state.get("READY") == "1":
            ready.set()


def is_same(one, other):
    # kcmp(2) with KCMP_FILE, as systemd does; sockets and TUN queues of one device look alike otherwise
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.getpid()
    return libc.syscall(312, pid, pid, 0, one, other) == 0


def start():
    ready.clear()
    pid = os.fork()
    if pid == 0:
        # the numbers from 3 on are where they are expected; first out of each other's way
        high = [os.dup2(fd, 200 + number) for number, (_, fd) in enumerate(kept)]
        for number, fd in enumerate(high):
            os.dup2(fd, 3 + number)
            os.close(fd)
        os.closerange(3 + len(high), 200)
        environment = dict(os.environ, NOTIFY_SOCKET=path)
        if kept:
            environment.update(
                LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES=":".join(name for name, _ in kept)
            )
        os.execvpe(command[0], command, environment)
    if not ready.wait(60):
        raise SystemExit("the service does not become ready")
    return pid


def end(pid, number):
    os.kill(pid, number)
    os.waitpid(pid, 0)


threading.Thread(target=listen, daemon=True).start()
running = None
for line in sys.stdin:
    word = line.strip()
    if word == "start":
        running = start()
        print("ready", flush=True)
    elif word in ("kill", "term"):
        end(running, signal.SIGKILL if word == "kill" else signal.SIGTERM)
        running = None
        print("ended", " ".join(name for name, _ in kept), flush=True)
if running:
    end(running, signal.SIGKILL)
