//! YAML text to a small tree whose every key and value knows where it stands.
//!
//! Refuses what makes YAML dangerous: anchors, aliases, tags, directives, duplicate keys, unbounded size or depth.

use std::{borrow::Cow, collections::BTreeMap};

use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::{report::Report, suggest::Quoted};
use crate::policy::diagnostic::{Diagnostic, codes};

/// The largest file that is read, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// How deep maps and lists may be nested.
pub(super) const MAX_DEPTH: usize = 64;
/// How many keys and values a file may hold; with [`MAX_BYTES`] it bounds the memory of a tree.
pub(super) const MAX_NODES: usize = 200_000;
/// How many entries of a map are looked through one by one.
const SMALL_MAP: usize = 16;

/// Where something stands in its file: line and column from 1, length in characters on that line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mark {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) length: u32,
}

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node<'s> {
    pub(super) mark: Mark,
    pub(super) value: Value<'s>,
}

/// What a node holds. Plain scalars are typed by whoever reads them; quoted ones are text and nothing else.
#[derive(Debug)]
pub(super) enum Value<'s> {
    Map(Vec<Entry<'s>>),
    Seq(Vec<Node<'s>>),
    Plain(Cow<'s, str>),
    Quoted(Cow<'s, str>),
    Null,
}

/// One key of a map with its value.
#[derive(Debug)]
pub(super) struct Entry<'s> {
    pub(super) key: Cow<'s, str>,
    pub(super) key_mark: Mark,
    pub(super) node: Node<'s>,
}

impl Node<'_> {
    /// Whether there is nothing: an absent value, `~` or `null`.
    pub(super) const fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }
}

/// Reads every document of `text` up to the first fault that makes the rest unreadable. Faults go to `report`.
/// Null documents are among the result.
pub(super) fn parse<'s>(text: &'s str, report: &mut Report<'_>) -> Vec<Node<'s>> {
    let mut documents = Vec::new();
    if !is_readable(text, report) {
        return documents;
    }
    let text = without_bom(text);
    let mut options = Options::default();
    options.disallow_directives = true;
    options.emit_anchor_events = true;
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    options.set_emit_comments(false);
    let mut builder = Builder {
        events: Parser::new_from_str_with_options(text, options),
        text,
        nodes: 0,
        report,
    };
    while let Ok(Some(document)) = builder.document() {
        documents.push(document);
    }
    documents
}

/// The text without the byte order mark, which is no character of the first line.
pub(in crate::policy) fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn is_readable(text: &str, report: &mut Report<'_>) -> bool {
    let first = Mark {
        line: 1,
        column: 1,
        length: 1,
    };
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes; {MAX_BYTES} are allowed", text.len());
        let help = "split it: every file of the folder is read";
        report.add(
            first,
            Diagnostic::new(&codes::TOO_LARGE, message).with_help(help),
        );
        return false;
    }
    // Nearly every file, and checked without looking at characters.
    if text
        .bytes()
        .all(|byte| matches!(byte, b'\t' | b'\n' | b' '..=b'~'))
    {
        return true;
    }
    for (line, number) in without_bom(text).split_inclusive('\n').zip(1..) {
        let line = line
            .strip_suffix('\n')
            .map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        // To YAML a carriage return alone ends a line, but no editor shows it: a setting could stand in what looks like a
        // comment, and places would count lines that nobody sees.
        let allowed = |c: char| !c.is_control() || c == '\t';
        if let Some((found, column)) = line.chars().zip(1..).find(|(c, _)| !allowed(*c)) {
            let message = format!(
                "the control character `{}` is not allowed",
                found.escape_unicode()
            );
            let mark = Mark {
                line: number,
                column,
                length: 1,
            };
            report.add(
                mark,
                Diagnostic::new(&codes::CONTROL_CHARACTER, message).with_label("remove it"),
            );
            return false;
        }
    }
    true
}

/// The rest of the file cannot be read; the reason has been reported.
struct Stop;

struct Builder<'s, 'r, 'm> {
    events: Parser<'s, StrInput<'s>>,
    text: &'s str,
    nodes: usize,
    report: &'r mut Report<'m>,
}

impl<'s> Builder<'s, '_, '_> {
    fn document(&mut self) -> Result<Option<Node<'s>>, Stop> {
        loop {
            let Some((event, span)) = self.next()? else {
                return Ok(None);
            };
            if event.is_node() {
                return self.node(event, span, 0).map(Some);
            }
        }
    }

    /// The next event; the fault that ends the file is reported here.
    fn next(&mut self) -> Result<Option<(Event<'s>, Span)>, Stop> {
        match self.events.next_event() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => {
                let mark = self.mark_of(&error);
                self.report.add(mark, scan_error(&error));
                Err(Stop)
            }
        }
    }

    fn node(&mut self, event: Event<'s>, span: Span, depth: usize) -> Result<Node<'s>, Stop> {
        let mark = self.mark(&span);
        self.admit(&event, &span, mark, depth)?;
        if let Event::Scalar(text, style, ..) = event {
            Ok(Node {
                mark,
                value: scalar(text, style),
            })
        } else if matches!(event, Event::MappingStart(..)) {
            self.map(mark, depth + 1)
        } else {
            self.seq(mark, depth + 1)
        }
    }

    /// Refuses what no file may hold, before its content is looked at.
    fn admit(
        &mut self,
        event: &Event<'s>,
        span: &Span,
        mark: Mark,
        depth: usize,
    ) -> Result<(), Stop> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let message = format!("the file holds more than {MAX_NODES} keys and values");
            return self.stop(mark, Diagnostic::new(&codes::TOO_MANY_VALUES, message));
        }
        let nested = depth + usize::from(event.scalar().is_none() && !event.is_alias());
        if nested > MAX_DEPTH {
            return self.stop(mark, too_deep());
        }
        if matches!(event, Event::Alias(_) | Event::UnresolvedAlias(_)) {
            return self.stop(mark, alias(span.slice(self.text).unwrap_or_default()));
        }
        if let Some(tag) = event.tag() {
            let message = format!("the tag {} is not allowed", Quoted(&tag.original()));
            let mark = span.tag_span().map_or(mark, |span| self.mark(&span));
            let found = Diagnostic::new(&codes::TAG, message).with_label("remove it");
            return self.stop(mark, found.with_help("quote a value to make it text"));
        }
        if event.anchor_id().is_some()
            && let Some((Event::Anchor(..), span)) = self.next()?
        {
            let mark = self.mark(&span);
            return self.stop(mark, alias(span.slice(self.text).unwrap_or_default()));
        }
        Ok(())
    }

    fn map(&mut self, mut mark: Mark, depth: usize) -> Result<Node<'s>, Stop> {
        let mut entries: Vec<Entry<'s>> = Vec::new();
        let mut seen = Seen::default();
        while let Some((event, span)) = self.next()? {
            if event == Event::MappingEnd {
                break;
            }
            let (key, key_mark) = self.key(event, span, depth)?;
            if entries.is_empty() && key_mark.line == mark.line && key_mark.column == mark.column {
                mark = key_mark;
            }
            let Some((event, span)) = self.next()? else {
                break;
            };
            let is_empty =
                matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text.is_empty());
            let mut node = self.node(event, span, depth)?;
            if is_empty {
                node.mark = key_mark;
            }
            if let Some(line) = seen.line_of(&key, &entries) {
                let message = format!("the key {} stands twice in one map", Quoted(&key));
                let found = Diagnostic::new(&codes::DUPLICATE_KEY, message);
                self.report
                    .add(key_mark, found.with_label(format!("first on line {line}")));
                continue;
            }
            entries.push(Entry {
                key,
                key_mark,
                node,
            });
            seen.note(&entries);
        }
        Ok(Node {
            mark,
            value: Value::Map(entries),
        })
    }

    fn key(
        &mut self,
        event: Event<'s>,
        span: Span,
        depth: usize,
    ) -> Result<(Cow<'s, str>, Mark), Stop> {
        let mark = self.mark(&span);
        self.admit(&event, &span, mark, depth)?;
        if let Event::Scalar(text, ..) = event {
            return Ok((text, mark));
        }
        let found = Diagnostic::new(
            &codes::KEY_NOT_TEXT,
            "a key must be text, not a map or list",
        );
        self.stop(
            mark,
            found.with_help("braces begin a map in YAML; quote the text if it is a template"),
        )
    }

    fn seq(&mut self, mark: Mark, depth: usize) -> Result<Node<'s>, Stop> {
        let mut nodes = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::SequenceEnd {
                break;
            }
            nodes.push(self.node(event, span, depth)?);
        }
        Ok(Node {
            mark,
            value: Value::Seq(nodes),
        })
    }

    fn stop<T>(&mut self, mark: Mark, found: Diagnostic) -> Result<T, Stop> {
        self.report.add(mark, found);
        Err(Stop)
    }

    fn mark(&self, span: &Span) -> Mark {
        let text = span.slice(self.text).unwrap_or_default();
        let length = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_end()
            .chars()
            .count();
        self.mark_at(span.start.line(), span.start.col(), length.max(1))
    }

    /// Where a fault is; for a tab, the tab itself and not what follows it.
    fn mark_of(&self, error: &ScanError) -> Mark {
        let marker = error.marker();
        let mut column = marker.col();
        if is_about_a_tab(error.kind()) {
            let line = self.text.lines().nth(marker.line().saturating_sub(1));
            let tabs = line.unwrap_or_default().chars().take(column + 1);
            let last = tabs.enumerate().filter(|(_, c)| *c == '\t').last();
            column = last.map_or(column, |(index, _)| index);
        }
        self.mark_at(marker.line(), column, 1)
    }

    fn mark_at(&self, line: usize, column_from_0: usize, length: usize) -> Mark {
        let small = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Mark {
            line: small(line.max(1)),
            column: small(column_from_0).saturating_add(1),
            length: small(length),
        }
    }
}

/// The keys of a map while it is read. Most maps are so small that looking through their entries is quicker than an index.
#[derive(Default)]
struct Seen<'s> {
    /// Filled once a map has [`SMALL_MAP`] entries.
    index: BTreeMap<Cow<'s, str>, u32>,
}

impl<'s> Seen<'s> {
    /// The line of a key among `entries`.
    fn line_of(&self, key: &str, entries: &[Entry<'s>]) -> Option<u32> {
        if self.index.is_empty() {
            let same = entries.iter().find(|entry| entry.key == key);
            return same.map(|entry| entry.key_mark.line);
        }
        self.index.get(key).copied()
    }

    /// Notes the keys of `entries` that are new, if there are enough to be worth it.
    fn note(&mut self, entries: &[Entry<'s>]) {
        if entries.len() > SMALL_MAP {
            let new = entries.iter().skip(self.index.len());
            let lines = new.map(|entry| (entry.key.clone(), entry.key_mark.line));
            self.index.extend(lines);
        }
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value<'_> {
    match (style, text.as_ref()) {
        (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") => Value::Null,
        (ScalarStyle::Plain, _) => Value::Plain(text),
        _ => Value::Quoted(text),
    }
}

fn alias(written: &str) -> Diagnostic {
    let what = if written.starts_with('&') {
        "anchor"
    } else {
        "alias"
    };
    Diagnostic::new(
        &codes::ALIAS,
        format!("the YAML {what} {} is not allowed", Quoted(written)),
    )
    .with_label("anchors and aliases are refused")
    .with_help("write the value out where it is used; quote it if it is text")
}

fn too_deep() -> Diagnostic {
    let message = format!("maps and lists are nested more than {MAX_DEPTH} deep");
    Diagnostic::new(&codes::TOO_DEEP, message)
}

fn scan_error(error: &ScanError) -> Diagnostic {
    let kind = error.kind();
    if *kind == ErrorKind::RecursionLimitExceeded {
        too_deep()
    } else if *kind == ErrorKind::DirectiveDisallowed {
        Diagnostic::new(&codes::DIRECTIVE, "YAML directives are not allowed")
            .with_label("remove the line")
    } else if is_about_a_tab(kind) {
        Diagnostic::new(&codes::TAB, "a tab is not allowed here")
            .with_label("expected spaces")
            .with_help("indent with spaces")
    } else {
        Diagnostic::new(&codes::SYNTAX, format!("not valid YAML: {kind}"))
    }
}

const fn is_about_a_tab(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabAtBlockScalarStart
            | ErrorKind::TabInIndentation
            | ErrorKind::TabInPlainScalar
    )
}
