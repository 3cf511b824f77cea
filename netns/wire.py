#!/usr/bin/env python3
"""What the wire sees: records packets, and tells which of them are not the tunnel's.

A user who made a namespace cannot change to another user, and tcpdump always does; so this records by itself.

Usage: wire.py record FILE    record every IP packet of this namespace until SIGTERM; fails when the kernel lost one
       wire.py others FILE    print the packets that are not tunnel traffic; fails when there is no tunnel traffic
"""

import ipaddress
import mmap
import select
import signal
import socket
import struct
import sys

TUNNEL_PORT = 15008
IP_PROTOCOLS = {0x0800, 0x86DD}
LINKTYPE_RAW = 101
SOL_PACKET, PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, TPACKET_V3 = 263, 5, 6, 10, 2
ALL_PROTOCOLS = 3
BLOCK, BLOCKS = 1 << 20, 32
HOP_BY_HOP, ICMP, UDP, ICMPV6 = 0, 1, 17, 58


def record(path):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL_PROTOCOLS))
    wire.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
    # The ring, unlike a socket's buffer, may be large without privilege. The kernel hands a block over after 20 ms.
    ring = struct.pack("7I", BLOCK, BLOCKS, 1 << 16, BLOCK * BLOCKS >> 16, 20, 0, 0)
    wire.setsockopt(SOL_PACKET, PACKET_RX_RING, ring)
    memory = mmap.mmap(wire.fileno(), BLOCK * BLOCKS)
    ready = select.poll()
    ready.register(wire, select.POLLIN)
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, LINKTYPE_RAW))
        print("listening", flush=True)
        block = 0
        while True:
            # What was queued at the end is written as well: only an empty ring ends the recording.
            last = bool(ended)
            if not memory[block * BLOCK + 8] & 1:
                if not ready.poll(100) and last:
                    break
                continue
            write_block(memory, block * BLOCK, file)
            memory[block * BLOCK + 8 : block * BLOCK + 12] = bytes(4)
            block = (block + 1) % BLOCKS
    _, lost, _ = struct.unpack("3I", wire.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
    if lost:
        sys.exit(f"wire: the kernel lost {lost} packets of the recording")


def write_block(memory, block, file):
    """Writes the IP packets of one block of the ring (packet(7), struct tpacket3_hdr)."""
    count, offset = struct.unpack_from("=II", memory, block + 12)
    for _ in range(count):
        at = block + offset
        following, seconds, nanoseconds, length, _, _, _, start = struct.unpack_from("=6I2H", memory, at)
        (protocol,) = struct.unpack_from("!H", memory, at + 48 + 2)
        if protocol in IP_PROTOCOLS:
            file.write(struct.pack("<IIII", seconds, nanoseconds, length, length))
            file.write(memory[at + start : at + start + length])
        offset += following


def packets(path):
    with open(path, "rb") as file:
        file.read(24)
        while head := file.read(16):
            yield file.read(struct.unpack("<IIII", head)[2])


def parse(packet):
    """Protocol, source, destination and what follows the IP header."""
    if packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        addresses, protocol = (packet[12:16], packet[16:20]), packet[9]
    else:
        start = 40
        addresses, protocol = (packet[8:24], packet[24:40]), packet[6]
        if protocol == HOP_BY_HOP:
            protocol, start = packet[40], 48 + packet[41] * 8
    source, destination = map(ipaddress.ip_address, addresses)
    return protocol, source, destination, packet[start:]


def is_tunnel(packet):
    protocol, _, _, payload = parse(packet)
    return protocol == UDP and len(payload) >= 4 and TUNNEL_PORT in struct.unpack("!HH", payload[:4])


def is_about_the_link_or_the_tunnel(packet):
    """Neighbour and listener discovery, or an error about a tunnel packet, which quotes ciphertext."""
    protocol, _, _, payload = parse(packet)
    if protocol == ICMPV6 and payload[0] >= 130:
        return True
    errors = {ICMP: {3, 11}, ICMPV6: {1, 2, 3}}.get(protocol, set())
    return bool(errors) and payload[0] in errors and is_tunnel(payload[8:])


def others(path):
    tunnel = 0
    for packet in packets(path):
        if is_tunnel(packet):
            tunnel += 1
        elif not is_about_the_link_or_the_tunnel(packet):
            protocol, source, destination, _ = parse(packet)
            print(f"protocol {protocol}, {source} -> {destination}, {len(packet)} bytes")
    if not tunnel:
        sys.exit("wire: no tunnel traffic in the recording")


if __name__ == "__main__":
    commands = {"record": record, "others": others}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](sys.argv[2])
