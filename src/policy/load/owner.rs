//! Which resource stands where in a text: findings know their place, people speak of resources.

use std::fmt;

use serde::Serialize;

use super::{
    read::Map,
    report::Report,
    tree::{self, Node, Value},
};
use crate::{policy::SourceFile, registry::Place};

/// A resource as its text names it, and the lines that it fills.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Owner {
    /// The kind, ours or not.
    pub kind: String,
    /// Empty for a resource of the whole cluster.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    #[serde(skip)]
    lines: (u32, u32),
}

impl fmt::Display for Owner {
    /// `Kind name.namespace`, as suppressions are written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)?;
        match &*self.namespace {
            "" => Ok(()),
            namespace => write!(f, ".{namespace}"),
        }
    }
}

/// The resources of one file, in the order of its text.
#[derive(Debug)]
pub struct Owners<'f> {
    file: &'f SourceFile,
    owners: Vec<Owner>,
}

impl<'f> Owners<'f> {
    /// Reads `file` as far as it is readable. A resource without namespace is one of `default_namespace`.
    pub fn new(file: &'f SourceFile, default_namespace: &str) -> Self {
        let mut owners = Vec::new();
        let mut report = Report::new(&file.name);
        for document in &tree::parse(&file.text, &mut report) {
            collect(document, default_namespace, &mut owners);
        }
        Self { file, owners }
    }

    /// The resource that stands at `place`.
    pub fn at(&self, place: &Place) -> Option<&Owner> {
        let is_here = |owner: &&Owner| (owner.lines.0..=owner.lines.1).contains(&place.line);
        let owners = self.owners.iter().filter(is_here);
        owners
            .filter(|_| self.file.name == place.file)
            .min_by_key(|owner| owner.lines.1 - owner.lines.0)
    }
}

/// The resource of a document; of a List those of its items.
fn collect(node: &Node<'_>, default_namespace: &str, owners: &mut Vec<Owner>) {
    let Some(root) = Map::unchecked(node, "a resource") else {
        return;
    };
    if let Some(Value::Seq(items)) = root.get("items").map(|items| &items.value) {
        for item in items {
            collect(item, default_namespace, owners);
        }
        return;
    }
    let metadata = root
        .get("metadata")
        .and_then(|node| Map::unchecked(node, "metadata"));
    let text = |map: &Map<'_, '_>, key: &str| match &map.get(key)?.value {
        Value::Plain(text) | Value::Quoted(text) => Some(text.to_string()),
        Value::Map(_) | Value::Seq(_) | Value::Null => None,
    };
    let (Some(kind), Some(metadata)) = (text(&root, "kind"), metadata) else {
        return;
    };
    let is_cluster_wide = kind == super::head::MESH_POLICY.name;
    let namespace = text(&metadata, "namespace").unwrap_or_else(|| default_namespace.into());
    owners.push(Owner {
        namespace: if is_cluster_wide {
            String::new()
        } else {
            namespace
        },
        name: text(&metadata, "name").unwrap_or_default(),
        kind,
        lines: (node.mark.line, last_line(node)),
    });
}

/// The last line on which something of `node` begins; its depth is bounded by the parser.
fn last_line(node: &Node<'_>) -> u32 {
    let inside = match &node.value {
        Value::Map(entries) => entries
            .iter()
            .map(|entry| entry.key_mark.line.max(last_line(&entry.node)))
            .max(),
        Value::Seq(nodes) => nodes.iter().map(last_line).max(),
        Value::Plain(_) | Value::Quoted(_) | Value::Null => None,
    };
    inside.map_or(node.mark.line, |line| line.max(node.mark.line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_belongs_to_the_resource_around_it() {
        let file = SourceFile {
            name: "a.yaml".into(),
            text: "kind: MeshPolicy\nmetadata: {name: default}\n---\nkind: List\nitems:\n\
                   - kind: DestinationRule\n  metadata:\n    name: x\n    namespace: shop\n  spec: {}\n\
                   - {kind: Policy, metadata: {name: default}}\n---\n- no resource\n"
                .into(),
        };
        let owners = Owners::new(&file, "house");
        let at = |line| {
            let place = Place {
                file: "a.yaml".into(),
                line,
                column: 1,
            };
            owners
                .at(&place)
                .map(ToString::to_string)
                .unwrap_or_default()
        };
        assert_eq!(
            [1, 2, 4, 6, 10, 11, 13].map(at),
            [
                "MeshPolicy default",
                "MeshPolicy default",
                "",
                "DestinationRule x.shop",
                "DestinationRule x.shop",
                "Policy default.house",
                ""
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_belongs_to_nobody() {
        let file = SourceFile {
            name: "a.yaml".into(),
            text: "kind: Policy\nmetadata: {name: default}\n---\nkind: [\n".into(),
        };
        let owners = Owners::new(&file, "default");
        let place = |file: &str, line| Place {
            file: file.into(),
            line,
            column: 1,
        };
        assert!(owners.at(&place("a.yaml", 2)).is_some());
        assert!(owners.at(&place("a.yaml", 4)).is_none());
        assert!(owners.at(&place("b.yaml", 2)).is_none());
    }
}
