//! The ceiling of every tunnel through a TUN: two TUNs in two network namespaces and one loop that copies frames from each
//! to the other. No socket, no encryption, no policy. `netns/lab/null.sh` makes a peer of the lab of it, and
//! docs/performance.md tells what it shows.

#![expect(clippy::print_stdout, reason = "an example talks")]

use std::{fs::File, os::fd::AsFd as _, path::PathBuf};

use anyhow::Context as _;
use clap::Parser;
use identun::device::{
    MAX_FRAME, PacketDevice as _,
    tun::{Tun, TunSettings},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Frames taken from one side before the other is looked at, as identun's own loop does.
const BATCH: usize = 256;

/// Copies every packet between two TUNs in two network namespaces. Says `ready` when both exist; addresses and routes
/// are the caller's. Ends by a signal and leaves the TUNs to their namespaces.
#[derive(Debug, Parser)]
#[command(name = "null-tunnel", version, max_term_width = 80)]
struct Cli {
    /// Name of both TUNs
    #[arg(long, default_value = "null0", value_name = "NAME")]
    tun: String,
    /// MTU of both
    #[arg(long, default_value_t = 1432, value_name = "BYTES")]
    mtu: u16,
    /// The first namespace: /run/netns/a
    first: PathBuf,
    /// The second
    second: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let open = |namespace: &PathBuf| -> anyhow::Result<Tun> {
        let file = File::open(namespace)
            .with_context(|| format!("cannot open the namespace {}", namespace.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", namespace.display()))?;
        let settings = TunSettings {
            name: cli.tun.clone(),
            mtu: cli.mtu,
            queue_length: 4_000,
        };
        Ok(Tun::open(&settings)?)
    };
    let (mut first, mut second) = (open(&cli.first)?, open(&cli.second)?);
    println!("ready");
    let mut frame = vec![0; MAX_FRAME];
    loop {
        let [from_first, from_second] = wait(&first, &second)?;
        if from_first {
            copy(&mut first, &mut second, &mut frame);
        }
        if from_second {
            copy(&mut second, &mut first, &mut frame);
        }
    }
}

/// Which of the two has frames.
fn wait(first: &Tun, second: &Tun) -> anyhow::Result<[bool; 2]> {
    let descriptors = first.fd().zip(second.fd());
    let (first, second) = descriptors.context("a TUN without descriptor")?;
    let mut ready = [first, second].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut ready, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context("cannot wait for frames"),
    }
    Ok(ready.map(|one| one.revents().contains(PollFlags::IN)))
}

/// What the other side does not take is lost, as on a wire.
fn copy(from: &mut Tun, to: &mut Tun, frame: &mut [u8]) {
    for _ in 0..BATCH {
        let Ok(length) = from.read(frame) else { return };
        let _ = frame.get(..length).map(|frame| to.write(frame));
    }
}
