//! The ruleset's text as nf_tables' netlink messages. Understood is the part of nft's language in which our text is
//! written; anything else is an error. The daemon sends the messages itself instead of running nft, because a table
//! belongs to the socket that made it (`owner`).

mod field;
mod message;
mod rule;
mod set;
mod value;

use std::collections::BTreeMap;

pub(in crate::host) use message::Finished;
use message::{APPEND, Attributes, Batch, CREATE, Kind};
use rule::{Inline, Rule};
use set::Specification;

use super::{ELEMENTS_PER_STATEMENT, elements};

/// A line that is not understood.
#[derive(Debug, thiserror::Error)]
#[error("the ruleset's line {line:?} cannot be encoded")]
pub(in crate::host) struct EncodeError {
    line: String,
}

/// Encodes texts for one table.
pub(in crate::host) struct Encoder<'a> {
    table: &'a str,
    /// Of the table, whenever it is made or updated.
    flags: u32,
    /// The number of an interface.
    index: &'a dyn Fn(&str) -> Option<u32>,
    sets: BTreeMap<String, Specification>,
    next_set: u32,
    batch: Batch,
}

/// A chain and its rules.
struct Chain<'t> {
    name: &'t str,
    hook: Option<&'t str>,
    rules: Vec<&'t str>,
}

impl<'a> Encoder<'a> {
    pub(in crate::host) fn new(
        table: &'a str,
        flags: u32,
        index: &'a dyn Fn(&str) -> Option<u32>,
    ) -> Self {
        let specifications = elements::specifications().into_iter();
        let sets = specifications.filter_map(|(name, text)| {
            let specification = Specification::parse(&text)?;
            Some((name, specification))
        });
        Self {
            table,
            flags,
            index,
            sets: sets.collect(),
            next_set: 1,
            batch: Batch::new(),
        }
    }

    /// One transaction with all that the text says.
    pub(in crate::host) fn encode(mut self, text: &str) -> Result<Finished, EncodeError> {
        // an owner says with each transaction that the table is his, which the kernel then answers
        self.make_table();
        let mut lines = text.lines().map(strip).filter(|line| !line.is_empty());
        let opening = format!("table inet {} {{", self.table);
        while let Some(line) = lines.next() {
            let understood = match line == opening {
                true => self.table(&mut lines),
                false => self.command(line).ok_or_else(|| line.to_owned()),
            };
            understood.map_err(|line| EncodeError { line })?;
        }
        Ok(self.batch.finish())
    }

    fn make_table(&mut self) {
        let (table, flags) = (self.table, self.flags);
        self.batch.message(
            Kind::NewTable,
            CREATE,
            &format!("table {table}"),
            |message| {
                message.text(1, table);
                message.number(2, flags);
            },
        );
    }

    /// What stands in `table inet NAME { … }`: sets and counters, then chains, then what is in the chains, so that a
    /// rule finds whatever it names. The error is the line.
    fn table<'t>(&mut self, lines: &mut impl Iterator<Item = &'t str>) -> Result<(), String> {
        let mut chains: Vec<Chain<'t>> = Vec::new();
        let mut open = false;
        for line in lines {
            let chain = chains.last_mut().filter(|_| open);
            match (line, chain) {
                ("}", Some(_)) => open = false,
                ("}", None) => {
                    for chain in &chains {
                        self.chain(chain).ok_or(chain.name)?;
                    }
                    for chain in &chains {
                        for rule in &chain.rules {
                            self.rule(chain.name, rule).ok_or(*rule)?;
                        }
                    }
                    return Ok(());
                }
                (line, Some(chain)) if line.starts_with("type ") => chain.hook = Some(line),
                (line, Some(chain)) => chain.rules.push(line),
                (line, None) => match line
                    .strip_prefix("chain ")
                    .and_then(|rest| rest.strip_suffix(" {"))
                {
                    Some(name) => {
                        let (hook, rules) = (None, Vec::new());
                        chains.push(Chain { name, hook, rules });
                        open = true;
                    }
                    None => self.declaration(line).ok_or(line)?,
                },
            }
        }
        Err("}".to_owned())
    }

    /// `set NAME { … }` or `counter NAME { … }`
    fn declaration(&mut self, line: &str) -> Option<()> {
        let (head, body) = line.strip_suffix('}')?.split_once('{')?;
        let (what, name) = head.trim().split_once(' ')?;
        match what {
            "set" => {
                let specification = Specification::parse(body)?;
                let id = self.next_set;
                self.next_set += 1;
                specification.declare(self.table, name, id, &mut self.batch);
            }
            "counter" => {
                let table = self.table;
                let about = format!("counter {name}");
                self.batch
                    .message(Kind::NewObject, CREATE, &about, |object| {
                        object.text(1, table);
                        object.text(2, name);
                        // NFT_OBJECT_COUNTER, from zero
                        object.number(3, 1);
                        object.nested(4, |counter| {
                            counter.bytes(1, &[0; 8]);
                            counter.bytes(2, &[0; 8]);
                        });
                    });
            }
            _ => return None,
        }
        Some(())
    }

    fn chain(&mut self, chain: &Chain<'_>) -> Option<()> {
        let hook = match chain.hook {
            None => None,
            Some(text) => Some(hook(text)?),
        };
        let table = self.table;
        let about = format!("chain {}", chain.name);
        self.batch
            .message(Kind::NewChain, CREATE, &about, |message| {
                message.text(1, table);
                message.text(3, chain.name);
                if let Some((kind, number, priority)) = hook {
                    message.nested(4, |hook| {
                        hook.number(1, number);
                        hook.number(2, priority.cast_unsigned());
                    });
                    // NF_ACCEPT
                    message.number(5, 1);
                    message.text(7, kind);
                }
            });
        Some(())
    }

    /// The sets that stand in the rule, then the rule.
    fn rule(&mut self, chain: &str, text: &str) -> Option<()> {
        let words = rule::words(text);
        let mut expressions = Vec::new();
        let inline = Rule::encode(
            &words,
            &mut self.next_set,
            Attributes::into(&mut expressions),
        )?;
        for set in &inline {
            self.inline_set(set)?;
        }
        let table = self.table;
        self.batch
            .message(Kind::NewRule, CREATE | APPEND, text, |rule| {
                rule.text(1, table);
                rule.text(2, chain);
                rule.nested(4, |list| list.append(&expressions));
            });
        Some(())
    }

    fn inline_set(&mut self, set: &Inline) -> Option<()> {
        let specification =
            Specification::in_rule(set.key.clone(), set.is_map(), set.elements.len());
        specification.declare(self.table, set.name(), set.id, &mut self.batch);
        let mut keys = Vec::new();
        for (element, verdict) in &set.elements {
            let (key, _) = specification.element(element, self.index)?;
            keys.push((key, verdict));
        }
        let table = self.table;
        self.batch
            .message(Kind::NewElements, CREATE, "a set in a rule", |message| {
                message.text(1, table);
                message.text(2, set.name());
                message.number(4, set.id);
                message.nested(3, |list| {
                    for (key, verdict) in &keys {
                        list.nested(1, |element| {
                            element.nested(1, |inner| inner.bytes(1, key));
                            if let Some(verdict) = verdict {
                                element.nested(2, |data| verdict.write(data));
                            }
                        });
                    }
                });
            });
        Some(())
    }

    /// `add element …`, `delete element …`, `flush chain …`, `delete chain …`, `delete set …`
    fn command(&mut self, line: &str) -> Option<()> {
        let (verb, rest) = line.split_once(' ')?;
        let (what, rest) = rest.split_once(' ')?;
        let rest = rest
            .strip_prefix("inet ")?
            .strip_prefix(self.table)?
            .strip_prefix(' ')?;
        let kind = match (verb, what) {
            ("add", "element") => return self.elements(Kind::NewElements, CREATE, rest),
            ("delete", "element") => return self.elements(Kind::DeleteElements, 0, rest),
            ("flush", "chain") => Kind::DeleteRule,
            ("delete", "chain") => Kind::DeleteChain,
            ("delete", "set") => Kind::DeleteSet,
            _ => return None,
        };
        // the name's attribute: NFTA_RULE_CHAIN, NFTA_CHAIN_NAME, NFTA_SET_NAME
        let attribute = if what == "chain" && verb == "delete" {
            3
        } else {
            2
        };
        let table = self.table;
        self.batch.message(kind, 0, line, |message| {
            message.text(1, table);
            message.text(attribute, rest);
        });
        Some(())
    }

    /// `SET { a, b }`: at most [`ELEMENTS_PER_STATEMENT`], which is far from what one attribute holds (64 KiB; an
    /// element has at most 120 bytes).
    fn elements(&mut self, kind: Kind, flags: u16, rest: &str) -> Option<()> {
        let (set, list) = rest.split_once(" { ")?;
        let specification = self.sets.get(set)?;
        let mut keys = Vec::new();
        for element in list.strip_suffix(" }")?.split(", ") {
            keys.push(specification.element(element, self.index)?);
        }
        if keys.len() > ELEMENTS_PER_STATEMENT {
            return None;
        }
        let table = self.table;
        let about = format!("elements of set {set}");
        self.batch.message(kind, flags, &about, |message| {
            message.text(1, table);
            message.text(2, set);
            message.nested(3, |list| {
                for (key, end) in &keys {
                    list.nested(1, |element| {
                        element.nested(1, |inner| inner.bytes(1, key));
                        if let Some(end) = end {
                            element.nested(10, |inner| inner.bytes(1, end));
                        }
                    });
                }
            });
        });
        Some(())
    }
}

/// A line without what is for the reader.
fn strip(line: &str) -> &str {
    if line.starts_with('#') {
        return "";
    }
    line.split_once(" # ").map_or(line, |(line, _)| line).trim()
}

/// `type filter hook prerouting priority mangle; policy accept;`: type, hook and priority.
fn hook(text: &str) -> Option<(&str, u32, i32)> {
    let text = text
        .strip_prefix("type ")?
        .strip_suffix("; policy accept;")?;
    let (kind, rest) = text.split_once(" hook ")?;
    let (hook, priority) = rest.split_once(" priority ")?;
    // NF_INET_*
    let number = match hook {
        "prerouting" => 0,
        "input" => 1,
        "forward" => 2,
        "output" => 3,
        "postrouting" => 4,
        _ => return None,
    };
    // NF_IP_PRI_*
    let priority = match priority {
        "raw" => -300,
        "mangle" => -150,
        "filter - 10" => -10,
        number => number.parse().ok()?,
    };
    Some((kind, number, priority))
}
