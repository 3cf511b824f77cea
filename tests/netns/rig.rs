//! Hosts in namespaces with daemons on them; see `netns/topology.sh`.

use std::{
    env, fs,
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long an event may take that must come. Only a failing test waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const INSIDE: &str = "IDENTUN_RING_4";

/// Runs `body` in namespaces of its own: the test calls itself again inside. Where that cannot be, the test says so, and
/// in CI it fails.
pub(crate) fn in_namespaces(test: &str, body: fn(Rig)) {
    if env::var_os(INSIDE).is_some() {
        return body(Rig::new());
    }
    let enter = |arguments: &[&str]| {
        Command::new(topology())
            .arg("enter")
            .args(arguments)
            .env(INSIDE, "1")
            .stdin(Stdio::null())
            .status()
    };
    if !enter(&["true"]).is_ok_and(|status| status.success()) {
        assert!(
            env::var_os("CI").is_none(),
            "ring 4 cannot make namespaces here, and CI must run it"
        );
        println!(
            "NOT RUN: ring 4 cannot make namespaces here (root, or the right to make user namespaces)"
        );
        return;
    }
    let own = env::current_exe().unwrap();
    let status = enter(&[
        own.to_str().unwrap(),
        "--exact",
        test,
        "--nocapture",
        "--test-threads=1",
    ])
    .unwrap();
    assert!(status.success(), "{test}: {status}");
}

fn topology() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("netns/topology.sh")
}

/// Runs `work` on a thread inside the namespace of `host`. Sockets made there stay there.
pub(crate) fn in_namespace<T: Send>(host: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let namespace = File::open(format!("/run/netns/{host}")).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    thread::scope(|scope| {
        scope
            .spawn(enter)
            .join()
            .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })
}

/// A thread inside the namespace of `host` that goes on while the test does something else.
pub(crate) fn spawn_in<T: Send + 'static>(
    host: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(move || in_namespace(host, work))
}

/// Waits for something that must come.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The hosts and their files. Everything lies under /run, which is private and ends with the test.
pub(crate) struct Rig {
    folder: PathBuf,
}

/// A daemon that a test may kill.
pub(crate) struct Daemon {
    host: &'static str,
    child: Child,
}

impl Rig {
    fn new() -> Self {
        run(Command::new(topology()).arg("up"));
        let rig = Self {
            folder: PathBuf::from("/run/rig"),
        };
        fs::create_dir_all(rig.folder.join("policies")).unwrap();
        rig.identun(
            "client",
            &[
                "ca",
                "init",
                "--trust-domain",
                "cluster.local",
                "--dir",
                &rig.path("ca"),
            ],
        );
        rig
    }

    /// A path in the rig's folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Adds a host behind `host`.
    pub(crate) fn workload(&self, host: &str) {
        run(Command::new(topology()).args(["workload", host]));
    }

    /// The wire leads the addresses of `host` to `to`.
    pub(crate) fn reroute(&self, host: &str, to: &str) {
        run(Command::new(topology()).args(["reroute", host, to]));
    }

    /// Issues identities for `accounts` of namespace `default` and writes the host's settings.
    pub(crate) fn configure(&self, host: &str, accounts: &[&str], more: &str) {
        let mut identities = String::new();
        for account in accounts {
            let id = format!("spiffe://cluster.local/ns/default/sa/{account}");
            let out = self.path(&format!("{host}/{account}"));
            self.identun(
                host,
                &["ca", "issue", &id, "--dir", &self.path("ca"), "--out", &out],
            );
            identities += &format!(
                "- {{ certificate: {account}/{account}.pem, key: {account}/{account}.key }}\n"
            );
        }
        let bundle = format!("{}/{}/bundle.pem", self.path(host), accounts[0]);
        let settings = format!(
            "policies: [{policies}]\nidentities:\n{identities}trust_bundles:\n  cluster.local: {bundle}\n\
             state_dir: {state}\nadmin_socket: {socket}\nmetrics: null\n{more}\n",
            policies = self.path("policies"),
            state = self.path(&format!("{host}/state")),
            socket = self.socket(host),
        );
        self.write(&format!("{host}/daemon.yaml"), &settings);
    }

    /// The host's settings file.
    pub(crate) fn settings(&self, host: &str) -> String {
        self.path(&format!("{host}/daemon.yaml"))
    }

    fn socket(&self, host: &str) -> String {
        self.path(&format!("{host}/admin.sock"))
    }

    /// Starts the host's daemon and waits until it is ready.
    pub(crate) fn start(&self, host: &'static str) -> Daemon {
        self.start_by(host, &[])
    }

    /// Starts it by a program that becomes the daemon, with this program's arguments.
    pub(crate) fn start_by(&self, host: &'static str, starter: &[&str]) -> Daemon {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{host}.log")))
            .unwrap();
        let program = identun();
        let words = [starter, &[program.as_str()]].concat();
        let child = command(host, words[0])
            .args(&words[1..])
            .args(["daemon", "--config", &self.settings(host)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { host, child };
        let started = Instant::now();
        while self.status(host).is_none() {
            let ended = daemon.child.try_wait().unwrap();
            assert!(
                ended.is_none() && started.elapsed() < PATIENCE,
                "{host}: {ended:?}\n{}",
                self.log(host)
            );
            thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// What the host's daemon logged.
    pub(crate) fn log(&self, host: &str) -> String {
        fs::read_to_string(self.path(&format!("{host}.log"))).unwrap_or_default()
    }

    /// The status of the host's daemon, unless it cannot be reached.
    pub(crate) fn status(&self, host: &str) -> Option<serde_json::Value> {
        let output = command(host, &identun())
            .args(["status", "-o", "json", "--socket", &self.socket(host)])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Runs `identun` on a host; it must succeed. Returns what it printed.
    pub(crate) fn identun(&self, host: &str, arguments: &[&str]) -> String {
        let output = run(command(host, &identun()).args(arguments));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a program on a host; it must succeed. Returns what it printed.
    pub(crate) fn on(&self, host: &str, arguments: &[&str]) -> String {
        let output = run(command(host, arguments[0]).args(&arguments[1..]));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a program on a host; its failure is an answer too.
    pub(crate) fn try_on(&self, host: &str, arguments: &[&str]) -> Output {
        command(host, arguments[0])
            .args(&arguments[1..])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Starts a program on a host; it ends with the test.
    pub(crate) fn spawn(&self, host: &str, arguments: &[&str]) -> Child {
        let mut command = command(host, arguments[0]);
        command
            .args(&arguments[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Everything a daemon changes on a host, as text to compare. Whether somebody reads the device (its carrier), and who
    /// owns the table, is left out: both end with the process.
    pub(crate) fn host_state(&self, host: &str) -> String {
        let commands: [&[&str]; 8] = [
            &["nft", "list", "ruleset"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "-o", "-4", "addr"],
            &["ip", "-o", "-6", "addr"],
            &["ip", "-4", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["ls", "/sys/class/net"],
        ];
        let texts = commands.map(|command| self.on(host, command).replace(" linkdown", ""));
        let text = texts.join("\n--\n");
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with("\tflags "))
            .map(|line| line.split(" # ").next().unwrap_or_default());
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Daemon {
    /// Ends the daemon without a chance to say anything.
    pub(crate) fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the daemon to end (SIGTERM) and waits for it.
    pub(crate) fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let host = self.host;
        wait_for(&format!("the end of {host}'s daemon"), || {
            self.child.try_wait().unwrap().is_some()
        });
    }

    /// Waits until the daemon ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let host = self.host;
        wait_for(&format!("{host}'s daemon to end by itself"), || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap()
    }

    /// Asks the daemon to read its files again (SIGHUP).
    pub(crate) fn reload(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// The daemon under test.
pub(crate) fn identun() -> String {
    env!("CARGO_BIN_EXE_identun").to_owned()
}

fn command(host: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", host, program])
        .env("NO_COLOR", "1");
    command
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
