//! A service manager (`manager.py`) that runs a host's daemon as a unit file says.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
};

use crate::rig::{Rig, identun};

/// The unit file, for what it says of restarts.
const UNIT: &str = include_str!("../../config/systemd/identun.service");

/// A service manager that keeps the descriptors of one host's daemon.
pub(crate) struct Manager {
    child: Child,
    answers: BufReader<ChildStdout>,
}

/// What the unit file sets `name` to.
pub(crate) fn unit_setting(name: &str) -> &'static str {
    let line = UNIT
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("the unit has no {name}"))
}

impl Manager {
    /// A daemon that dies is started again after the time `restart`, as a unit file has it, or `no`t.
    pub(crate) fn new(rig: &Rig, host: &str, restart: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns/manager.py");
        let socket = rig.path(&format!("{host}.notify"));
        let settings = rig.settings(host);
        let log = File::options()
            .create(true)
            .append(true)
            .open(rig.path(&format!("{host}.log")))
            .unwrap();
        let mut child = Command::new("ip")
            .args(["netns", "exec", host, "python3", script, &socket, restart])
            .args([&identun(), "daemon", "--config", &settings])
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// Gives a command and returns the answer.
    pub(crate) fn tell(&mut self, command: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&mut self) {
        assert_eq!(self.tell("start"), "ready");
    }

    /// Ends the daemon without a chance to say anything.
    pub(crate) fn kill_9(&mut self) {
        let told = self.tell("kill");
        assert!(told.starts_with("ended"), "{told}");
    }

    /// How often the daemon has died and nobody had asked it to.
    pub(crate) fn deaths(&mut self) -> u64 {
        self.tell("deaths").parse().unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // at the end of its input it ends the daemon, then itself
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
