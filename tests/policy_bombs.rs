//! Files made to exhaust whoever reads them are refused at once: aliases, depth, size, and many small things. The memory
//! is counted by the allocator of this test's own program; the time is printed, and checked by `make fuzz` alone, where
//! the machine is the test's.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use identun::policy::{MeshSettings, SourceFile, load::load, render};
use rustix::time::{ClockId, clock_gettime};

/// What reading a file may take on top of its text.
const MAX_MEMORY: usize = 32 << 20;
/// How long the refusal may take a processor.
const MAX_TIME: Duration = Duration::from_millis(50);
/// And that of a file that is as long as a file may be and has something to read all along.
const MAX_TIME_OF_MANY: Duration = Duration::from_millis(500);

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn taken(size: usize) {
    let now = NOW.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is; only numbers are kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's promises are those that System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer came from System.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A ServiceEntry around something.
fn around(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: bomb}}\nspec: {spec}\n"
    )
}

/// Ten times ten times ten ... by aliases.
fn laughs(reference: impl Fn(usize) -> String) -> String {
    let mut text = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for level in 1..30 {
        let items = vec![reference(level - 1); 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    text
}

fn bombs() -> Vec<(&'static str, String)> {
    let mib = 1 << 20;
    let merged = (1..30).fold("a0: &a0 {k: v}\n".to_owned(), |text, level| {
        let last = level - 1;
        format!("{text}a{level}: &a{level}\n  <<: [*a{last}, *a{last}]\n  k{level}: *a{last}\n")
    });
    vec![
        ("a billion laughs", laughs(|level| format!("*a{level}"))),
        ("merge keys", merged),
        ("an alias of itself", "a: &a [*a]\n".into()),
        ("lists in lists", around(&"[".repeat(mib / 2))),
        ("maps in maps", around(&"{a: ".repeat(mib / 8))),
        (
            "indents",
            (0..1_000)
                .map(|depth| format!("{}a:\n", " ".repeat(depth)))
                .collect(),
        ),
        ("dashes", "- ".repeat(mib / 4)),
        (
            "10 MB in quotes",
            around(&format!("{{hosts: [\"{}\"]}}", "a".repeat(10 * mib))),
        ),
        ("10 MB plain", around(&"a".repeat(10 * mib))),
        (
            "10 MB in a block",
            around(&format!("|\n  {}\n", "a".repeat(10 * mib))),
        ),
        (
            "1 MiB in quotes",
            around(&format!("{{hosts: [\"{}\"]}}", "a".repeat(mib - 200))),
        ),
        (
            "an endless escape",
            around(&format!("\"{}", "\\u0061".repeat(mib / 8))),
        ),
        ("many documents", "---\n".repeat(mib / 5)),
        (
            "many commas",
            around(&format!("[{}]", "a,".repeat(mib / 4))),
        ),
        ("many keys", around(&format!("{{{}}}", keys(mib / 16)))),
        (
            "many times one key",
            around(&format!("{{{}}}", "a: b, ".repeat(mib / 8))),
        ),
        (
            "many unknown fields",
            (0..40_000).map(|key| format!("k{key}: v\n")).collect(),
        ),
        (
            "many bad resources",
            "kind: Policy\napiVersion: x\n---\n".repeat(30_000),
        ),
        ("many comments", "#\n".repeat(mib / 3)),
        ("a megabyte of tabs", "\t".repeat(mib - 1)),
        ("long anchors", format!("&{} a\n", "a".repeat(mib - 10))),
    ]
}

fn keys(count: usize) -> String {
    (0..count).map(|key| format!("k{key}: v, ")).collect()
}

#[test]
fn bombs_are_refused_in_little_memory() {
    let mesh = MeshSettings::default();
    let is_timed = env::var_os("IDENTUN_BOMBS_TIMED").is_some();
    let mut slow = Vec::new();
    for (name, text) in bombs() {
        let len = text.len();
        let file = Arc::new(SourceFile {
            name: "bomb.yaml".into(),
            text,
        });
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = processor_time();
        let (resources, findings) = load(&[Arc::clone(&file)], &mesh);
        let time = processor_time() - start;
        let memory = PEAK.load(Relaxed) - before;
        println!("{name}: {len} bytes, {memory} bytes of memory, {time:?}");
        assert!(resources.is_none() || is_harmless(name), "{name} is taken");
        assert!(memory <= MAX_MEMORY, "{name} takes {memory} bytes");
        for finding in findings.iter().take(3) {
            assert!(render(finding, Some(&file), false).len() < 4_096, "{name}");
        }
        let most = match name.starts_with("many") {
            true => MAX_TIME_OF_MANY,
            false => MAX_TIME,
        };
        if time > most {
            slow.push((name, time));
        }
    }
    assert!(!is_timed || slow.is_empty(), "slow: {slow:?}");
}

/// Long, but nothing is in it.
fn is_harmless(name: &str) -> bool {
    matches!(name, "many comments" | "a megabyte of tabs")
}

/// What this thread has had of the processor: others may be busy too.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
