//! An allocator that counts what a thread allocates while it is told to, and names who asked.

#![expect(unsafe_code, reason = "an allocator cannot be written without")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is done at an allocation.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Mode {
    Idle,
    Count,
    Trace,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Idle) };
    static COUNT: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    static TRACES: RefCell<Vec<Backtrace>> = const { RefCell::new(Vec::new()) };
}

/// Allocations of some work; growing a buffer is one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
}

/// Counts what this thread allocates during `work`.
pub(crate) fn counted(work: impl FnOnce()) -> Count {
    COUNT.set((0, 0));
    MODE.set(Mode::Count);
    work();
    MODE.set(Mode::Idle);
    let (allocations, bytes) = COUNT.get();
    Count { allocations, bytes }
}

/// Who allocates during `work`: `crate: function`, and how often. Slow.
pub(crate) fn traced(work: impl FnOnce()) -> BTreeMap<(String, String), u64> {
    MODE.set(Mode::Trace);
    work();
    MODE.set(Mode::Idle);
    let mut sites = BTreeMap::new();
    for trace in TRACES.take() {
        *sites.entry(site(&trace.to_string())).or_default() += 1;
    }
    sites
}

/// Crates that allocate for whoever calls them.
const SERVANTS: &[&str] = &["alloc", "bytes", "core", "hashbrown", "rustc", "std"];
/// Whoever cannot be named.
pub(crate) const UNKNOWN: &str = "unknown";
/// This program, which is not what is looked at.
const HARNESS: &[&str] = &["allocations", "dataplane"];

/// The innermost function of a backtrace that is neither a servant's nor ours, and its crate.
fn site(trace: &str) -> (String, String) {
    let mut lines = trace.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let Some((_, name)) = line.split_once(": ") else {
            continue;
        };
        let place = lines.next_if(|line| line.starts_with("at "));
        let owner = match place {
            Some(place) => owner_of_file(place),
            None => owner_of_symbol(name),
        };
        match owner {
            Some(owner) if !SERVANTS.contains(&owner) && !HARNESS.contains(&owner) => {
                let place = place.map_or("", |place| place.rsplit('/').next().unwrap_or(place));
                return (owner.to_owned(), format!("{name} {place}"));
            }
            _ => {}
        }
    }
    (UNKNOWN.to_owned(), trace.to_owned())
}

/// The crate of a frame that has debug information, whose name may be that of an inlined function.
fn owner_of_file(place: &str) -> Option<&str> {
    if let Some((_, path)) = place.split_once("/registry/src/") {
        let folder = path.split('/').nth(1)?;
        return folder.rsplit_once('-').map(|(name, _)| name);
    }
    let is_ours = place.contains("benches/") || place.contains("tests/");
    Some(match place {
        _ if place.contains("/library/") => "std",
        _ if is_ours => "dataplane",
        _ => "identun",
    })
}

/// The crate of a frame that has only its symbol.
fn owner_of_symbol(name: &str) -> Option<&str> {
    let path = name.trim_start_matches(['<', '&', '_']);
    let (owner, _) = path.split_once("::")?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    owner.bytes().all(is_name).then_some(owner)
}

fn note(layout: Layout) {
    // A thread that ends has no cells left, and nothing that counts.
    let Ok(mode) = MODE.try_with(Cell::get) else {
        return;
    };
    match mode {
        Mode::Idle => {}
        Mode::Count => {
            let (allocations, bytes) = COUNT.get();
            COUNT.set((allocations + 1, bytes + layout.size() as u64));
        }
        Mode::Trace => {
            MODE.set(Mode::Idle);
            let trace = Backtrace::force_capture();
            TRACES.with_borrow_mut(|traces| traces.push(trace));
            MODE.set(Mode::Trace);
        }
    }
}

// SAFETY: every call is passed on as it came to the system's allocator, which keeps the contract; counting touches only
// cells of the thread, and what tracing allocates itself comes while the mode is Idle, so that it does not recurse.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout);
        // SAFETY: the caller's promise for `alloc` is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout);
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(layout);
        // SAFETY: `block` came from the system's allocator with this layout, as every block does.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from the system's allocator with this layout, as every block does.
        unsafe { System.dealloc(block, layout) };
    }
}
