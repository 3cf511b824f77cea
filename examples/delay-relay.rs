//! A link of the lab: every IP packet that is routed into a TUN is held for a delay and given back to the kernel, which
//! then routes it on. Also loses, doubles, reorders and slows down, by chances that a seed repeats.
//!
//! For kernels without netem. `tests/netns/delays.rs` shows what it holds to, `netns/lab/loss.sh` measures through it.

#![expect(clippy::disallowed_methods, reason = "a relay asks the time")]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "an example talks"
)]

#[path = "delay-relay/relay.rs"]
mod relay;

use std::{process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use relay::{
    Order, Orders, Relay,
    line::{Impairment, Rate},
};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

/// Holds every IP packet that is routed into a TUN for a delay and gives it back to the kernel, which routes it on.
///
/// Runs in a router's network namespace, and makes the TUN there. Each way has the delay, the chances and the rate: two
/// ways of 5ms make a round trip of 10 ms.
#[derive(Debug, Parser)]
#[command(name = "delay-relay", version, after_help = ROUTING, max_term_width = 80)]
struct Cli {
    /// Name of the TUN
    #[arg(long, default_value = "relay0", value_name = "NAME")]
    tun: String,
    /// Time added to each packet: 5ms, 200us, 1s
    #[arg(long, default_value = "0ms", value_name = "TIME", value_parser = time)]
    delay: Duration,
    /// Up to this much more, evenly spread; never changes the order
    #[arg(long, default_value = "0ms", value_name = "TIME", value_parser = time)]
    jitter: Duration,
    /// Share of wire packets that are lost: 1%
    #[arg(long, default_value = "0%", value_name = "PERCENT", value_parser = percent)]
    loss: f64,
    /// Share of wire packets that others overtake: they take the delay twice, and 1 ms more at least
    #[arg(long, default_value = "0%", value_name = "PERCENT", value_parser = percent)]
    reorder: f64,
    /// Share of wire packets that arrive twice
    #[arg(long, default_value = "0%", value_name = "PERCENT", value_parser = percent)]
    duplicate: f64,
    /// Speed of the line, the 38 bytes of Ethernet around a packet included: 100mbit, 2gbit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<u64>,
    /// What may wait for the line before packets are dropped: 65536, 256KiB, 1MiB
    #[arg(long, default_value = "1MiB", requires = "rate", value_name = "BYTES", value_parser = bytes)]
    queue: usize,
    /// The same seed gives the same packets the same fate
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
}

const ROUTING: &str = "\
It says `ready` when the TUN exists. Between the links vethA and vethB of the router:
  sysctl -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0
  ip link set relay0 up
  ip route add default dev relay0 table 100
  ip rule add iif vethA lookup 100
  ip rule add iif vethB lookup 100
and the same with `ip -6`. What comes back out of relay0 follows the main table.

Super-packets stay whole unless --loss, --reorder, --duplicate or --rate ask
about single packets. The two ways are told apart by which of a packet's two
addresses is the larger: rates and chances are those of a link of two hosts.

SIGUSR1, SIGINT and SIGTERM print one line of counters; the last two end it.
`refused` (packets that the kernel did not take back) and `unread` (packets that
came faster than they were read) must be 0, or the link was worse than asked for.";

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("delay-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let orders = Arc::new(Orders::new().context("cannot make an eventfd")?);
    let signals = Signals::listen().context("cannot listen to signals")?;
    let mut relay = Relay::open(&cli.tun, cli.impairment())?;
    let forwarded = Arc::clone(&orders);
    thread::spawn(move || signals.forward(&forwarded));
    println!("ready {}", cli.tun);
    loop {
        let order = relay
            .run(&orders)
            .with_context(|| format!("the device {} does not work", cli.tun))?;
        println!("{}", relay.report());
        if order == Order::Stop {
            return Ok(relay.close()?);
        }
    }
}

impl Cli {
    fn impairment(&self) -> Impairment {
        Impairment {
            delay: self.delay,
            jitter: self.jitter,
            loss: self.loss,
            reorder: self.reorder,
            duplicate: self.duplicate,
            rate: self.rate.map(|bits_per_second| Rate {
                bits_per_second,
                queue: self.queue,
            }),
            seed: self.seed,
        }
    }
}

/// Signals that are orders. A relay sleeps in the kernel, so another thread takes them.
struct Signals {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
    report: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let context = runtime.enter();
        let (interrupt, terminate, report) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::user_defined1())?,
        );
        drop(context);
        Ok(Self {
            runtime,
            interrupt,
            terminate,
            report,
        })
    }

    /// Never returns.
    fn forward(mut self, orders: &Orders) {
        self.runtime.block_on(async {
            loop {
                let order = tokio::select! {
                    _ = self.interrupt.recv() => Order::Stop,
                    _ = self.terminate.recv() => Order::Stop,
                    _ = self.report.recv() => Order::Report,
                };
                orders.give(order);
            }
        });
    }
}

/// `5ms`: a number and its unit.
fn time(text: &str) -> anyhow::Result<Duration> {
    let seconds = with_unit(text, &[("s", 1.0), ("ms", 1e-3), ("us", 1e-6)])?;
    ensure!(seconds <= 60.0, "at most 60s");
    Ok(Duration::from_secs_f64(seconds))
}

/// `1%` as a chance of 0 to 1.
fn percent(text: &str) -> anyhow::Result<f64> {
    let chance = with_unit(text, &[("%", 1e-2)])?;
    ensure!(chance <= 1.0, "at most 100%");
    Ok(chance)
}

/// `100mbit` as bits a second.
fn rate(text: &str) -> anyhow::Result<u64> {
    let units = [("bit", 1.0), ("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
    let bits = with_unit(text, &units)?;
    ensure!((1e3..=1e12).contains(&bits), "a rate is 1kbit to 1000gbit");
    Ok(bits as u64)
}

/// `256KiB` as bytes.
fn bytes(text: &str) -> anyhow::Result<usize> {
    let bytes = with_unit(text, &[("", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0)])?;
    ensure!(
        (1_600.0..=134_217_728.0).contains(&bytes),
        "a queue is 1600 (one packet) to 128MiB"
    );
    Ok(bytes as usize)
}

fn with_unit(text: &str, units: &[(&str, f64)]) -> anyhow::Result<f64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let names: Vec<_> = units.iter().map(|(name, _)| format!("1{name}")).collect();
        bail!("write it like {}", names.join(", "));
    };
    let number: f64 = number.parse().context("the number cannot be read")?;
    Ok(number * factor)
}
