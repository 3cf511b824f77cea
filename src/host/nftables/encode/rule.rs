//! One rule: its text, a part of nft's language, into the expressions that the kernel runs.

use super::{
    field::{FAMILY, Field, PROTOCOL, expression},
    message::Attributes,
    set::padded,
    value::{REGISTER, Type},
};

/// The first of the registers of four bytes (NFT_REG32_00).
const REGISTERS: u32 = 8;
/// The register that decides what becomes of the packet (NFT_REG_VERDICT).
const VERDICT: u32 = 0;
// NFT_CMP_*
const EQUAL: u32 = 0;
const DIFFERENT: u32 = 1;
const AT_MOST: u32 = 3;
/// NFT_OBJECT_COUNTER
const COUNTER: u32 = 1;
/// NFT_DYNSET_OP_UPDATE
const UPDATE: u32 = 1;
/// NFT_REJECT_TCP_RST
const RESET: u32 = 1;

/// A set that is written in a rule itself.
#[derive(Debug)]
pub(super) struct Inline {
    /// Names the set within the transaction.
    pub(super) id: u32,
    pub(super) key: Vec<Type>,
    /// Each with a verdict in a map.
    pub(super) elements: Vec<(String, Option<Verdict>)>,
}

impl Inline {
    pub(super) fn is_map(&self) -> bool {
        self.elements.iter().any(|(_, verdict)| verdict.is_some())
    }

    /// Names are given by the kernel, from this pattern.
    pub(super) fn name(&self) -> &'static str {
        if self.is_map() { "__map%d" } else { "__set%d" }
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Verdict {
    code: u32,
    chain: Option<String>,
}

impl Verdict {
    /// The verdict at the start of the words, and how many they are.
    fn parse(words: &[&str]) -> Option<(Self, usize)> {
        let to = |code: i32, chain: Option<&&str>, words| {
            let chain = chain.map(|name| (*name).to_owned());
            let code = code.cast_unsigned();
            Some((Self { code, chain }, words))
        };
        match *words.first()? {
            "drop" => to(0, None, 1),
            "accept" => to(1, None, 1),
            // NFT_RETURN, NFT_JUMP, NFT_GOTO
            "return" => to(-5, None, 1),
            "jump" => to(-3, Some(words.get(1)?), 2),
            "goto" => to(-4, Some(words.get(1)?), 2),
            _ => None,
        }
    }

    /// Appends the data of a verdict.
    pub(super) fn write(&self, data: &mut Attributes<'_>) {
        data.nested(2, |verdict| {
            verdict.number(1, self.code);
            if let Some(chain) = &self.chain {
                verdict.text(2, chain);
            }
        });
    }
}

/// Reads one rule and writes its expressions.
pub(super) struct Rule<'a, 'b> {
    words: &'a [&'a str],
    out: Attributes<'b>,
    /// What is known of the packet by what was asked already.
    family: Option<u8>,
    protocol: Option<u8>,
    next_set: &'a mut u32,
    inline: Vec<Inline>,
}

/// Splits the text of a rule at spaces; nothing inside a word has any.
pub(super) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

impl<'a, 'b> Rule<'a, 'b> {
    /// Appends the expressions of the rule; returns the sets in it, which have to be made before the rule. `next_set`
    /// is the first number free for one. `None`: the rule is not understood.
    pub(super) fn encode(
        words: &'a [&'a str],
        next_set: &'a mut u32,
        out: Attributes<'b>,
    ) -> Option<Vec<Inline>> {
        let mut rule = Self {
            words,
            out,
            family: None,
            protocol: None,
            next_set,
            inline: Vec::new(),
        };
        while !rule.words.is_empty() {
            rule.statement()?;
        }
        Some(rule.inline)
    }

    fn take(&mut self, count: usize) -> Option<&'a [&'a str]> {
        let (taken, rest) = self.words.split_at_checked(count)?;
        self.words = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<&'a str> {
        self.take(1)?.first().copied()
    }

    fn next_is(&mut self, word: &str) -> bool {
        let is = self.words.first() == Some(&word);
        if is {
            let _ = self.take(1);
        }
        is
    }

    fn statement(&mut self) -> Option<()> {
        if let Some((verdict, count)) = Verdict::parse(self.words) {
            self.take(count)?;
            expression(&mut self.out, "immediate", |data| {
                data.number(1, VERDICT);
                data.nested(2, |inner| verdict.write(inner));
            });
            return Some(());
        }
        match *self.words {
            ["notrack", ..] => {
                self.take(1)?;
                expression(&mut self.out, "notrack", |_| {});
            }
            ["counter", "name", name, ..] => {
                self.take(3)?;
                expression(&mut self.out, "objref", |data| {
                    data.number(1, COUNTER);
                    data.text(2, name);
                });
            }
            ["reject", "with", "tcp", "reset", ..] => {
                self.take(4)?;
                expression(&mut self.out, "reject", |data| {
                    data.number(1, RESET);
                    data.bytes(2, &[0]);
                });
            }
            ["update", set, ..] => {
                self.take(2)?;
                self.update(set.strip_prefix('@')?)?;
            }
            _ => self.question()?,
        }
        Some(())
    }

    /// `update @set { a . b }`
    fn update(&mut self, set: &str) -> Option<()> {
        let key = self.braces()?;
        let mut key = Rule {
            words: &words(&key),
            out: self.out.again(),
            family: self.family,
            protocol: self.protocol,
            next_set: self.next_set,
            inline: Vec::new(),
        };
        key.load()?;
        if !key.words.is_empty() {
            return None;
        }
        expression(&mut self.out, "dynset", |data| {
            data.text(1, set);
            data.number(3, UPDATE);
            data.number(4, REGISTERS);
        });
        Some(())
    }

    /// Loads one field or several, joined by `.`, into the registers from the first on.
    fn load(&mut self) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        loop {
            let (field, count) = Field::parse(self.words)?;
            self.take(count)?;
            fields.push(field);
            if !self.next_is(".") {
                break;
            }
        }
        for field in &fields {
            self.require(*field);
        }
        let mut register = REGISTERS;
        for field in &fields {
            field.load(register, &mut self.out);
            register += u32::try_from(padded(field.kind) / REGISTER).ok()?;
        }
        Some(fields)
    }

    /// Asks first what has to be so for the field to be there.
    fn require(&mut self, field: Field) {
        for (wanted, known, of) in [
            (field.family, &mut self.family, FAMILY),
            (field.protocol, &mut self.protocol, PROTOCOL),
        ] {
            if let Some(value) = wanted
                && *known != wanted
            {
                *known = wanted;
                of.load(REGISTERS, &mut self.out);
                compare(EQUAL, &[value], &mut self.out);
            }
        }
    }

    fn question(&mut self) -> Option<()> {
        if let [key, "mark", "set", again, "mark", "&", ..] = *self.words
            && key == again
        {
            return self.set_mark();
        }
        let fields = self.load()?;
        let [field] = *fields.as_slice() else {
            return self.look_up(&fields, false);
        };
        if self.next_is("&") {
            let mask = field.kind.value(self.word()?)?;
            masked(&mask, &vec![0; mask.len()], &mut self.out);
            let operator = self.operator()?;
            compare(operator, &field.kind.value(self.word()?)?, &mut self.out);
            return Some(());
        }
        let first = *self.words.first()?;
        if first.starts_with(['@', '{']) || first == "vmap" {
            return self.look_up(&fields, false);
        }
        if field.kind == Type::State {
            let bits = Type::State.value(self.word()?)?;
            let zero = vec![0; bits.len()];
            masked(&bits, &zero, &mut self.out);
            compare(DIFFERENT, &zero, &mut self.out);
            return Some(());
        }
        let operator = self.operator().unwrap_or(EQUAL);
        if operator == DIFFERENT && self.words.first()?.starts_with(['@', '{']) {
            return self.look_up(&fields, true);
        }
        self.compare(field, operator)
    }

    fn compare(&mut self, field: Field, operator: u32) -> Option<()> {
        let mut value = field.kind.value(self.word()?)?;
        if operator == AT_MOST {
            if field.kind != Type::Length {
                return None;
            }
            // bytes are compared from the first on, so the first has to be the highest
            value = u32::from_ne_bytes(value.try_into().ok()?)
                .to_be_bytes()
                .to_vec();
            expression(&mut self.out, "byteorder", |data| {
                data.number(1, REGISTERS);
                data.number(2, REGISTERS);
                // NFT_BYTEORDER_HTON, four bytes in all, four at a time
                for (kind, value) in [(3, 1), (4, 4), (5, 4)] {
                    data.number(kind, value);
                }
            });
        }
        compare(operator, &value, &mut self.out);
        if operator == EQUAL {
            for (of, known) in [(FAMILY, &mut self.family), (PROTOCOL, &mut self.protocol)] {
                if field == of {
                    *known = value.first().copied();
                }
            }
        }
        Some(())
    }

    /// `mark set mark & keep | bits`
    fn set_mark(&mut self) -> Option<()> {
        let (field, _) = Field::parse(self.words)?;
        self.take(6)?;
        let keep = u32::from_ne_bytes(field.kind.value(self.word()?)?.try_into().ok()?);
        let bits = match self.next_is("|") {
            true => u32::from_ne_bytes(field.kind.value(self.word()?)?.try_into().ok()?),
            false => 0,
        };
        field.load(REGISTERS, &mut self.out);
        masked(
            &(keep & !bits).to_ne_bytes(),
            &bits.to_ne_bytes(),
            &mut self.out,
        );
        field.store(REGISTERS, &mut self.out).then_some(())
    }

    fn operator(&mut self) -> Option<u32> {
        let operator = match *self.words.first()? {
            "==" => EQUAL,
            "!=" => DIFFERENT,
            "<=" => AT_MOST,
            _ => return None,
        };
        self.take(1)?;
        Some(operator)
    }

    /// `@set`, `{ a, b }` or `vmap { a : verdict }`
    fn look_up(&mut self, fields: &[Field], inverted: bool) -> Option<()> {
        let map = self.next_is("vmap");
        let (name, id) = match self.words.first()?.strip_prefix('@') {
            Some(name) => {
                self.take(1)?;
                (name, None)
            }
            None => {
                let inline = self.inline(fields, map)?;
                let named = (inline.name(), Some(inline.id));
                self.inline.push(inline);
                named
            }
        };
        expression(&mut self.out, "lookup", |data| {
            data.number(2, REGISTERS);
            data.text(1, name);
            if let Some(id) = id {
                data.number(4, id);
            }
            if map {
                data.number(3, VERDICT);
            }
            if inverted {
                data.number(5, 1);
            }
        });
        Some(())
    }

    fn inline(&mut self, fields: &[Field], map: bool) -> Option<Inline> {
        let mut elements = Vec::new();
        for element in self.braces()?.split(',').map(str::trim) {
            elements.push(match map {
                false => (element.to_owned(), None),
                true => {
                    let (key, verdict) = element.split_once(" : ")?;
                    let words = words(verdict);
                    let (verdict, count) = Verdict::parse(&words)?;
                    (count == words.len()).then_some((key.trim().to_owned(), Some(verdict)))?
                }
            });
        }
        let id = *self.next_set;
        *self.next_set += 1;
        Some(Inline {
            id,
            key: fields.iter().map(|field| field.kind).collect(),
            elements,
        })
    }

    /// What stands between `{` and `}`.
    fn braces(&mut self) -> Option<String> {
        if self.word()? != "{" {
            return None;
        }
        let end = self.words.iter().position(|word| *word == "}")?;
        let inner = self.take(end)?.join(" ");
        self.take(1)?;
        Some(inner)
    }
}

fn compare(operator: u32, value: &[u8], expressions: &mut Attributes<'_>) {
    expression(expressions, "cmp", |data| {
        data.number(1, REGISTERS);
        data.number(2, operator);
        data.nested(3, |inner| inner.bytes(1, value));
    });
}

/// The register becomes `(register & mask) ^ bits`.
fn masked(mask: &[u8], bits: &[u8], expressions: &mut Attributes<'_>) {
    expression(expressions, "bitwise", |data| {
        data.number(1, REGISTERS);
        data.number(2, REGISTERS);
        data.number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
        data.nested(4, |inner| inner.bytes(1, mask));
        data.nested(5, |inner| inner.bytes(1, bits));
    });
}
