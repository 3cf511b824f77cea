//! Which of several sockets on one port gets a datagram: a classic BPF program that reads the shard's octet of the
//! connection ID (performance.md §3, rule 11).
#![expect(unsafe_code, reason = "a socket filter is set with setsockopt")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use libc::sock_filter;

use crate::tunnel::{CONNECTION_ID_LEN, LONG_HEADER, LONG_ID_AT, SHORT_ID_AT};

/// A result that is no socket's index: the kernel then takes the hash of both addresses and ports.
const ANY: u32 = u32::MAX;
/// Of linux's asm-generic/socket.h.
const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;

/// The program for `sockets` sockets. It runs with the UDP payload as its packet (`run_bpf_filter` of the kernel's
/// net/core/sock_reuseport.c pulls the UDP header), and agrees with [`crate::tunnel::shard_octet`] where there is an octet.
///
/// The remainder also finds a socket for connection IDs of a predecessor that had more shards: whoever gets them answers
/// with a stateless reset.
fn program(sockets: u8) -> [sock_filter; 10] {
    use libc::{
        BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_JA, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_MOD,
        BPF_RET,
    };
    let step = |code: u32, jump_true, jump_false, k: usize| sock_filter {
        // every code of classic BPF is below 256, and every number here fits
        code: u16::try_from(code).unwrap_or(0),
        jt: jump_true,
        jf: jump_false,
        k: u32::try_from(k).unwrap_or(ANY),
    };
    let any = usize::try_from(ANY).unwrap_or(usize::MAX);
    [
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JSET | BPF_K, 2, 0, LONG_HEADER.into()),
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, SHORT_ID_AT),
        step(BPF_JMP | BPF_JA, 0, 0, 3),
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, LONG_ID_AT - 1),
        step(BPF_JMP | BPF_JGE | BPF_K, 0, 3, CONNECTION_ID_LEN),
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, LONG_ID_AT),
        step(BPF_ALU | BPF_MOD | BPF_K, 0, 0, sockets.into()),
        step(BPF_RET | BPF_A, 0, 0, 0),
        // Where a connection ID is too short to be one of ours.
        step(BPF_RET | BPF_K, 0, 0, any),
    ]
}

/// Sets the program of the group that `socket` is in.
pub(super) fn attach(socket: impl AsFd, sockets: u8) -> io::Result<()> {
    let mut steps = program(sockets);
    let program = libc::sock_fprog {
        len: u16::try_from(steps.len()).unwrap_or(0),
        filter: steps.as_mut_ptr(),
    };
    let size = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or(0);
    // SAFETY: the kernel reads `size` bytes of `program` and `len` steps behind its pointer, which both live until the
    // call returns; it keeps a copy of its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
