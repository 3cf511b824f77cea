"""A service manager as small as a test needs it: keeps the descriptors that a service hands over (FDSTORE=1) and gives
them to the next run (LISTEN_FDS), as systemd does, and starts it again when it dies (Restart=on-failure).

Usage: manager.py NOTIFY_SOCKET RESTART PROGRAM ARGUMENTS...
RESTART is a time as a unit file has it (`100ms`), or `no`. Commands come on stdin, one a line, and are answered on stdout,
one line each: `start` by `ready`; `kill` (-9) and `term` by `ended` and the names of what is kept; `deaths` by how often
the service has died without a `term`. At the end of the input the service is ended.
"""
import array
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time

UNITS = {"ms": 1e-3, "s": 1.0}
KCMP = 312


class Manager:
    def __init__(self, path, restart, command):
        self.path, self.command = path, command
        number, unit = re.fullmatch(r"(\d+)(ms|s)", restart).groups() if restart != "no" else ("", "")
        self.pause = int(number) * UNITS[unit] if number else None
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(path)
        self.kept = []  # name, descriptor
        self.lock = threading.Lock()
        self.ready = threading.Event()
        self.run = None  # the last one: process and the event of its end
        self.wanted, self.deaths = False, 0
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            data, ancillary, _, _ = self.listener.recvmsg(4096, socket.CMSG_SPACE(64 * 4))
            state = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
            with self.lock:
                self.store(state, ancillary)
            if state.get("READY") == "1":
                self.ready.set()

    def store(self, state, ancillary):
        for level, kind, value in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue
            fds = array.array("i")
            fds.frombytes(value[: len(value) // 4 * 4])
            for fd in fds:
                known = any(is_same(fd, other) for _, other in self.kept)
                if state.get("FDSTORE") == "1" and not known:
                    self.kept.append((state["FDNAME"], fd))
                else:
                    os.close(fd)
        if state.get("FDSTOREREMOVE") == "1":
            for item in [item for item in self.kept if item[0] == state["FDNAME"]]:
                self.kept.remove(item)
                os.close(item[1])

    def start(self):
        self.ready.clear()
        self.wanted = True
        with self.lock:
            kept = list(self.kept)
            pid = os.fork()
            if pid == 0:
                self.become(kept)
            run = self.run = (pid, threading.Event())
        threading.Thread(target=self.watch, args=run, daemon=True).start()

    def become(self, kept):
        # the numbers from 3 on are where they are expected; first out of each other's way
        high = [os.dup2(fd, 200 + number) for number, (_, fd) in enumerate(kept)]
        for number, fd in enumerate(high):
            os.dup2(fd, 3 + number)
            os.close(fd)
        os.closerange(3 + len(high), 200)
        environment = dict(os.environ, NOTIFY_SOCKET=self.path)
        if kept:
            names = ":".join(name for name, _ in kept)
            environment.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES=names)
        os.execvpe(self.command[0], self.command, environment)

    def watch(self, pid, ended):
        _, status = os.waitpid(pid, 0)
        died = self.wanted and status != 0
        self.deaths += died
        ended.set()
        if died and self.pause is not None:
            time.sleep(self.pause)
            # who asked for another one meanwhile has it
            if self.wanted and self.run[0] == pid:
                self.start()

    def end(self, number):
        if number == signal.SIGTERM:
            self.wanted = False
        pid, ended = self.run
        if not ended.is_set():
            os.kill(pid, number)
        if not ended.wait(60):
            raise SystemExit("the service does not end")
        with self.lock:
            return " ".join(["ended"] + [name for name, _ in self.kept])

    def obey(self, word):
        if word == "start":
            self.start()
            if not self.ready.wait(60):
                raise SystemExit("the service does not become ready")
            return "ready"
        if word == "deaths":
            return str(self.deaths)
        return self.end({"kill": signal.SIGKILL, "term": signal.SIGTERM}[word])


def is_same(one, other):
    # kcmp(2) with KCMP_FILE, as systemd does; sockets and TUN queues of one device look alike otherwise
    pid = os.getpid()
    return os.path.sameopenfile(one, other) and ctypes.CDLL(None).syscall(KCMP, pid, pid, 0, one, other) == 0


manager = Manager(sys.argv[1], sys.argv[2], sys.argv[3:])
for line in sys.stdin:
    print(manager.obey(line.strip()), flush=True)
manager.wanted = False
if manager.run and not manager.run[1].is_set():
    os.kill(manager.run[0], signal.SIGKILL)
    manager.run[1].wait(60)
