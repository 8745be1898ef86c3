"""What root in a machine sends to its network process when the kernel's own network is out of the way.

    peer.py noise SEED COUNT    frames of nonsense, and honest ones with some bytes changed
    peer.py serve PORT COUNT    answers that many connections to a port, each with another attack and then with "fine"
    peer.py dial PORT COUNT     opens that many to a server of the network outside, the same way
"""

import random
import socket
import struct
import subprocess
import sys

DEVICE = "eth0"
GUEST = socket.inet_aton("10.0.2.15")
GATEWAY = socket.inet_aton("10.0.2.2")
RESOLVER = socket.inet_aton("10.0.2.3")
# A server outside, of the test's own (RFC 5737).
OUTSIDE = socket.inet_aton("198.51.100.1")
GATEWAY_MAC = bytes.fromhex("52550a000202")
BROADCAST = b"\xff" * 6
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
TCP, UDP, ICMP = 6, 17, 1
# The option that windows are in units of 8 bytes, and one that says nothing.
WINDOW_SCALE = b"\1\3\3\3"
# What the network process buffers of one connection.
BUFFER = 256 * 1024

with open(f"/sys/class/net/{DEVICE}/address") as address:
    MAC = bytes.fromhex(address.read().strip().replace(":", ""))
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind((DEVICE, 0))


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(protocol, body, source=GUEST, target=GATEWAY):
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, source, target)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def with_pseudo_checksum(protocol, body, at, source, target):
    pseudo = source + target + struct.pack("!BBH", 0, protocol, len(body))
    return body[:at] + struct.pack("!H", checksum(pseudo + body)) + body[at + 2 :]


def udp(data, source_port, port, source=GUEST, target=GATEWAY):
    body = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
    return ip(UDP, with_pseudo_checksum(UDP, body, 6, source, target), source, target)


def tcp(flags, number, ack, data=b"", ports=(0, 0), words=5, urgent=0, source=GUEST, target=GATEWAY):
    number, ack = number % (1 << 32), ack % (1 << 32)
    body = struct.pack("!HHIIBBHHH", *ports, number, ack, words << 4, flags, 64000, 0, urgent) + data
    return ip(TCP, with_pseudo_checksum(TCP, body, 16, source, target), source, target)


def arp(operation, target):
    return struct.pack("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, operation, MAC, GUEST, GATEWAY_MAC, target)


def send(kind, body, target=GATEWAY_MAC):
    try:
        link.send(target + MAC + struct.pack("!H", kind) + body)
    except OSError:
        # The kernel takes none that is too short, or has no room: then another one.
        pass


def noise(seed, count):
    chance = random.Random(seed)
    query = b"\1\2\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1"
    honest = [
        (ARP, arp(1, GATEWAY)),
        (IPV4, ip(ICMP, b"\x08\0\xf7\xff\0\0\0\0")),
        (IPV4, udp(query, 4000, 53, target=RESOLVER)),
        (IPV4, udp(b"\1\1\6\0" + bytes(232) + b"\x63\x82\x53\x63\x35\1\1\xff", 68, 67)),
        (IPV4, tcp(SYN, 7, 0, ports=(4000, 80))),
        (IPV4, tcp(SYN, 7, 0, ports=(4001, 22), target=socket.inet_aton("127.0.0.1"))),
        (IPV4, tcp(SYN, 7, 0, ports=(4002, 80), source=GATEWAY, target=GUEST)),
        (IPV4, tcp(ACK | PSH, 9, 9, b"data", ports=(4000, 80))),
    ]
    for number in range(count):
        kind, body = chance.choice(honest)
        if number % 3 == 0:
            kind = chance.choice([ARP, IPV4, IPV6, chance.randrange(1 << 16)])
            body = chance.randbytes(chance.randrange(1500))
        elif number % 3 == 1:
            body = bytearray(body)
            for _ in range(chance.randrange(1, 4)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            body = bytes(body[: chance.randrange(1, len(body) + 1)]) if chance.random() < 0.3 else bytes(body)
        else:
            body = body[:20] + chance.randbytes(len(body) - 20)
        send(kind, body, chance.choice([GATEWAY_MAC, BROADCAST]))


class Connection:
    """One with somebody whose part the network process plays."""

    def __init__(self, port, peer_port, peer=GATEWAY):
        self.ports = (port, peer_port)
        self.peer = peer
        self.next = random.getrandbits(32)
        self.ack = 0

    def answer(self, peer_number):
        self.ack = peer_number + 1
        self.segment(SYN | ACK, 0, WINDOW_SCALE, words=6)
        self.next += 1

    def open(self):
        self.segment(SYN, 0, WINDOW_SCALE, words=6)
        self.next += 1

    def segment(self, flags, offset=0, data=b"", ack=0, **more):
        more = {"ports": self.ports, "target": self.peer, **more}
        send(IPV4, tcp(flags, self.next + offset, self.ack + ack, data, **more))

    def attack(self, number):
        """Says "fine", perhaps with more behind it that was sent in order, too, and ends."""
        self.sent = ATTACKS[number % len(ATTACKS)](self) or 4
        self.segment(ACK | PSH, 0, b"fine")
        self.segment(ACK | FIN, self.sent)

    def end(self, peer_number):
        self.ack = peer_number + 1
        self.segment(ACK, self.sent + 1)


def beyond_the_window(connection):
    for offset in (BUFFER - 3, BUFFER, BUFFER + 1, 2 * BUFFER, 1 << 23, 1 << 30, (1 << 31) + 5, -1400):
        connection.segment(ACK | PSH, offset, b"x" * 1400)
        connection.segment(ACK | PSH, offset, b"late")


def more_than_fits(connection):
    size = 1 << 15
    connection.segment(ACK | PSH, BUFFER - size, b"x" * (size + 20000))
    for start in reversed(range(size, BUFFER, size)):
        connection.segment(ACK | PSH, start, b"x" * size)
    # Now all that came before it is in order at once.
    connection.segment(ACK | PSH, 0, b"fine".ljust(size, b"x"))
    return BUFFER


def false_headers(connection):
    for words in (0, 4, 6, 15):
        connection.segment(ACK, 0, b"", words=words)
    connection.segment(ACK | URG, 0, b"fine", urgent=65535)
    connection.segment(SYN | FIN | ACK | PSH, 0, b"")
    connection.segment(0, 0, b"")


def false_acknowledgements(connection):
    for ack in (1, 1000, 1 << 20, (1 << 31) - 1, -1, -100000):
        connection.segment(ACK, 0, b"", ack=ack)


def opened_again(connection):
    for _ in range(50):
        connection.segment(SYN | ACK, -1)
        connection.segment(SYN, -1)


def in_pieces(connection):
    for index in reversed(range(1, 4)):
        connection.segment(ACK, index, b"fine"[index : index + 1])
    for _ in range(20):
        connection.segment(ACK, 1, b"in")


def behind_the_end(connection):
    connection.segment(ACK | PSH | FIN, 0, b"fine")
    for offset in (4, 5, 6, 1000):
        connection.segment(ACK | PSH, offset, b"more")


ATTACKS = [
    beyond_the_window,
    more_than_fits,
    false_headers,
    false_acknowledgements,
    opened_again,
    in_pieces,
    behind_the_end,
]


def segments():
    """What comes in: source, ports, number and flags."""
    link.settimeout(60)
    while True:
        frame = link.recv(65536)
        kind = struct.unpack_from("!H", frame, 12)[0]
        if frame[6:12] == MAC:
            continue
        if kind == ARP:
            send(ARP, arp(2, GATEWAY))
        if kind == IPV4 and frame[23] == TCP:
            peer_port, port, number, _, _, flags = struct.unpack_from("!HHIIBB", frame, 34)
            yield frame[26:30], peer_port, port, number, flags


def serve(port, count):
    served = {}
    finished = set()
    print("ready", flush=True)
    for _, peer_port, to, number, flags in segments():
        if to != port:
            continue
        if flags & SYN and peer_port not in served:
            served[peer_port] = Connection(port, peer_port)
            served[peer_port].answer(number)
            served[peer_port].attack(len(served) - 1)
        elif peer_port in served and flags & (FIN | RST):
            served[peer_port].end(number)
            finished.add(peer_port)
        if len(finished) == count:
            return


def dial(port, count):
    for attack in range(count):
        connection = Connection(5000 + attack, port, OUTSIDE)
        connection.open()
        for source, _, to, number, flags in segments():
            if source != OUTSIDE or to != 5000 + attack:
                continue
            if flags & SYN:
                connection.ack = number + 1
                connection.attack(attack)
            elif flags & (FIN | RST):
                connection.end(number)
                break


def without_the_kernel(talk, *numbers):
    # Whatever the kernel would answer by itself needs an address.
    subprocess.run(["ip", "address", "del", "10.0.2.15/24", "dev", DEVICE], check=True)
    try:
        talk(*numbers)
    finally:
        subprocess.run(["ip", "address", "add", "10.0.2.15/24", "dev", DEVICE], check=True)
        subprocess.run(["ip", "route", "replace", "default", "via", "10.0.2.2"], check=True)


what, *numbers = sys.argv[1:]
numbers = map(int, numbers)
if what == "noise":
    noise(*numbers)
else:
    without_the_kernel({"serve": serve, "dial": dial}[what], *numbers)
