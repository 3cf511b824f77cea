//! DER as a tree that can be changed anywhere and is whole again when it is written.

/// What is deeper than any certificate stays bytes.
const MAX_DEPTH: usize = 16;

/// One element.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) tag: u8,
    /// Its length is written longer than need be, which DER forbids.
    pub(crate) long: bool,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Bytes(Vec<u8>),
    /// Of a constructed element, and of an OCTET STRING that holds elements.
    Nodes(Vec<Node>),
}

impl Node {
    pub(crate) fn new(tag: u8, bytes: &[u8]) -> Self {
        Self {
            tag,
            long: false,
            body: Body::Bytes(bytes.to_vec()),
        }
    }

    /// Whether it has this content.
    pub(crate) fn is(&self, content: &[u8]) -> bool {
        matches!(&self.body, Body::Bytes(bytes) if bytes == content)
    }

    /// The one element that `der` is.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        match <[Self; 1]>::try_from(nodes(der, 0)?) {
            Ok([node]) => Some(node),
            Err(_) => None,
        }
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let content = match &self.body {
            Body::Bytes(bytes) => bytes.clone(),
            Body::Nodes(nodes) => nodes.iter().flat_map(Self::write).collect(),
        };
        let len = content.len();
        let mut out = vec![self.tag];
        match len {
            0..0x80 if !self.long => out.push(len as u8),
            0..0x100 => out.extend([0x81, len as u8]),
            _ => out.extend([0x82, (len >> 8) as u8, len as u8]),
        }
        out.extend(content);
        out
    }

    /// How many elements it is, itself included.
    pub(crate) fn count(&self) -> usize {
        match &self.body {
            Body::Bytes(_) => 1,
            Body::Nodes(nodes) => 1 + nodes.iter().map(Self::count).sum::<usize>(),
        }
    }

    /// The element `number`, counted from the root and downwards, and where it stands in the one that holds it.
    pub(crate) fn holder(&mut self, number: usize) -> Option<(&mut Vec<Self>, usize)> {
        let Body::Nodes(nodes) = &mut self.body else {
            return None;
        };
        let mut next = 1;
        let at = nodes.iter().position(|node| {
            let within = number < next + node.count();
            next += if within { 0 } else { node.count() };
            within
        })?;
        if next == number {
            return Some((nodes, at));
        }
        nodes[at].holder(number - next)
    }
}

fn nodes(mut der: &[u8], depth: usize) -> Option<Vec<Node>> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (tag, content, rest) = element(der)?;
        let holds = tag & 0x20 != 0 || tag == 0x04;
        let below = (holds && depth < MAX_DEPTH).then(|| nodes(content, depth + 1));
        all.push(Node {
            tag,
            long: false,
            body: match below.flatten() {
                Some(nodes) if !nodes.is_empty() => Body::Nodes(nodes),
                _ => Body::Bytes(content.to_vec()),
            },
        });
        der = rest;
    }
    Some(all)
}

/// Tag, content and what follows.
pub(crate) fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (field, rest) = rest.split_at_checked(usize::from(first & 3))?;
            let len = field
                .iter()
                .fold(0, |len, &byte| len << 8 | usize::from(byte));
            (len, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    (tag & 0x1f != 0x1f).then_some((tag, content, rest))
}
