//! Large meshes: how much the kernel is told, how little when something changes, and (by hand) how long it takes.

use std::{
    io::{BufRead, BufReader, Lines},
    net::{IpAddr, Ipv4Addr},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use identun::{
    host::Rules,
    policy::{Compiled, MeshSettings, Mode, Resources},
};

use crate::{
    mesh,
    support::{in_namespace, run, settings},
};

/// What the services have beside one port and one endpoint.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Nothing.
    Plain,
    /// One service account for all, and each an address of its own.
    OneAccount,
    /// Each a network.
    Networks,
}

/// One local workload and `count` services elsewhere.
fn services(count: u32, shape: Shape) -> Resources {
    let entry = |index: u32| {
        let address = Ipv4Addr::from(0x0b00_0000 + index).to_string();
        let account = match shape {
            Shape::OneAccount => "default".to_owned(),
            Shape::Plain | Shape::Networks => format!("s{index}"),
        };
        let endpoint = mesh::workload("ns", &account, &address);
        let host = format!("many{index}.local");
        let mut entry = mesh::service("ns", &host, &["80"], vec![endpoint]);
        let own = Ipv4Addr::from(0x0c00_0000 + index * 4);
        entry.addresses = match shape {
            Shape::Plain => Vec::new(),
            Shape::OneAccount => vec![IpAddr::from(own).into()],
            Shape::Networks => vec![format!("{own}/30").parse().unwrap()],
        };
        entry
    };
    Resources {
        mesh_policy: Some(mesh::mesh_policy(Mode::Strict)),
        service_entries: (0..count).map(entry).collect(),
        workloads: vec![mesh::workload("ns", "host", "10.77.0.1")],
        ..Resources::default()
    }
}

fn compile(resources: &Resources) -> Compiled {
    let facts = mesh::host(&["10.77.0.1"], &["spiffe://cluster.local/ns/ns/sa/host"]);
    mesh::compile(resources, &MeshSettings::default(), facts).0
}

/// One service more is plaintext.
fn with_exception(resources: &Resources) -> Resources {
    let mut resources = resources.clone();
    let exception = mesh::rule("ns", "r", "many7.local", mesh::DISABLE);
    resources.destination_rules.push(exception);
    resources
}

/// `nft monitor`: what the kernel is told.
struct Monitor {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Monitor {
    fn new() -> Self {
        let mut process = Command::new("nft")
            .arg("monitor")
            .env("LC_ALL", "C")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // it listens when it sees a table come, or go
        let is_listening = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_listening.load(Ordering::Relaxed) {
                    run("nft add table inet listening; nft delete table inet listening");
                }
            });
            lines.find(|line| line.as_ref().unwrap().contains("listening"));
            is_listening.store(true, Ordering::Relaxed);
        });
        Self { process, lines }
    }

    /// Every transaction of `idt-host`, each with its lines.
    fn transactions(mut self) -> Vec<Vec<String>> {
        run("nft add table inet last; nft delete table inet last");
        let lines = self.lines.by_ref().map(Result::unwrap);
        let (mut all, mut one) = (Vec::new(), Vec::new());
        for line in lines.take_while(|line| !line.contains("table inet last")) {
            match line.starts_with("# new generation") {
                true if !one.is_empty() => all.push(std::mem::take(&mut one)),
                false if line.contains("idt-host") => one.push(line),
                _ => {}
            }
        }
        all
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn a_large_mesh_is_installed_and_one_changed_rule_is_a_small_change() {
    in_namespace(
        "scale::a_large_mesh_is_installed_and_one_changed_rule_is_a_small_change",
        || {
            let resources = services(3000, Shape::Plain);
            let (old, new) = (compile(&resources), compile(&with_exception(&resources)));
            let settings = settings();
            Rules::shared(&settings).install(old.steering()).unwrap();
            let count = |set: &str| {
                let listing = run(&format!("nft list set inet idt-host {set}"));
                listing.matches("11.0.").count()
            };
            assert_eq!(["must_all4", "must4", "peer4"].map(count), [3000, 0, 3000]);
            let monitor = Monitor::new();
            Rules::shared(&settings)
                .update(old.steering(), new.steering())
                .unwrap();
            let prefix = "element inet idt-host";
            let mut expected = vec![
                format!("delete {prefix} must_all4 {{ 10.77.0.1 . 11.0.0.7 }}"),
                format!("delete {prefix} stray_all4 {{ 11.0.0.7 }}"),
            ];
            for protocol in ["tcp", "udp", "sctp"] {
                let exception = format!("11.0.0.7 . {protocol} . 80");
                expected.push(format!("add {prefix} plain4 {{ 10.77.0.1 . {exception} }}"));
            }
            let [change] = &mut *monitor.transactions() else {
                panic!("not one transaction")
            };
            // the kernel tells of a hash set in no order
            change.sort();
            expected.sort();
            assert_eq!(*change, expected);
            // back to what it was, and nothing for nothing
            let monitor = Monitor::new();
            Rules::shared(&settings)
                .update(new.steering(), old.steering())
                .unwrap();
            Rules::shared(&settings)
                .update(old.steering(), old.steering())
                .unwrap();
            let [change] = &*monitor.transactions() else {
                panic!("not one transaction")
            };
            assert_eq!(change.len(), 5, "{change:?}");
            assert_eq!(["must_all4", "plain4"].map(count), [3000, 0]);
        },
    );
}

#[test]
#[ignore = "a measurement: with --release --nocapture"]
fn how_long_a_large_mesh_takes() {
    in_namespace("scale::how_long_a_large_mesh_takes", || {
        let settings = settings();
        let shapes = [Shape::Plain, Shape::OneAccount, Shape::Networks];
        for (count, shape) in [10_000, 100_000]
            .into_iter()
            .flat_map(|count| shapes.map(|shape| (count, shape)))
        {
            println!("{count} services, {shape:?}:");
            let resources = services(count, shape);
            let changed = with_exception(&resources);
            let old = timed("compile", || compile(&resources));
            let install = || Rules::shared(&settings).install(old.steering()).unwrap();
            timed("install", install);
            timed("install where it stands", install);
            let new = timed("compile with one rule more", || compile(&changed));
            timed("update", || {
                Rules::shared(&settings)
                    .update(old.steering(), new.steering())
                    .unwrap();
            });
            run("nft delete table inet idt-host");
        }
    });
}

#[expect(clippy::disallowed_methods, reason = "a measurement asks the clock")]
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (start, cpu) = (Instant::now(), ticks());
    let result = work();
    let cpu = (ticks() - cpu) * 10;
    println!("  {what}: {:?}, CPU {cpu} ms", start.elapsed());
    result
}

/// Hundredths of a second of CPU that this process and those it started have used.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let times = fields.split_whitespace().skip(11).take(4);
    times.map(|time| time.parse::<u64>().unwrap()).sum()
}
