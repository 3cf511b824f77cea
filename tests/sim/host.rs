//! A host made of smoltcp: applications with a TCP/IP stack of their own behind a shard's device.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::{tcp, udp},
    time::Instant,
    wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint},
};

const MTU: usize = 1500;

/// The queue pair between the stack and the shard: IP packets, no virtio-net header.
#[derive(Default)]
struct Wire {
    to_stack: VecDeque<Vec<u8>>,
    from_stack: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.to_stack.pop_front()?;
        Some((Received(packet), Sending(&mut self.from_stack)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.from_stack))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // A joined packet carries only the pseudo-header's sum, as the kernel allows it.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// One stack with its sockets.
pub(crate) struct Host {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
}

fn instant(elapsed: Duration) -> Instant {
    Instant::from_micros(i64::try_from(elapsed.as_micros()).unwrap())
}

impl Host {
    pub(crate) fn new(addresses: &[IpAddr]) -> Self {
        let mut wire = Wire::default();
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ip), &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in addresses {
                let everyone = 0; // every destination is on the link, which leads to the shard
                list.push(IpCidr::new(IpAddress::from(*address), everyone))
                    .unwrap();
            }
        });
        Self {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = tcp::Socket::new(tcp_buffer(), tcp_buffer());
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn connect(&mut self, local: (IpAddr, u16), remote: (IpAddr, u16)) -> SocketHandle {
        let handle = self
            .sockets
            .add(tcp::Socket::new(tcp_buffer(), tcp_buffer()));
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(self.interface.context(), endpoint(remote), endpoint(local))
            .unwrap();
        handle
    }

    pub(crate) fn bind_udp(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 256], vec![0; 1 << 20]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn udp_send(&mut self, handle: SocketHandle, remote: (IpAddr, u16), data: &[u8]) {
        self.udp(handle).send_slice(data, endpoint(remote)).unwrap();
    }

    /// Gives a packet that the shard wrote to the device to the stack.
    pub(crate) fn receive(&mut self, packet: &[u8]) {
        self.wire.to_stack.push_back(packet.to_vec());
    }

    /// Runs the stack and returns the packets that it sends.
    pub(crate) fn run(&mut self, elapsed: Duration) -> Vec<Vec<u8>> {
        self.interface
            .poll(instant(elapsed), &mut self.wire, &mut self.sockets);
        self.wire.from_stack.drain(..).collect()
    }

    /// When the stack wants to run again, as time since the start.
    pub(crate) fn next_run(&mut self, elapsed: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(instant(elapsed), &self.sockets)?;
        Some(Duration::from_micros(u64::try_from(at.total_micros()).unwrap()).max(elapsed))
    }
}

fn tcp_buffer() -> tcp::SocketBuffer<'static> {
    tcp::SocketBuffer::new(vec![0; 64 * 1024])
}

fn endpoint((address, port): (IpAddr, u16)) -> IpEndpoint {
    IpEndpoint::new(IpAddress::from(address), port)
}
