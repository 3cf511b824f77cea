//! Feeds the flow log with what the kernel knows of plaintext: a thread that hears beginnings and reads the table now and
//! then, which also tells that long flows still speak.

use std::{collections::BTreeMap, io, sync::Arc, thread, time::Duration};

use crate::{
    daemon::{
        clock::unix_millis,
        configuration::chained,
        control::Control,
        flowlog::{CAPACITY, Held, Key, Source, plaintext_key},
    },
    host::{
        HostError,
        conntrack_events::{Heard, NewConnections, connections_outside_tunnels},
    },
};

/// How often the table is read while beginnings are heard.
const LOOK: Duration = Duration::from_secs(30);
/// How often it is read where they are not: entries of UDP live for half a minute.
const LOOK_WITHOUT_EVENTS: Duration = Duration::from_secs(10);
/// After a loss the table is read, but not more often than this.
const BETWEEN_LOOKS_MS: u64 = 5_000;

/// Starts the thread; it ends with the daemon.
///
/// # Errors
/// When there can be no thread.
pub fn spawn(control: &Arc<Control>) -> io::Result<()> {
    let control = Arc::clone(control);
    thread::Builder::new()
        .name("identun-flowlog".into())
        .spawn(move || Feed::new(control).run())
        .map(drop)
}

/// Reads the table at once, for an answer that is true of this moment.
///
/// # Errors
/// When the kernel refuses.
pub fn look(control: &Control) -> Result<(), HostError> {
    let policy = Arc::clone(&control.active.load().compiled);
    let mut held: BTreeMap<Key, Held> = BTreeMap::new();
    connections_outside_tunnels(&control.host, |connection| {
        if let Some(key) = plaintext_key(&connection, &policy)
            && (held.len() < CAPACITY || held.contains_key(&key))
        {
            let held = held.entry(key).or_default();
            held.connections += 1;
            held.open |= !connection.over;
        }
        true
    })?;
    control.flow_log.merge(&held, &policy, unix_millis());
    Ok(())
}

struct Feed {
    control: Arc<Control>,
    events: Option<NewConnections>,
    /// When the table was read last, Unix milliseconds.
    looked: u64,
}

impl Feed {
    fn new(control: Arc<Control>) -> Self {
        let mut feed = Self {
            control,
            events: None,
            looked: 0,
        };
        match NewConnections::subscribe(&feed.control.host) {
            Ok(events) => {
                feed.events = Some(events);
                feed.control.flow_log.set_source(Source::Events, None);
            }
            Err(error) => feed.without_events(error),
        }
        feed.look();
        feed
    }

    fn run(mut self) -> ! {
        loop {
            match self.hear() {
                Ok(Heard::All) => self.look(),
                Ok(Heard::SomeLost) => {
                    self.control.flow_log.lost();
                    if unix_millis().saturating_sub(self.looked) > BETWEEN_LOOKS_MS {
                        self.look();
                    }
                }
                Err(error) => self.without_events(error),
            }
        }
    }

    fn hear(&mut self) -> Result<Heard, HostError> {
        let Control {
            active, flow_log, ..
        } = &*self.control;
        let Some(events) = &mut self.events else {
            thread::sleep(LOOK_WITHOUT_EVENTS);
            return Ok(Heard::All);
        };
        events.wait(LOOK, |connection| {
            flow_log.plaintext(&connection, &active.load().compiled, unix_millis());
        })
    }

    fn without_events(&mut self, error: HostError) {
        self.events = None;
        let trouble = chained(error);
        tracing::warn!(
            error = trouble,
            "cannot hear of plaintext as it begins; the flow log reads conntrack's table instead"
        );
        let flow_log = &self.control.flow_log;
        flow_log.set_source(Source::Dumps, Some(trouble));
    }

    fn look(&mut self) {
        self.looked = unix_millis();
        if let Err(error) = look(&self.control) {
            let trouble = chained(error);
            tracing::warn!(
                error = trouble,
                "cannot read conntrack; the flow log knows no plaintext"
            );
            let flow_log = &self.control.flow_log;
            flow_log.set_source(Source::None, Some(trouble));
        }
    }
}
